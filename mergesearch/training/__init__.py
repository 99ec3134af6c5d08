"""Small recipes that make sources: contrastive experts and masked-language-model domain models.

Both start from a retriever's folder and leave a folder of the same shape: the encoder's trained weights, and
everything else byte for byte from the retriever. Training runs on the trainers of sentence-transformers and
transformers, which need the extra `training`.
"""

from mergesearch.training.cache import cached
from mergesearch.training.contrastive import train_contrastive
from mergesearch.training.masked_lm import train_masked_lm

__all__ = ["cached", "train_contrastive", "train_masked_lm"]

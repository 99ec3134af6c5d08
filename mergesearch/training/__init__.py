"""Small recipes that make sources: experts, domain models, knowledge adapters and re-rankers.

`train_contrastive` and `train_masked_lm` start from a retriever's folder and leave a folder of the same shape: the
encoder's trained weights, and everything else byte for byte from the retriever. `train_expert` and
`train_knowledge_adapter` do the same for models and data of any size, and go on where they were stopped; they leave
adapters, too. `train_reranker` makes a cross-encoder of an encoder. Training runs on the trainers of
sentence-transformers and transformers and on PEFT, which need the extra `training`.
"""

from mergesearch.sources.cached import cached
from mergesearch.training.adapters import AdapterSettings
from mergesearch.training.base import Trained
from mergesearch.training.contrastive import train_contrastive
from mergesearch.training.expert import ExpertSettings, train_expert
from mergesearch.training.knowledge import Adapted, KnowledgeSettings, train_knowledge_adapter
from mergesearch.training.masked_lm import train_masked_lm
from mergesearch.training.reranking import RerankerTraining, train_reranker

__all__ = [
    "Adapted",
    "AdapterSettings",
    "ExpertSettings",
    "KnowledgeSettings",
    "RerankerTraining",
    "Trained",
    "cached",
    "train_contrastive",
    "train_expert",
    "train_knowledge_adapter",
    "train_masked_lm",
    "train_reranker",
]

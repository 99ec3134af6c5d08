"""A cross-encoder of transformers behind the interface that evaluators call, without anything clever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mergesearch.evaluation.tokens import TokenizedTexts, make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mergesearch.evaluation.tokens import TokenPlan


@dataclass
class Weights:
    """What tests change of a re-ranker: `scale` makes its logits larger, `broken` makes the first of them NaN."""

    scale: float = 1.0
    broken: int = 0


class PlainReranker:
    """Pairs to logits."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.notes: list[str] = []
        self.layer_tokens = self.out_of_memory = self.calls = 0
        self.device = torch.device("cpu")
        self.weights = Weights()

    def plan_pairs(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        pairs: NDArray[np.int64],
        *,
        batch_tokens: int,
        store: Path | None = None,
    ) -> TokenPlan:
        made = [self.tokenizer(queries[q], documents[d], truncation=True)["input_ids"] for q, d in pairs]
        ids = np.array([token for pair in made for token in pair], dtype=np.int32)
        return make_plan([TokenizedTexts(ids, np.array([len(pair) for pair in made]))], batch_tokens=batch_tokens)

    @torch.inference_mode()
    def logits(self, plan: TokenPlan, on_batch: Callable[[], None] | None = None) -> torch.Tensor:
        self.calls += 1
        found = torch.full((plan.n_texts,), torch.nan)
        for batch in plan.batches:
            ids, mask = plan.padded(batch, pad_id=self.tokenizer.pad_token_id, left=False)
            made = self.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits[:, 0]
            found[torch.from_numpy(batch)] = self.weights.scale * made
            if on_batch is not None:
                on_batch()
        found[: self.weights.broken] = torch.nan
        return found

    def activated(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(logits)

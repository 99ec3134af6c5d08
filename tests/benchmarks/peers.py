"""How one scores merges without mergesearch, written as the documentation of the libraries has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytrec_eval
import torch
from mergekit.merge_methods import PerGroupValues, merge_state_dicts
from sentence_transformers import SentenceTransformer

BATCH_SIZE = 32
DEPTH = 100

Objective = Callable[[float, float], float]
"""nDCG@10 of a merge, by the retriever's share in the lower and in the upper half of the layers."""


class Judged:
    """A BEIR folder with one dev split, and nDCG@10 of a model on it."""

    def __init__(self, folder: Path, lengths: tuple[int, int]) -> None:
        documents = [json.loads(line) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
        queries = [json.loads(line) for line in (folder / "queries.jsonl").open(encoding="utf-8")]
        self.doc_ids = [d["_id"] for d in documents]
        self.query_ids = [q["_id"] for q in queries]
        self.documents = [f"{d['title']} {d['text']}".strip() for d in documents]
        self.queries = [q["text"] for q in queries]
        self.lengths = lengths
        qrels: dict[str, dict[str, int]] = {}
        for line in (folder / "qrels" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            query, document, grade = line.split("\t")
            qrels.setdefault(query, {})[document] = int(grade)
        self._evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"})

    def score(self, model: SentenceTransformer) -> float:
        """Encode, rank, and average over queries."""
        queries, documents = (
            self._encode(model, texts, length)
            for texts, length in zip((self.queries, self.documents), self.lengths, strict=True)
        )
        best = torch.topk(queries @ documents.T, min(DEPTH, len(self.doc_ids)))
        run = {
            query: {self.doc_ids[i]: float(s) for i, s in zip(places, scores, strict=True)}
            for query, places, scores in zip(self.query_ids, best.indices.tolist(), best.values.tolist(), strict=True)
        }
        per_query = self._evaluator.evaluate(run)
        return sum(q["ndcg_cut_10"] for q in per_query.values()) / len(per_query)

    def tokens(self, model: SentenceTransformer) -> int:
        """Tokens that a score takes, without padding."""
        counted = 0
        for texts, length in zip((self.queries, self.documents), self.lengths, strict=True):
            encoded = model.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
            counted += sum(len(ids) for ids in encoded)
        return counted

    @staticmethod
    def _encode(model: SentenceTransformer, texts: list[str], length: int) -> torch.Tensor:
        model.max_seq_length = length
        return model.encode(
            texts, batch_size=BATCH_SIZE, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )


def with_mergekit(retriever: Path, domain: Path, judged: Judged) -> tuple[Objective, SentenceTransformer]:
    """mergekit's in-memory API, into one model that is loaded once."""
    models = [_load(folder) for folder in (retriever, domain)]
    states = {name: model.state_dict() for name, model in zip(("retriever", "domain"), models, strict=True)}
    target = _load(retriever)

    def objective(lower: float, upper: float) -> float:
        weights = _weights(list(states["retriever"]), lower, upper)
        target.load_state_dict(merge_state_dicts(states, "linear", parameters={"weight": weights}))
        return judged.score(target)

    return objective, target


def with_sentence_transformers(retriever: Path, domain: Path, judged: Judged) -> tuple[Objective, SentenceTransformer]:
    """`SentenceTransformer.merge` of two loaded models."""
    models = [_load(folder) for folder in (retriever, domain)]
    names = list(models[0].state_dict())

    def objective(lower: float, upper: float) -> float:
        parameters: dict[str, Any] = {"weight": _weights(names, lower, upper)}
        return judged.score(SentenceTransformer.merge(models, "linear", parameters=parameters))

    return objective, models[0]


def _load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def _weights(names: list[str], lower: float, upper: float) -> PerGroupValues:
    """The retriever's and the domain model's weight per tensor; all but layers are the retriever's."""
    layers = [int(name.split(".layer.")[1].split(".")[0]) if ".layer." in name else None for name in names]
    half = (1 + max(n for n in layers if n is not None)) // 2
    shares = [1.0 if n is None else lower if n < half else upper for n in layers]
    return PerGroupValues([(share, 1 - share) for share in shares])

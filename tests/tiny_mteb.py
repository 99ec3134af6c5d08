"""Tasks of MTEB whose data are a tiny collection on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TASK = "MergesearchTinyRetrieval"


def read(collection: Path) -> dict[str, Any]:
    """What mteb's own loader would have made of the test split on the hub."""
    from datasets import Dataset

    def rows(name: str) -> list[dict[str, str]]:
        lines = (collection / name).read_text(encoding="utf-8").splitlines()
        return [{"id": r["_id"], "text": r["text"], "title": r.get("title", "")} for r in map(json.loads, lines)]

    qrels: dict[str, dict[str, int]] = {}
    for line in (collection / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        qrels.setdefault(query, {})[document] = int(score)
    queries = [{"id": r["id"], "text": r["text"]} for r in rows("queries.jsonl") if r["id"] in qrels]
    return {
        "corpus": Dataset.from_list(rows("corpus.jsonl")),
        "queries": Dataset.from_list(queries),
        "relevant_docs": qrels,
        "top_ranked": None,
    }


def make_task(collection: Path, name: str = TASK) -> type[Any]:
    """A task of text retrieval over a collection folder in BEIR layout."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Tiny(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name,
            description="Random words.",
            reference=None,
            dataset={"path": "local/tiny", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            self.dataset = {"default": {"test": read(collection)}}
            self.data_loaded = True

    return Tiny

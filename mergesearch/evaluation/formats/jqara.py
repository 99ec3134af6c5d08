"""JQaRA and data sets of its form: flat rows, each a query with one of its candidate passages.

JQaRA (Tateno 2024, https://huggingface.co/datasets/hotchpotch/JQaRA) has 100 candidates per question; only
these are ranked for it. A row has `q_id`, `question`, `passage_row_id`, `title`, `text` and `label`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergesearch.evaluation.formats.hub import HubDataset, write_local
from mergesearch.evaluation.formats.registry import CollectionOptions, collection_format

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection
    from mergesearch.evaluation.formats.builder import CollectionBuilder

COLUMNS = (("q_id",), ("question",), ("passage_row_id",), ("title", ""), ("text",), ("label",))


class JqaraOptions(CollectionOptions):
    """Options of format `jqara`."""

    dataset: str = "hotchpotch/JQaRA"
    """The hub id, or a local folder in the same layout."""

    revision: str | None = None
    """Branch, tag or commit of `dataset`."""

    config: str = "default"
    """The config to read."""


def write_jqara(collection: Collection, folder: Path) -> dict[str, Any]:
    """Writes flat rows. Documents that are nobody's candidate have no row, and are lost."""
    queries = dict(zip(collection.query_ids, collection.query_texts, strict=True))
    documents = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    rows = [
        {
            "id": f"{query_id}:{doc_id}",
            "q_id": query_id,
            "question": queries[query_id],
            "passage_row_id": doc_id,
            "title": "",
            "text": documents[doc_id],
            "label": collection.qrels[query_id].get(doc_id, 0),
        }
        for query_id, listed in (collection.candidates or {}).items()
        for doc_id in listed
    ]
    write_local(folder, {"default": {collection.split: rows}})
    return {"dataset": "."}


@collection_format("jqara", options=JqaraOptions, write=write_jqara, candidate_lists=True)
def read_jqara(options: JqaraOptions, split: str, builder: CollectionBuilder, relative_to: Path) -> None:
    """Flat rows of query, candidate passage and label, as in JQaRA."""
    dataset = HubDataset(options.dataset, options.revision, relative_to)
    config = dataset.config("rows", [options.config])
    there = dataset.split(config, (split,))
    for place, (query_id, question, doc_id, title, text, label) in dataset.rows(config, there, COLUMNS, builder):
        builder.add_query(query_id, question, place, repeats=True)
        builder.add_document(doc_id, text, place, title=title, repeats=True)
        builder.add_judgement(query_id, doc_id, label, place)
        builder.add_candidate(query_id, doc_id, place)

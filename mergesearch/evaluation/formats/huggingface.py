"""Retrieval data sets on the Hugging Face hub, in BEIR and in MTEB form.

* MTEB form (`mteb/nfcorpus`): one data set with configs `corpus`, `queries` and `qrels` or `default`.
* BEIR form (`BeIR/nfcorpus`): configs `corpus` and `queries`; judgements in a second data set of the same
  name with `-qrels` behind it.

Both have documents of `_id` (or `id`), `title`, `text`, and judgements of `query-id`, `corpus-id`, `score`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergesearch.evaluation.formats.hub import HubDataset, write_local
from mergesearch.evaluation.formats.registry import CollectionOptions, collection_format

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection
    from mergesearch.evaluation.formats.builder import CollectionBuilder

ID = ("_id", "id")


class HuggingFaceOptions(CollectionOptions):
    """Options of format `huggingface`."""

    dataset: str
    """The hub id, for example `mteb/nfcorpus` or `BeIR/nfcorpus`, or a local folder in the same layout."""

    revision: str | None = None
    """Branch, tag or commit of `dataset`."""

    qrels_dataset: str | None = None
    """The data set that holds the judgements; by default `dataset` itself where it has them, else
    `<dataset>-qrels`."""

    qrels_revision: str | None = None
    """Branch, tag or commit of the data set with the judgements, when that is another one."""

    subset: str | None = None
    """Part of a data set that holds several, such as a language: its configs are called `<subset>-corpus` or
    `corpus-<subset>`, and so on."""

    corpus_config: str | None = None
    """The config of the documents, where it is called otherwise."""

    queries_config: str | None = None
    """The config of the queries, where it is called otherwise."""

    qrels_config: str | None = None
    """The config of the judgements, where it is called otherwise."""

    candidates_config: str | None = None
    """A config of `query-id` and `corpus-ids` (MTEB's `top_ranked`): only these documents are ranked."""


def write_huggingface(collection: Collection, folder: Path) -> dict[str, Any]:
    """Writes a local data set in MTEB form."""
    documents = zip(collection.doc_ids, collection.doc_texts, strict=True)
    queries = zip(collection.query_ids, collection.query_texts, strict=True)
    qrels = [
        {"query-id": q, "corpus-id": d, "score": g} for q, rated in collection.qrels.items() for d, g in rated.items()
    ]
    configs: dict[str, dict[str, list[dict[str, Any]]]] = {
        "corpus": {"corpus": [{"_id": i, "title": "", "text": t} for i, t in documents]},
        "queries": {"queries": [{"_id": i, "text": t} for i, t in queries]},
        "default": {collection.split: qrels},
    }
    write_local(folder, configs)
    return {"dataset": "."}


@collection_format("huggingface", options=HuggingFaceOptions, write=write_huggingface)
def read_huggingface(options: HuggingFaceOptions, split: str, builder: CollectionBuilder, relative_to: Path) -> None:
    """A Hugging Face data set in MTEB or BEIR form."""
    dataset = HubDataset(options.dataset, options.revision, relative_to)

    corpus = dataset.config("documents", _names(options.corpus_config, options.subset, "corpus"))
    there = dataset.split(corpus, (split, "corpus"), only=True)
    for place, (doc_id, title, text) in dataset.rows(corpus, there, (ID, ("title", ""), ("text",)), builder):
        builder.add_document(doc_id, text, place, title=title)

    queries = dataset.config("queries", _names(options.queries_config, options.subset, "queries"))
    there = dataset.split(queries, (split, "queries"), only=True)
    for place, (query_id, text) in dataset.rows(queries, there, (ID, ("text",)), builder):
        builder.add_query(query_id, text, place)

    judged, config = _qrels_source(options, dataset, relative_to)
    there = judged.split(config, (split,))
    for place, (query_id, doc_id, grade) in judged.rows(
        config, there, (("query-id",), ("corpus-id",), ("score",)), builder
    ):
        builder.add_judgement(query_id, doc_id, grade, place)

    if options.candidates_config is not None:
        config = dataset.config("candidates", [options.candidates_config])
        there = dataset.split(config, (split,), only=True)
        for place, (query_id, doc_ids) in dataset.rows(config, there, (("query-id",), ("corpus-ids",)), builder):
            for doc_id in doc_ids:
                builder.add_candidate(query_id, doc_id, place)


def _names(given: str | None, subset: str | None, kind: str) -> list[str]:
    """Names a config may have, in the order they are tried."""
    if given is not None:
        return [given]
    if subset is not None:
        return [f"{subset}-{kind}", f"{kind}-{subset}"]
    return [kind]


def _qrels_source(options: HuggingFaceOptions, dataset: HubDataset, relative_to: Path) -> tuple[HubDataset, str]:
    """The data set that holds the judgements, and the config."""
    names = _names(options.qrels_config, options.subset, "qrels")
    if options.qrels_config is None:
        names.append(options.subset or "default")
    if options.qrels_dataset is None and any(name in dataset.configs for name in names):
        return dataset, dataset.config("judgements", names)
    name = options.qrels_dataset or f"{options.dataset.rstrip('/')}-qrels"
    judged = HubDataset(name, options.qrels_revision, relative_to)
    if options.qrels_config is None and len(judged.configs) == 1:
        return judged, judged.configs[0]
    return judged, judged.config("judgements", names)

"""Collections that ir_datasets knows by id, such as `beir/nfcorpus` or `miracl/ja`.

They are downloaded to `~/.ir_datasets` (or `$IR_DATASETS_HOME`) on first use; https://ir-datasets.com lists
them. ir_datasets keeps some corpora in a store of its own there, which it writes and reads as pickles.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.formats.builder import CollectionBuilder, Place
from mergesearch.evaluation.formats.registry import CollectionOptions, collection_format
from mergesearch.evaluation.formats.trec import write_trec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection

SPLIT_NAMES = {"train", "dev", "validation", "valid", "test"}


class IrDatasetsOptions(CollectionOptions):
    """Options of format `ir_datasets`."""

    id: str
    """The id. Where `<id>/<split>` exists it is read, so that `beir/nfcorpus` serves all splits; else the id
    itself, unless it ends in the name of another split."""

    scored_candidates: bool = False
    """Rank only the documents that the data set lists for each query (its `scoreddocs`)."""


def write_ir_datasets(collection: Collection, folder: Path) -> dict[str, Any]:
    """Writes TSV and TREC files and registers them with ir_datasets, for this process."""
    import ir_datasets

    write_trec(collection, folder)
    parent = f"local/{collection.content_hash[:16]}"
    if f"{parent}/{collection.split}" not in ir_datasets.registry:
        made = ir_datasets.create_dataset(
            docs_tsv=folder / "corpus.tsv",
            queries_tsv=folder / "queries.tsv",
            qrels_trec=folder / f"qrels.{collection.split}.txt",
        )
        ir_datasets.registry.register(f"{parent}/{collection.split}", made)
    return {"id": parent}


@collection_format("ir_datasets", options=IrDatasetsOptions, write=write_ir_datasets)
def read_ir_datasets(
    options: IrDatasetsOptions,
    split: str,
    builder: CollectionBuilder,
    relative_to: Path,  # noqa: ARG001 - ids are not paths
) -> None:
    """A data set known to ir_datasets, by its id."""
    id_, dataset = _find(options.id, split)
    needed = {"docs": "documents", "queries": "queries", "qrels": "judgements"}
    if options.scored_candidates:
        needed["scoreddocs"] = "scored documents"
    missing = [words for entity, words in needed.items() if not dataset.has(entity)]
    if missing:
        splits = sorted(i.removeprefix(f"{id_}/") for i in _registry() if i.startswith(f"{id_}/"))
        hint = f"; below it there are: {', '.join(splits)}" if splits else ""
        raise CollectionError([Problem(f"it has no {' and no '.join(missing)}{hint}", f"ir_datasets id {id_!r}")])
    try:
        for place, doc in _rows(f"{id_} docs", dataset.docs_iter()):
            title = getattr(doc, "title", None)
            text = getattr(doc, "text", None)
            if isinstance(title, str) and isinstance(text, str):
                builder.add_document(doc.doc_id, text, place, title=title)
            else:
                builder.add_document(doc.doc_id, doc.default_text(), place)
        for place, query in _rows(f"{id_} queries", dataset.queries_iter()):
            builder.add_query(query.query_id, query.default_text(), place)
        for place, qrel in _rows(f"{id_} qrels", dataset.qrels_iter()):
            builder.add_judgement(qrel.query_id, qrel.doc_id, qrel.relevance, place)
        if options.scored_candidates:
            for place, scored in _rows(f"{id_} scoreddocs", dataset.scoreddocs_iter()):
                builder.add_candidate(scored.query_id, scored.doc_id, place)
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        # OSError covers what requests raises; RuntimeError is ir_datasets' own when every mirror failed.
        message = f"ir_datasets could not read it ({type(error).__name__}: {error}); it may need the network once"
        raise CollectionError([Problem(message, f"ir_datasets id {id_!r}")]) from error


def _registry() -> Any:
    import ir_datasets

    return ir_datasets.registry


def _rows(what: str, iterator: Any) -> Iterator[tuple[Place, Any]]:
    for number, row in enumerate(iterator, start=1):
        yield Place(what, number), row


def _find(wanted: str, split: str) -> tuple[str, Any]:
    """The id to read, and its data set."""
    registry = _registry()
    last = wanted.rpartition("/")[2]
    for id_ in (f"{wanted}/{split}", wanted):
        try:
            dataset = registry[id_]
        except KeyError:
            continue
        if id_ == wanted and last in SPLIT_NAMES - {split}:
            message = f"it ends in {last!r} but split {split!r} is asked for; give the id without the split"
            raise CollectionError([Problem(message, f"ir_datasets id {wanted!r}")])
        return id_, dataset
    close = difflib.get_close_matches(wanted, list(registry), n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise CollectionError([f"unknown ir_datasets id {wanted!r}.{hint} All ids: https://ir-datasets.com"])

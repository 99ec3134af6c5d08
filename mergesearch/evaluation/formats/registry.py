"""The registry of collection formats, and `load_collection`, which is all that others need.

A format is one file in this folder: an options model, a reader that hands what it finds to a
`CollectionBuilder`, and a writer that puts a collection into the format and returns the options that read it
back. The conformance suite runs every format's reader on what its writer wrote.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mergesearch.errors import CollectionError, Problem, unknown
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.formats.builder import CollectionBuilder


class CollectionOptions(BaseModel):
    """Options that every format has. A format's own options extend it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    unknown_ids: Literal["error", "drop"] = "error"
    """What to do with judgements of queries or documents that do not exist. `drop` leaves them out with a
    warning; relevant documents that are dropped no longer count in the ideal ranking, so nDCG is higher than
    trec_eval's with the original qrels."""

    empty_documents: Literal["error", "drop", "keep"] = "error"
    """What to do with documents that have neither title nor text. `drop` leaves them and their judgements out
    with a warning; `keep` encodes the empty string."""

    exclude_same_id: bool | None = None
    """Whether a document with the query's own id is left out of its ranking. By default it is where queries
    are documents of the corpus (most shared ids go with shared texts, as in ArguAna and Quora), and not where
    ids are equal by accident (numbered queries and numbered documents). BEIR's own code always leaves it
    out."""


OptionsT = TypeVar("OptionsT", bound=CollectionOptions)

Reader = Callable[[OptionsT, str, CollectionBuilder, Path], None]
"""(options, split, builder, folder that relative paths start from): adds all records to the builder. Problems
of content go to the builder, so that reading goes on; what makes reading impossible is raised."""

Writer = Callable[[Collection, Path], dict[str, Any]]
"""(collection, empty folder): writes it; returns options whose paths are relative to the folder."""


@dataclass(frozen=True)
class CollectionFormat:
    """One registered format.

    Attributes:
        name: what the study file calls it.
        title: one line for the docs.
        options: the model of its options.
        read: hands records to a builder.
        write: puts a collection into the format.
        candidate_lists: whether every query of the format comes with its own list of candidates.
        pseudo_queries: whether no user asked its queries, and nobody judged them; scores on them are labelled so.
    """

    name: str
    title: str
    options: type[CollectionOptions]
    read: Reader[Any]
    write: Writer
    candidate_lists: bool = False
    pseudo_queries: bool = False


FORMATS: dict[str, CollectionFormat] = {}
"""All formats by name, filled by the files of this folder."""


def collection_format(
    name: str,
    *,
    options: type[OptionsT],
    write: Writer,
    candidate_lists: bool = False,
    pseudo_queries: bool = False,
) -> Callable[[Reader[OptionsT]], Reader[OptionsT]]:
    """Registers the decorated reader; the first line of its docstring is the format's title."""

    def register(read: Reader[OptionsT]) -> Reader[OptionsT]:
        if name in FORMATS:
            raise RuntimeError(f"collection format {name!r} is registered twice")
        title = (inspect.getdoc(read) or name).splitlines()[0]
        FORMATS[name] = CollectionFormat(name, title, options, read, write, candidate_lists, pseudo_queries)
        return read

    return register


def discover() -> None:
    """Imports every file of this folder, which registers the formats among them."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")


def get_format(name: str) -> CollectionFormat:
    """The format called `name`; CollectionError with the closest name when there is none."""
    if name not in FORMATS:
        raise CollectionError([unknown("collection format", name, FORMATS)])
    return FORMATS[name]


def load_collection(
    format: str,  # noqa: A002 - the study file's word
    options: CollectionOptions | Mapping[str, Any],
    *,
    name: str,
    split: str,
    relative_to: Path,
) -> Collection:
    """Reads one split of a collection.

    Args:
        format: a name in `FORMATS`.
        options: the format's options, or the mapping to make them from.
        name: what the study calls the collection; used in messages.
        split: for example `dev`.
        relative_to: the folder that relative paths in the options start from.

    Raises:
        CollectionError: listing every problem found, with file and line.
    """
    found = get_format(format)
    if not isinstance(options, found.options):
        values = options.model_dump() if isinstance(options, BaseModel) else dict(options)
        try:
            options = found.options(**values)
        except ValidationError as error:
            problems = option_problems(error, found.options)
            raise CollectionError(problems, f"collection {name!r}: options of format {format!r}:") from None
    builder = CollectionBuilder(
        name,
        split,
        unknown_ids=options.unknown_ids,
        empty_documents=options.empty_documents,
        exclude_same_id=options.exclude_same_id,
    )
    try:
        found.read(options, split, builder, Path(relative_to))
    except CollectionError as error:
        # What stopped the reading comes last; what was found before it is as useful.
        heading = f"collection {name!r} cannot be used:"
        raise CollectionError([*builder.problems(), *error.problems], heading) from error.__cause__
    return builder.build()


def write_collection(format: str, collection: Collection, folder: Path) -> dict[str, Any]:  # noqa: A002
    """Writes `collection` in a format into `folder`, which is made when it is missing.

    Returns:
        The options that read it back with `relative_to=folder`.

    Raises:
        CollectionError: when the format cannot hold the collection.
    """
    found = get_format(format)
    if found.candidate_lists and collection.candidates is None:
        raise CollectionError([f"format {format!r} holds candidate lists; {collection.name!r} has none"])
    folder.mkdir(parents=True, exist_ok=True)
    return found.write(collection, folder)


def option_problems(error: ValidationError, options: type[BaseModel]) -> Iterable[Problem]:
    """What is wrong with options, as sentences; `options` is the model that refused them."""
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"]
        if item["type"] == "extra_forbidden":
            message = unknown("option", where, options.model_fields)
        elif item["type"] != "missing":
            message = f"{message.removeprefix('Value error, ')} (found {item['input']!r})"
        yield Problem(message, where)

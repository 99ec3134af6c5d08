"""The registry of first stages, and what each of them gives: `Candidates`.

A first stage is one file in this folder: a model of its options with two methods. The conformance suite
(tests/conformance/test_first_stages.py) runs over the registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mergesearch.errors import CollectionError, unknown
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.formats.registry import option_problems


@dataclass(frozen=True)
class Candidates:
    """What a first stage found for Q judged queries of a collection, in the collection's order.

    Attributes:
        rows: positions in the corpus, best first, int64 [Q, K]; -1 behind the last candidate of a query.
        scores: the first stage's scores, float64 [Q, K], 0 where there is no candidate; None where it has none.
        warnings: what people should know of them.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64] | None
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_lists(
        cls,
        rows: Sequence[NDArray[np.int64]],
        scores: Sequence[NDArray[np.float64]] | None,
        warnings: tuple[str, ...] = (),
    ) -> Candidates:
        """Candidates of one list of corpus positions per query, best first, and as many scores."""
        longest = max((len(found) for found in rows), default=0)
        table = np.full((len(rows), longest), -1, dtype=np.int64)
        values = None if scores is None else np.zeros(table.shape)
        for query, found in enumerate(rows):
            table[query, : len(found)] = found
            if values is not None and scores is not None:
                values[query, : len(found)] = scores[query]
        return cls(table, values, warnings)


class FirstStage(BaseModel):
    """Options of one kind of first stage, and what it does with them. Kinds extend it.

    Whatever it reads, an implementer must see to it that equal `identity` and collections give equal candidates, that
    documents are in the order of their scores with ties by document id, descending, as trec_eval has it, that no query
    is given the document that `own_documents` bars, and that collections with candidate lists get no others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    title: ClassVar[str] = ""

    @abstractmethod
    def identity(self, collection: Collection, relative_to: Path) -> dict[str, Any]:
        """What decides candidates beside collection and depth, as plain JSON types, without any path.

        Raises:
            CollectionError: what it needs is not there.
        """

    @abstractmethod
    def rank(self, collection: Collection, depth: int, *, relative_to: Path, device: str) -> Candidates:
        """At most `depth` candidates per judged query.

        Args:
            collection: its judged queries are asked.
            depth: 1 or more.
            relative_to: what relative paths in the options start from.
            device: a torch device, for kinds that compute on one.

        Raises:
            CollectionError: what it needs is not there, or does not fit the collection.
        """


FIRST_STAGES: dict[str, type[FirstStage]] = {}
"""All kinds by name, filled by the files of this folder."""

_Stage = TypeVar("_Stage", bound=type[FirstStage])


def first_stage(name: str, title: str) -> Callable[[_Stage], _Stage]:
    """Register a `FirstStage` under the name that studies use; `title` is one line for the docs."""

    def register(stage: _Stage) -> _Stage:
        stage.title = title
        FIRST_STAGES[name] = stage
        return stage

    return register


def discover() -> None:
    """Imports every file of this folder, which registers the first stages among them."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")


def open_first_stage(kind: str, options: Mapping[str, Any]) -> FirstStage:
    """The first stage of that kind with these options; nothing is read yet.

    Raises:
        CollectionError: the kind is unknown, or listing every option that is.
    """
    if kind not in FIRST_STAGES:
        raise CollectionError([unknown("first stage", kind, FIRST_STAGES)])
    stage = FIRST_STAGES[kind]
    try:
        return stage(**options)
    except ValidationError as error:
        raise CollectionError(option_problems(error, stage), f"options of first stage {kind!r}:") from None

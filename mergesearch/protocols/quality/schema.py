"""The protocol file: everything that decides the table, typed and closed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from mergesearch.errors import StudyFileError
from mergesearch.evaluation_schema import DType
from mergesearch.protocols.quality.text import PairKind
from mergesearch.yaml_problems import explain, plain

RETRIEVER = "retriever"
"""What the retriever is called among the sources."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Training(_Closed):
    """How a domain model is made of the retriever."""

    kind: Literal["masked_lm", "contrastive"]
    """Of the bare documents, or of pairs (see `Entry.pairs`)."""
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0)
    max_length: int = Field(ge=8)
    """Tokens of a text while training."""
    seed: int = Field(default=0, ge=0)


class Search(_Closed):
    """A row of the table that is searched: the retriever merged with one domain model."""

    row: str
    domain: str
    """The domain model."""
    strategy: str
    options: dict[str, Any] = {}
    """The strategy's."""
    step: float = Field(gt=0, le=1)
    """Coefficients are multiples of it. Where steps fit into each other, merges of several searches are equal, and are
    encoded once."""
    trials: int | None = Field(default=None, ge=1)
    """None for strategies that end by themselves."""
    seeds: int = Field(default=1, ge=1)
    """The search is repeated with so many seeds."""


class Dev(_Closed):
    """What merges are chosen on."""

    queries: int = Field(ge=1)
    judged: int = Field(ge=1)
    """Relevant documents of a query that are kept, at most."""
    negatives: int = Field(ge=0)
    """BM25 negatives of a query."""


class Lengths(_Closed):
    """Tokens of a text, on dev and on test."""

    query: int = Field(ge=8)
    document: int = Field(ge=8)


class Entry(_Closed):
    """A collection in BEIR layout with splits dev and test."""

    folder: str
    """Relative to the protocol file."""
    pairs: PairKind
    """What `contrastive` domain models are trained on."""
    dev: Dev
    max_length: Lengths


class Calibration(_Closed):
    """How the stated interval of a test gain is judged: dev queries are split in halves again and again."""

    splits: int = Field(ge=1)
    level: float = Field(gt=0, lt=1)


class ProtocolFile(_Closed):
    """The protocol as it was written."""

    protocol: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    work: str
    """The folder that everything is kept in; relative to the protocol file."""
    seed: int = Field(ge=0)
    processes: int = Field(ge=1)
    """Collections worked on at a time, each with one thread."""
    retriever: str
    """As a study file names a source."""
    metric: str
    dtype: DType
    segments: int = Field(ge=1)
    """Groups of layers with a coefficient of their own; embeddings are the retriever's."""
    domain_models: dict[str, Training] = Field(min_length=1)
    uniform: list[str]
    """Domain models that the retriever is averaged with for rows of their own."""
    searches: list[Search] = Field(min_length=1)
    """In the order in which they are run."""
    significance: float = Field(gt=0, lt=1)
    """Of p-values that are Holm-corrected over all comparisons of a collection."""
    calibration: Calibration
    collections: dict[str, Entry] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        unknown = sorted({*self.uniform, *(s.domain for s in self.searches)} - set(self.domain_models))
        if unknown:
            raise ValueError(f"domain models that searches name and nobody trains: {', '.join(unknown)}")
        if unsearched := sorted(set(self.domain_models) - {s.domain for s in self.searches}):
            raise ValueError(f"a search for every domain model, and there is none for {', '.join(unsearched)}")
        rows = [s.row for s in self.searches]
        if len(set(rows)) < len(rows):
            raise ValueError("rows with names of their own")
        if RETRIEVER in self.domain_models:
            raise ValueError(f"domain models with other names than {RETRIEVER!r}")
        return self


@dataclass(frozen=True)
class Protocol:
    """A protocol file that fits the schema.

    Attributes:
        content: what it says.
        path: where it lies.
        sha256: of its bytes: what fixes the protocol.
    """

    content: ProtocolFile
    path: Path
    sha256: str

    @property
    def work(self) -> Path:
        """Where everything is kept."""
        return (self.path.parent / self.content.work).resolve()

    def folder(self, collection: str) -> Path:
        """Where a collection lies."""
        return (self.path.parent / self.content.collections[collection].folder).resolve()


def read_protocol(path: Path) -> Protocol:
    """Read and check a protocol file.

    Raises:
        StudyFileError: with every problem that the schema finds, each with its line.
    """
    try:
        data = path.read_bytes()
        tree = YAML(typ="rt").load(data.decode())
    except OSError as error:
        raise StudyFileError([f"the protocol file {path} cannot be read: {error.strerror}"]) from None
    except (UnicodeDecodeError, MarkedYAMLError) as error:
        raise StudyFileError([f"{path} is not valid YAML in UTF-8: {error}"]) from None
    try:
        content = ProtocolFile.model_validate(plain(tree))
    except ValidationError as error:
        raise StudyFileError(explain(error, ProtocolFile, path, tree), heading=f"{path}:") from None
    return Protocol(content, path, hashlib.sha256(data).hexdigest())

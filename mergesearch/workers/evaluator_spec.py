"""What a worker is told of a study: small and picklable, without weights and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.formats import get_format, load_collection
from mergesearch.evaluation.racing import RacingSettings
from mergesearch.evaluation.rerank_settings import FirstStageSpec, RerankSettings
from mergesearch.evaluation.rerankers import detect_family
from mergesearch.sources.layout import Head
from mergesearch.workers.prefix_memory import PrefixSpec
from mergesearch.workers.residency import Residency

BatchProgress = Callable[[int, int], None]
"""Called with (batches encoded, batches of the trial)."""


@dataclass(frozen=True)
class CollectionSpec:
    """Where a collection comes from and which part of it is read.

    Attributes:
        name: what results call it.
        format: a name in the registry of collection formats.
        options: the format's own options.
        split: which queries are judged.
        relative_to: what relative paths in the options start from.
        queries: size of the query sample; None for all.
        pool_negatives: BM25 negatives per query in a reduced corpus; None for the whole corpus.
        seed: where sampling starts from.
        weight: share in a trial's value.
        prompts: `query` and `document` prompts; None where the template's own is used.
        choices: by kind the prompts that recipes pick from: tokenised beforehand, so that a trial finds them ready.
        subsample: how many of these queries are scored, and the seed that draws them; None scores all. The corpus, a
            pool too, stays that of all.
        first_stage: where candidates come from, in studies that re-rank.
    """

    name: str
    format: str
    options: Mapping[str, Any]
    split: str
    relative_to: Path
    queries: int | None = None
    pool_negatives: int | None = None
    seed: int = 0
    weight: float = 1.0
    prompts: Mapping[str, str | None] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subsample: tuple[int, int] | None = None
    first_stage: FirstStageSpec = field(default_factory=FirstStageSpec)

    @property
    def pseudo_queries(self) -> bool:
        """Whether its queries are nobody's, and scores on them are to be labelled so."""
        return get_format(self.format).pseudo_queries

    def load(self) -> Collection:
        """Read the collection, sample its queries, pool its corpus, sample again. Deterministic.

        Raises:
            CollectionError: listing everything that is wrong with it.
        """
        collection = load_collection(
            self.format, self.options, name=self.name, split=self.split, relative_to=self.relative_to
        )
        if self.queries is not None:
            collection = collection.sample_queries(self.queries, self.seed)
        if self.pool_negatives is not None:
            collection = collection.with_pool(self.pool_negatives, self.seed)
        if self.subsample is not None:
            collection = collection.sample_queries(*self.subsample)
        return collection


@dataclass(frozen=True)
class EvaluationSettings:
    """How merges are encoded and scored; see the study file's `evaluation` and `workers`.

    `rerank` says how a re-ranker scores pairs; None where merges are bi-encoders that rank the whole corpus.
    """

    metric: str = "ndcg@10"
    max_query_length: int | None = None
    max_document_length: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    similarity: str | None = None
    append_eos: bool | None = None
    dtype: str = "float32"
    attention: str = "auto"
    batch_tokens: int = 2048
    search: str = "torch"
    device: str = "cpu"
    rerank: RerankSettings | None = None


@dataclass(frozen=True)
class EvaluatorSpec:
    """All that a worker needs to evaluate recipes; small and picklable, it holds no weights and no text.

    Attributes:
        folders: source name to the folder of its model on this machine, which is its base's for an adapter.
        template: the source that the resident model is built from.
        merged_places: source name to the places of the model that some recipe may take from it.
        collections: what trials are scored on.
        evaluation: how.
        threads: CPU threads of the worker.
        trusted: sources whose own Python code may be run.
        shared_tokens: merge word embeddings over the tokens that all sources have.
        adapters: source name to the folder of its PEFT adapter, for the sources that are adapters.
        residency: where the sources are kept; `auto` leaves it to the worker, by the memory that is free where it is.
        workers: how many may run on one machine.
        gpus: of one worker; the model's layers are spread over them, and with several no hidden states are reused.
        artifacts: where embeddings of trials are kept; None keeps none.
        prefix: where hidden states of one trial may serve another.
        racing: the looks that trials are scored in; None scores them at once.
        study: its name, which metrics are labelled with.
    """

    folders: Mapping[str, Path]
    template: str
    merged_places: Mapping[str, frozenset[str]]
    collections: tuple[CollectionSpec, ...]
    evaluation: EvaluationSettings = EvaluationSettings()
    threads: int = 1
    trusted: frozenset[str] = frozenset()
    shared_tokens: bool = False
    adapters: Mapping[str, Path] = field(default_factory=dict)
    residency: Residency = "auto"
    workers: int = 1
    gpus: int = 1
    artifacts: str | None = None
    prefix: PrefixSpec = field(default_factory=PrefixSpec)
    racing: RacingSettings | None = None
    study: str = ""

    @property
    def head(self) -> Head | None:
        """What the resident model ends in; None for bi-encoders."""
        rerank = self.evaluation.rerank
        return None if rerank is None else detect_family(self.folders[self.template], rerank.family).head

    @property
    def resident(self) -> EvaluatorSpec:
        """What decides sources and model: evaluators of specs that are equal in this may be adapted to each other."""
        evaluation = replace(self.evaluation, metric="", search="")
        prefix = PrefixSpec()
        return replace(
            self, collections=(), evaluation=evaluation, artifacts=None, prefix=prefix, racing=None, study=""
        )

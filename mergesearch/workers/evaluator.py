"""`TrialEvaluator`: recipe in, scores out. A plain class that knows neither the study file, nor Optuna, nor Ray."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from mergesearch.artifacts import Artifacts
from mergesearch.errors import CollectionError, EvaluationError, MergeError, MergesearchError
from mergesearch.evaluation.encoder import Encoder, open_encoder
from mergesearch.evaluation.kept import Keeper
from mergesearch.evaluation.memory import with_room
from mergesearch.evaluation.pipeline import RetrievalEvaluator, WeightedCollection
from mergesearch.evaluation.prefix import PrefixCache, PrefixReuse, open_reuse
from mergesearch.evaluation.raced import RacedEvaluator
from mergesearch.evaluation.racing import RacingSettings, Rival
from mergesearch.evaluation.result import TrialResult
from mergesearch.merging.resident import ResidentMerger
from mergesearch.recipe import MergeRecipe
from mergesearch.sources.adapter import open_source
from mergesearch.sources.alignment import align_within, share_tokens
from mergesearch.sources.cache import cache_dir
from mergesearch.sources.layout import lowest_layer, read_layout
from mergesearch.sources.weights import read_tensors
from mergesearch.workers.evaluator_spec import BatchProgress, CollectionSpec, EvaluationSettings, EvaluatorSpec
from mergesearch.workers.pool import Outcome, ScreeningResult, ScreeningTask, Task
from mergesearch.workers.prefix_memory import prefix_room
from mergesearch.workers.residency import choose_residency, free_memory, room_for_sources, working_bytes
from mergesearch.workers.screening import Screener

logger = logging.getLogger(__name__)

T = TypeVar("T")

GAVE_WAY = "memory ran out, and hidden states of earlier trials were given up for it"
"""Note of a trial whose merge or search had no room beside them."""
LARGE_CORPUS = 500_000
"""Documents from which on token ids are kept on disk: about a gigabyte of them, and once per worker."""


class TrialEvaluator:
    """Holds the sources and one model resident and evaluates one recipe after the other.

    Not safe for use from several threads: the one model is overwritten by every recipe.

    Raises:
        SourceError: a source cannot be read or holds NaN.
        CollectionError: a collection cannot be read.
        MemoryFullError: sources and model do not fit.
    """

    def __init__(self, spec: EvaluatorSpec) -> None:
        torch.set_num_threads(spec.threads)
        opened, _ = with_room(lambda: open_merger(spec), "loading the sources", spec.evaluation.device)
        self.encoder, self.merger = opened
        self._serve(spec)

    def adapt(self, spec: EvaluatorSpec) -> None:
        """Serve another study as an evaluator made for it would, to the bit; its `spec.resident` is that of this one.

        Raises:
            CollectionError: a collection cannot be read; the evaluator serves nobody then.
        """
        assert spec.resident == self.spec.resident
        self.encoder.reuse = None  # what is held for one study makes room for the other
        del self.retrieval, self._screener
        self._serve(spec)

    def _serve(self, spec: EvaluatorSpec) -> None:
        self.spec = spec
        self.retrieval = build_retrieval(self.encoder, spec.collections, spec.evaluation, spec.racing)
        self.encoder.reuse = self._open_reuse()
        self._screener: Screener | None = None
        if spec.artifacts is not None:
            self._screener = Screener(self.merger, self.retrieval, Artifacts(spec.artifacts))

    def evaluate(
        self,
        recipe: MergeRecipe,
        progress: BatchProgress | None = None,
        *,
        worker: str = "local",
        keep_runs: bool = False,
        rivals: Sequence[Rival] = (),
    ) -> TrialResult:
        """Build the merge in place and score it on every collection.

        Args:
            recipe: the merge.
            progress: called after every batch.
            worker: noted in the result.
            keep_runs: keep the best documents per query.
            rivals: in an evaluator that races, the trials that this one has to beat, or it is stopped.

        Raises:
            MergeError: the recipe's coefficients build no merge.
            EvaluationError: the merge's embeddings cannot be scored.
            MemoryFullError: memory ran out where nothing could be cut smaller.
        """
        started = time.perf_counter()
        self.retrieval.use_prompts(recipe.prompts)
        _, failures = self._with_room("merging", lambda: self.merger.apply(recipe))
        merged = time.perf_counter() - started

        def score() -> tuple[TrialResult, Keeper | None]:
            keeper = Keeper(self.retrieval.collections) if self._screener is not None else None
            with self._reusing(recipe):
                if isinstance(self.retrieval, RacedEvaluator):
                    return self.retrieval.evaluate(progress, keep_runs=keep_runs, keeper=keeper, rivals=rivals), keeper
                return self.retrieval.evaluate(progress, keep_runs=keep_runs, keeper=keeper), keeper

        (result, keeper), further = self._with_room("encoding and searching", score)
        name = ""
        if self._screener is not None and keeper is not None and not result.stopped:
            name = self._screener.save(recipe, keeper.result())
        failures += further
        return replace(
            result,
            seconds={"merge": merged, **result.seconds},
            worker=worker,
            embeddings=name,
            out_of_memory=result.out_of_memory + failures,
            notes=(*result.notes, GAVE_WAY) if failures else result.notes,
        )

    def screen(self, task: ScreeningTask) -> ScreeningResult:
        """Predict merges from the embeddings of evaluated ones.

        Raises:
            EvaluationError: the evaluator keeps no embeddings.
            MemoryFullError: memory ran out.
        """
        screener = self._screener
        if screener is None:
            raise EvaluationError("a worker that keeps no embeddings was asked to predict from them.")
        return self._with_room("predicting merges from embeddings", lambda: screener.answer(task))[0]

    def _with_room(self, doing: str, work: Callable[[], T]) -> tuple[T, int]:
        """See `with_room`: hidden states that are kept for later trials make it, all of them, and once."""
        reuse = self.encoder.reuse
        made = (lambda: False) if reuse is None else partial(reuse.cache.give_way, keep=0.0)
        return with_room(work, doing, self.encoder.device, made)

    def _open_reuse(self) -> PrefixReuse | None:
        """What keeps hidden states between trials, in memory that is left now; None where it would not pay."""
        spec, device = self.spec, self.spec.evaluation.device
        if not spec.prefix.boundaries or spec.gpus > 1:
            return None
        host = free_memory("cpu") // spec.workers
        free = free_memory(device) if device.startswith("cuda") else host
        working = working_bytes(spec.evaluation.batch_tokens, self.encoder.settings.dimensions)
        tokens = self.retrieval.n_padded_tokens
        found = prefix_room(spec.prefix, device, tokens=tokens, room=free - working, host=host)
        logger.info("hidden states are kept at %s, %d + %d bytes", *found)
        if not found.boundaries:
            return None
        cache = PrefixCache(self.encoder.device, found.device, found.host)
        lowest = {name: lowest_layer(place) for place, names in self.merger.places.items() for name in names}
        return open_reuse(self.encoder, found.boundaries, cache, lowest)

    def _reusing(self, recipe: MergeRecipe) -> AbstractContextManager[None]:
        """Lets hidden states be kept and reused by what decides them in the recipe."""
        reuse = self.encoder.reuse
        if reuse is None:
            return nullcontext()
        places = {place: lowest_layer(place) for group in recipe.groups for place in group.places}
        return reuse.trial(lambda boundary: recipe.prefix_key({p for p, n in places.items() if n < boundary}))


def attempt(
    evaluator: TrialEvaluator, task: Task | ScreeningTask, worker: str, progress: BatchProgress | None = None
) -> Outcome:
    """Work on a task; whatever goes wrong becomes its reason, so that the next task is not lost with it."""
    try:
        if isinstance(task, ScreeningTask):
            return Outcome(task, worker, evaluator.screen(task))
        return Outcome(task, worker, evaluator.evaluate(task.recipe, progress, worker=worker, rivals=task.rivals))
    except (MergeError, EvaluationError) as error:
        return Outcome(task, worker, failure=str(error), recipe_at_fault=True)
    except MergesearchError as error:
        return Outcome(task, worker, failure=str(error))
    except Exception as error:
        logger.exception("%s failed", task)
        return Outcome(task, worker, failure=f"{type(error).__name__}: {error}")


def open_merger(spec: EvaluatorSpec) -> tuple[Encoder, ResidentMerger]:
    """Load the template as the resident model, and of every source what recipes may need."""
    settings = spec.evaluation
    trusted = spec.template in spec.trusted
    encoder = open_with(settings, spec.folders[spec.template], trust_remote_code=trusted, gpus=spec.gpus)
    layout = read_layout(spec.folders[spec.template], trust_remote_code=trusted)
    places = {name: parameter.place for name, parameter in layout.parameters.items()}
    # Which tokens are shared, all sources decide; else those that no recipe needs are left alone.
    opened = [name for name in spec.folders if spec.shared_tokens or spec.merged_places.get(name)]
    checkpoints = {name: open_source(name, spec.folders[name], spec.adapters.get(name)) for name in opened}
    shared = share_tokens(checkpoints, template=spec.template, layout=layout) if spec.shared_tokens else None
    names = {n: align_within(c, layout, spec.merged_places.get(n, frozenset())) for n, c in checkpoints.items()}
    devices = {name: parameter.device for name, parameter in encoder.parameters.items()}
    sizes = [(n, checkpoints[source].tensors[raw].n_bytes) for source, read in names.items() for n, raw in read.items()]
    bytes_at: Counter[str] = Counter()
    for name, n_bytes in sizes:
        bytes_at[str(devices[name])] += n_bytes
    kept, why = choose_residency(
        spec.residency,
        settings.device,
        [n_bytes for _, n_bytes in sizes],
        room=room_for_sources(bytes_at, settings.device, working_bytes(settings.batch_tokens, layout.hidden_size)),
        host=free_memory("cpu") // spec.workers,
    )
    logger.info("sources: %s, %s", kept, why)
    sources = {}
    for name, checkpoint in checkpoints.items():
        own = {} if shared is None else {shared.tensor: shared.rows[name]}
        sources[name] = read_tensors(checkpoint, names[name], kept=kept, device=devices, rows=own)
    rows = {} if shared is None else {shared.tensor: shared.rows[spec.template]}
    statistics = cache_dir() / "statistics"
    return encoder, ResidentMerger(encoder.parameters, sources, places, rows=rows, statistics=statistics)


def open_with(settings: EvaluationSettings, folder: Path, *, trust_remote_code: bool = False, gpus: int = 1) -> Encoder:
    """Load a retriever as a study's `evaluation` says."""
    lengths = (settings.max_query_length, settings.max_document_length)
    return open_encoder(
        folder,
        dtype=settings.dtype,
        device=settings.device,
        pooling=settings.pooling,
        normalize=settings.normalize,
        similarity=settings.similarity,
        # Plans cut each kind of text to its own length; this one stands in for a length that no file states.
        max_length=max(n for n in lengths if n is not None) if None not in lengths else None,
        append_eos=settings.append_eos,
        attention=settings.attention,
        trust_remote_code=trust_remote_code,
        gpus=gpus,
    )


def build_retrieval(
    encoder: Encoder,
    collections: Sequence[CollectionSpec],
    settings: EvaluationSettings,
    racing: RacingSettings | None = None,
) -> RetrievalEvaluator:
    """Tokenise every collection once and plan its batches, look by look where trials are raced."""
    weighted = [
        WeightedCollection(
            c.load(),
            weight=c.weight,
            query_prompt=c.prompts.get("query"),
            document_prompt=c.prompts.get("document"),
            choices=c.choices,
        )
        for c in collections
    ]
    with _token_store(weighted) as store:
        options: dict[str, Any] = {
            "metric": settings.metric,
            "batch_tokens": settings.batch_tokens,
            "max_query_length": settings.max_query_length,
            "max_document_length": settings.max_document_length,
            "backend": settings.search,
            "store": store,
        }
        if racing is not None:
            return RacedEvaluator(encoder, weighted, racing=racing, **options)
        return RetrievalEvaluator(encoder, weighted, **options)


@contextmanager
def _token_store(collections: Sequence[WeightedCollection]) -> Iterator[Path | None]:
    """A private folder for the token ids of large corpora, beside other files that can be made again.

    It is gone as soon as the evaluator is made: the file in it has lost its name by then and lives as long as
    it is mapped, so nothing is left behind however the process ends.
    """
    if all(len(c.collection.doc_ids) <= LARGE_CORPUS for c in collections):
        yield None
        return
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="tokens-", dir=cache_dir())
    except OSError as error:
        problem = f"token ids of large corpora need a folder on disk: {error}. Name another: MERGESEARCH_CACHE=FOLDER"
        raise CollectionError([problem]) from error
    with folder as path:
        yield Path(path)

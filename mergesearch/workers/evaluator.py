"""`TrialEvaluator`: recipe in, scores out. A plain class that knows neither the study file, nor Optuna, nor Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from mergesearch.artifacts import Artifacts
from mergesearch.errors import EvaluationError, MergeError, MergesearchError
from mergesearch.evaluation.memory import with_room
from mergesearch.evaluation.prefix import PrefixCache, PrefixReuse, open_reuse
from mergesearch.evaluation.racing import Rival
from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.sources.layout import lowest_layer
from mergesearch.workers.evaluator_spec import BatchProgress, EvaluatorSpec
from mergesearch.workers.opening import build_pipeline, open_merger
from mergesearch.workers.pool import Outcome, ScreeningResult, ScreeningTask, Task
from mergesearch.workers.prefix_memory import prefix_room
from mergesearch.workers.residency import free_memory, working_bytes
from mergesearch.workers.screening import Screener

logger = logging.getLogger(__name__)

T = TypeVar("T")

GAVE_WAY = "memory ran out, and hidden states of earlier trials were given up for it"
"""Note of a trial whose merge or search had no room beside them."""


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
        self.model, self.merger = opened
        self._serve(spec)

    def adapt(self, spec: EvaluatorSpec) -> None:
        """Serve another study as an evaluator made for it would, to the bit; its `spec.resident` is that of this one.

        Raises:
            CollectionError: a collection cannot be read; the evaluator serves nobody then.
        """
        assert spec.resident == self.spec.resident
        self.model.reuse = None  # what is held for one study makes room for the other
        del self.pipeline, self._screener
        self._serve(spec)

    def _serve(self, spec: EvaluatorSpec) -> None:
        self.spec = spec
        self.pipeline = build_pipeline(self.model, spec.collections, spec.evaluation, spec.racing)
        self.model.reuse = self._open_reuse()
        self._screener: Screener | None = None
        if spec.artifacts is not None:
            self._screener = Screener(self.merger, self.pipeline, Artifacts(spec.artifacts))

    def evaluate(
        self,
        recipe: MergeRecipe,
        progress: BatchProgress | None = None,
        *,
        worker: str = "local",
        keep_runs: bool = False,
        rivals: Sequence[Rival] = (),
        fusion: float | None = None,
    ) -> TrialResult:
        """Build the merge in place and score it on every collection.

        Args:
            recipe: the merge.
            progress: called after every batch.
            worker: noted in the result.
            keep_runs: keep the best documents per query.
            rivals: in an evaluator that races, the trials that this one has to beat, or it is stopped.
            fusion: of a re-ranker, its share in the sum with the first stage; by default what the study says.

        Raises:
            MergeError: the recipe's coefficients build no merge.
            EvaluationError: the merge's embeddings cannot be scored.
            MemoryFullError: memory ran out where nothing could be cut smaller.
        """
        options: dict[str, Any] = {} if self.spec.racing is None else {"rivals": rivals}
        if fusion is not None:
            options["fusion"] = fusion
        started = time.perf_counter()
        self.pipeline.use_prompts(recipe.prompts)
        _, failures = self._with_room("merging", lambda: self.merger.apply(recipe))
        merged = time.perf_counter() - started

        def score() -> tuple[TrialResult, Any]:
            keeper: Any = self.pipeline.new_keeper() if self._screener is not None else None
            with self._reusing(recipe):
                return self.pipeline.evaluate(progress, keep_runs=keep_runs, keeper=keeper, **options), keeper

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
        reuse = self.model.reuse
        made = (lambda: False) if reuse is None else partial(reuse.cache.give_way, keep=0.0)
        return with_room(work, doing, self.model.device, made)

    @property
    def _width(self) -> int:
        """Of hidden states, about."""
        width: int = self.model.transformer.config.get_text_config().hidden_size
        return width

    def _open_reuse(self) -> PrefixReuse | None:
        """What keeps hidden states between trials, in memory that is left now; None where it would not pay."""
        spec, device = self.spec, self.spec.evaluation.device
        if not spec.prefix.boundaries or spec.gpus > 1:
            return None
        host = free_memory("cpu") // spec.workers
        free = free_memory(device) if device.startswith("cuda") else host
        working = working_bytes(spec.evaluation.batch_tokens, self._width)
        tokens = self.pipeline.n_padded_tokens
        found = prefix_room(spec.prefix, device, tokens=tokens, room=free - working, host=host)
        logger.info("hidden states are kept at %s, %d + %d bytes", *found)
        if not found.boundaries:
            return None
        cache = PrefixCache(self.model.device, found.device, found.host)
        lowest = {name: lowest_layer(place) for place, names in self.merger.places.items() for name in names}
        return open_reuse(self.model, found.boundaries, cache, lowest)

    def _reusing(self, recipe: MergeRecipe) -> AbstractContextManager[None]:
        """Lets hidden states be kept and reused by what decides them in the recipe."""
        reuse = self.model.reuse
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

"""Scores of a model folder on retrieval tasks of MTEB: by MTEB's own code, in MTEB's own files.

The folder is what `SentenceTransformer(folder)` makes of it, prompts included; nothing here knows a study. So nothing
is recorded with one either: which splits a task reads is MTEB's word, and the files written here are the record.

Source: https://github.com/embeddings-benchmark/mteb; `mteb` is an extra and is imported on first use.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard

from mergesearch.errors import CollectionError, EvaluationError, Problem, unknown
from mergesearch.evaluation.loading import load
from mergesearch.evaluation.reranker_files import read_reranker_files
from mergesearch.results.evaluate import Table
from mergesearch.results.tested import FINAL_METRICS
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.encoding_files import encoding_files

BATCH_SIZE = 32
"""Texts per batch, MTEB's own default; it is part of what MTEB writes down."""


@dataclass(frozen=True)
class MtebScores:
    """One task on one split and one subset of its data; `scores` are MTEB's, by its names such as `ndcg_at_10`."""

    task: str
    split: str
    subset: str
    main_metric: str
    scores: Mapping[str, float]
    dataset: str
    dataset_revision: str
    file: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        numbers = {k: v for k, v in self.scores.items() if isinstance(v, int | float)}
        return {
            "task": self.task,
            "split": self.split,
            "subset": self.subset,
            "main_metric": self.main_metric,
            "scores": numbers,
            "file": str(self.file),
        }

    def for_card(self) -> EvalResult:
        """The main score as an entry of a card's model-index, from 0 to 1 as the study's own test scores there."""
        return EvalResult(
            task_type="Retrieval",
            dataset_type=self.dataset,
            dataset_name=f"MTEB {self.task}",
            dataset_config=self.subset,
            dataset_split=self.split,
            dataset_revision=self.dataset_revision,
            metric_type=self.main_metric,
            metric_value=round(float(self.scores[self.main_metric]), 5),
        )


@dataclass(frozen=True)
class MtebEvaluation:
    """A model on tasks of MTEB; `name` and `revision` are what its files lie under."""

    name: str
    revision: str
    scores: tuple[MtebScores, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"model": self.name, "revision": self.revision, "tasks": [s.to_dict() for s in self.scores]}

    def tables(self) -> list[Table]:
        """One table, a row per task, split and subset."""
        rows = []
        for s in self.scores:
            subset = "" if s.subset == "default" else f" ({s.subset})"
            values = (s.scores.get(metric.replace("@", "_at_")) for metric in FINAL_METRICS)
            rows.append((f"{s.task}{subset}", s.split, *("–" if v is None else f"{v:.4f}" for v in values)))
        return [(f"{self.name} on MTEB", ["task", "split", *FINAL_METRICS], rows)]


def evaluate_mteb(
    folder: Path, tasks: Sequence[Any], out: Path, *, name: str | None = None, progress: bool = False
) -> MtebEvaluation:
    """Score a model folder on retrieval tasks of MTEB.

    Results lie in `out` as MTEB keeps them: `results/NAME/REVISION/TASK.json`. The revision is a hash of the model's
    content, so a task that is there already is not run again, and another model's scores are never taken for these.

    Args:
        folder: a model folder with sentence-transformers files.
        tasks: names of tasks, or tasks themselves (`mteb.abstasks.AbsTaskRetrieval`).
        out: the folder for results, which may hold others.
        name: `ORGANISATION/MODEL` as it is or will be published; `local/FOLDER` without one.
        progress: whether MTEB shows its bars.

    Raises:
        EvaluationError: mteb is not installed, a task is unknown or not one of text retrieval, or the name is not such.
        SourceError: the folder holds no model.
        CollectionError: a task's data cannot be had.
    """
    name = name or f"local/{folder.resolve().name}"
    if len([part for part in name.split("/") if part]) != 2:
        raise EvaluationError(f"the name {name!r} is not ORGANISATION/MODEL, as MTEB and the hub want it")
    architecture = read_reranker_files(folder).architecture
    if architecture.endswith(("ForSequenceClassification", "ForConditionalGeneration")):
        raise EvaluationError(f"{folder} is a re-ranker ({architecture}); MTEB's retrieval tasks want an encoder")
    mteb = _import_mteb()
    with _quiet():
        chosen = [_find(mteb, task) if isinstance(task, str) else task for task in tasks]
    _check(chosen)
    cache = mteb.ResultCache(out)
    model = load(folder, torch.float32, "cuda" if torch.cuda.is_available() else "cpu", False)
    model.model_card_data.model_name = name
    scores: list[MtebScores] = []
    with _quiet(bars=progress):
        encoder = mteb.models.SentenceTransformerEncoderWrapper(model)
        meta = encoder.mteb_model_meta.model_copy(update={"name": name, "revision": _revision(folder)})
        encoder.mteb_model_meta = meta
        for task in chosen:
            with _reaching(task):
                result = mteb.evaluate(
                    encoder,
                    task,
                    cache=cache,
                    co2_tracker=False,
                    encode_kwargs={"batch_size": BATCH_SIZE, "show_progress_bar": progress},
                    show_progress_bar=progress,
                )
            file = cache.get_task_result_path(task.metadata.name, meta)
            scores += [s for found in result.task_results for s in _scores(task, found, file)]
    return MtebEvaluation(name, meta.revision, tuple(scores))


def add_to_card(folder: Path, evaluation: MtebEvaluation) -> Path:
    """Put the main scores into the model-index of the folder's README.md; those of the same data are replaced.

    Raises:
        EvaluationError: the folder has no card.
    """
    file = folder / "README.md"
    if not file.is_file():
        raise EvaluationError(f"{file} is not there: scores go into a model card, which an export has")
    card = ModelCard.load(file)
    new = [s.for_card() for s in evaluation.scores]
    kept = [r for r in card.data.eval_results or [] if not any(r.is_equal_except_value(n) for n in new)]
    card.data.eval_results = kept + new
    card.data.model_name = card.data.model_name or evaluation.name.partition("/")[2]
    card.save(file)
    return file


def _import_mteb() -> Any:
    try:
        return importlib.import_module("mteb")
    except ImportError as error:
        raise EvaluationError(
            f"tasks of MTEB need the package mteb ({error}); pip install 'mergesearch[mteb]'"
        ) from error


def _find(mteb: Any, name: str) -> Any:
    """The task of this name; `mteb.get_task` says which name is close, and only that."""
    try:
        return mteb.get_task(name)
    except KeyError as error:
        known = [t.metadata.name for t in mteb.get_tasks(task_types=["Retrieval"], modalities=["text"])]
        hint = unknown("task of MTEB", name, known).partition(" Known: ")[0]
        raise EvaluationError(f"{hint} `mteb available-tasks` lists them all.") from error


def _check(tasks: Sequence[Any]) -> None:
    """A model of ours has one embedding per text: tasks have to be retrieval of text by text."""
    for task in tasks:
        metadata = task.metadata
        if metadata.type != "Retrieval" or set(metadata.modalities) != {"text"}:
            raise EvaluationError(
                f"{metadata.name} is a task of {metadata.type} ({', '.join(metadata.modalities)}); "
                "only tasks of Retrieval (text) are scored here: for others call mteb itself on the folder"
            )


def _revision(folder: Path) -> str:
    """Of the weights and of every file that says how texts are encoded; as long as a commit of the hub."""
    content = [Checkpoint.open("model", folder).content_hash, encoding_files(folder)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:40]


def _scores(task: Any, result: Any, file: Path) -> Iterator[MtebScores]:
    data = task.metadata.dataset
    for split, subsets in result.scores.items():
        for scores in subsets:
            yield MtebScores(
                result.task_name,
                split,
                scores["hf_subset"],
                task.metadata.main_score,
                scores,
                data["path"],
                data["revision"],
                file,
            )


@contextmanager
def _reaching(task: Any) -> Iterator[None]:
    """Says what to do where a task's data cannot be had; whatever else goes wrong stays as it is."""
    from datasets.exceptions import DatasetsError  # mteb brings it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name = task.metadata.name
    try:
        yield
    except (ConnectionError, DatasetsError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = (
            f"the task's data set {task.metadata.dataset['path']!r} is read from the Hugging Face hub, which cannot be "
            f"reached or does not give it ({reason}). Where it can, run\n"
            f"    python -c \"import mteb; mteb.get_task('{name}').load_data()\"\n"
            "  and bring the cache that this fills here (~/.cache/huggingface, or set HF_HOME); tasks that were done "
            "are kept, and the same command goes on with the rest"
        )
        raise CollectionError([Problem(remedy, f"MTEB task {name}")]) from error


@contextmanager
def _quiet(*, bars: bool = False) -> Iterator[None]:
    """Inside: no warnings that mteb gives of calls it makes itself, and bars of datasets only where they are wanted."""
    from datasets.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not bars and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # mteb 2.26: from_sentence_transformer_model warns of the default of its own argument, and calls
            # sentence-transformers by a name that was changed.
            warnings.filterwarnings("ignore", "The fill_missing parameter is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", "The `get_sentence_embedding_dimension` method", FutureWarning)
            yield
    finally:
        if hide:
            enable_progress_bars()

"""Export: a merge, re-made from its recorded recipe, as a folder that other tools load.

The folder is written beside its destination under another name, read back, compared, re-scored, and only then
renamed: what stands under the wanted name is always whole and scores what was recorded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mergesearch.errors import ExportError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.loading import quiet_loading
from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import choose, scored_trials
from mergesearch.results.folder import RECIPE_FILE, check_destination, made_whole, writing
from mergesearch.results.licences import concerns
from mergesearch.results.mergekit.writing import CONFIG_FILE, Configuration, mergekit_config
from mergesearch.results.model_card import model_card
from mergesearch.results.model_files import prompt_names, save_model, states_encoding, template_files
from mergesearch.results.provenance import how_scored, licences_of, made_on, provenance_of, settings_of
from mergesearch.results.recorded import check_unchanged
from mergesearch.results.reranked import first_stages_of
from mergesearch.results.saved import EMBEDDING_TOLERANCE, check_libraries, open_saved, unusable_is_an_export_error
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.evaluator_spec import BatchProgress, CollectionSpec, EvaluatorSpec
from mergesearch.workers.opening import Model, build_pipeline, open_merger

__all__ = ["EMBEDDING_TOLERANCE", "RECIPE_FILE", "SCORE_TOLERANCE", "Exported", "check_room", "export_merge"]

SCORE_TOLERANCE = 0.0005
"""How far the re-scored dev metric may lie from the recorded one: other thread counts and devices round otherwise."""
OWN_FILES_BYTES = 1 << 20
"""Room for config.json, mergesearch.json and the card."""
_CHECKED_TEXTS = 4


@dataclass(frozen=True)
class Exported:
    """What was exported and how it scored, before and after; `warnings` are about licences."""

    folder: Path
    trial: int
    metric: str
    recorded: float
    rescored: float
    warnings: tuple[str, ...] = ()


def export_merge(
    study: Study,
    store: StudyStore,
    out: Path,
    *,
    trial: int | None = None,
    force: bool = False,
    progress: BatchProgress | None = None,
) -> Exported:
    """Save a trial's merge with the template's tokenizer and sentence-transformers files.

    Memory: sources and one model while it is written, then one model.

    Args:
        study: the resolved study.
        store: its records.
        out: the folder to make.
        trial: a trial's number; the chosen one by default.
        force: replace `out` when it is an earlier export, or empty.
        progress: called after every batch of the re-scoring.

    Raises:
        ExportError: the folder exists, the disk is full, or the saved files are not what was evaluated.
        NothingScoredError: no trial has a score yet.
        ResumeError: sources or settings are not those of the recorded study.
    """
    check_destination(out, force=force, needed=[*study.folders.values(), *study.adapters.values()])
    check_unchanged(study, store)
    recorded = None if trial is None else _recorded(store, trial)
    choice = choose(study, store)
    number = choice.number if trial is None else trial
    recorded = recorded or _recorded(store, number)
    recipe = store.recipe(number)
    template = study.folders[recipe.template]
    spec = study.evaluator_spec()
    torch.set_num_threads(spec.threads)
    merged, merger = open_merger(spec)
    merger.apply(recipe)
    fingerprint = merger.fingerprint()
    del merger  # the sources are needed no more
    with made_whole(out, force=force) as partial:
        overridden = save_merged(merged, template, partial, out, recipe)
        del merged
        with unusable_is_an_export_error():
            saved = replace(spec, collections=_with_saved_prompts(spec, recipe))
            rescored, model = _check_saved(partial, saved, fingerprint, recorded, progress)
        provenance = provenance_of(study, store, number, recipe, recorded, rescored, choice)
        provenance |= how_scored(model, study, recipe, overridden=overridden)
        if recorded.fusion is not None:
            provenance["fusion"] = {"share": recorded.fusion, **first_stages_of(study)}
        provenance |= {"settings": settings_of(spec), "weights": fingerprint, "made_on": made_on(spec)}
        said = mergekit_config(recipe, study.layout, study.checkpoints, {**study.folders, **study.adapters})
        with writing(out):
            write_own_files(partial, provenance, said)
    warnings = tuple(concerns(licences_of(provenance)))
    return Exported(out, number, study.metric, recorded.value, rescored.value, warnings)


def save_merged(model: Model, template: Path, partial: Path, out: Path, recipe: MergeRecipe) -> bool:
    """Write a merged model; whether its folder has to say otherwise than the template's how texts become vectors.

    Args:
        model: in memory.
        template: where its other files are taken from.
        partial: the folder to write.
        out: what it is to be called, for people.
        recipe: whose prompts the folder is to have.

    Raises:
        ExportError: the disk is full, or cannot be written.
    """
    check_room(partial, size_of(model, template))
    with writing(out), quiet_loading():
        save_model(model, template, partial, prompt_names(recipe.prompts))
    return not states_encoding(model, template)


def write_own_files(folder: Path, provenance: Mapping[str, Any], said: Configuration) -> None:
    """Recipe, card and, where there is one, mergekit's configuration: the last files of an export."""
    provenance = {**provenance, "mergekit": said.to_dict()}
    if said.text:
        (folder / CONFIG_FILE).write_text(said.text, encoding="utf-8")
    (folder / "README.md").write_text(model_card(provenance), encoding="utf-8")
    (folder / RECIPE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def check_room(folder: Path, n_bytes: int) -> None:
    """Refuse an export that the disk cannot hold, before anything is written.

    Raises:
        ExportError: naming what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise ExportError(
            f"the export needs {n_bytes / 2**20:,.1f} MiB in {folder.parent}, {free / 2**20:,.1f} MiB are free"
        )


def size_of(model: Model, template: Path) -> int:
    """Bytes of the folder to be written."""
    weights: int = sum(p.nbytes for p in model.transformer.parameters())
    copied = sum((template / f).stat().st_size for f in template_files(template, modules=True))
    return weights + copied + OWN_FILES_BYTES


def _recorded(store: StudyStore, number: int) -> TrialResult:
    """The recorded scores of a trial, which may be those of an earlier trial with the same recipe."""
    result = None
    if any(t.number == number and t.state.name == "COMPLETE" and "recipe" in t.user_attrs for t in store.trials()):
        result = store.result(number)
    if result is None:
        scored = ", ".join(str(t.number) for t in scored_trials(store)[:20]) or "none"
        raise ExportError(f"trial {number} has no score; trials with scores (see `mergesearch status`): {scored}")
    return result


def _with_saved_prompts(spec: EvaluatorSpec, recipe: MergeRecipe) -> tuple[CollectionSpec, ...]:
    """The collections with a recipe's prompts; those that the saved files are to put before texts are left to them."""
    names, found = prompt_names(recipe.prompts), []
    for c in spec.collections:
        prompts = {**c.prompts, **recipe.prompts.get(c.name, {})}
        found.append(replace(c, choices={}, prompts={k: None if k in names else p for k, p in prompts.items()}))
    return tuple(found)


def _check_saved(
    folder: Path, spec: EvaluatorSpec, fingerprint: str, recorded: TrialResult, progress: BatchProgress | None
) -> tuple[TrialResult, Model]:
    """Load the saved files afresh: the same weights to the bit, the recorded dev score, the same in both libraries.

    Returns:
        Dev scores of the saved files, and what they were loaded as.
    """
    model = open_saved(folder, spec, fingerprint)
    pipeline = build_pipeline(model, spec.collections, spec.evaluation)
    scores = pipeline.evaluate(progress)
    if not abs(scores.value - recorded.value) <= SCORE_TOLERANCE:
        raise ExportError(
            f"the saved files score {scores.value:.4f} on the dev split, recorded is {recorded.value:.4f}: more than "
            f"{SCORE_TOLERANCE} apart. Nothing was exported; are device and libraries those of the study?"
        )
    texts = _some_texts([prepared.source.collection for prepared in pipeline.collections])
    check_libraries(folder, model, texts, trust_remote_code=spec.template in spec.trusted)
    return scores, model


def _some_texts(collections: Sequence[Collection]) -> list[list[str]]:
    """A few texts of every collection."""
    found = []
    for collection in collections:
        texts = [*collection.query_texts[:_CHECKED_TEXTS], *collection.doc_texts]
        found.append([t for t in texts if t][: 2 * _CHECKED_TEXTS])
    return found

"""Saving a merge that nothing is scored with: loaded afresh, compared to the bit, and described by its own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from mergesearch.recipe import MergeRecipe
from mergesearch.results.export import save_merged, write_own_files
from mergesearch.results.folder import made_whole, writing
from mergesearch.results.mergekit.writing import mergekit_config
from mergesearch.results.provenance import how_used, made_on, now, settings_of
from mergesearch.results.provenance import sources_of as describe_sources
from mergesearch.results.saved import check_libraries, open_saved, unusable_is_an_export_error
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.layout import read_layout
from mergesearch.versions import versions
from mergesearch.workers.evaluator_spec import EvaluatorSpec
from mergesearch.workers.opening import open_merger

_TEXTS = [["graph search", "the protein diet of a patient with cancer", "merge", "How do vitamins work?"]]
"""What the saved model is tried on: any text does."""


def save_unscored(
    recipe: MergeRecipe,
    spec: EvaluatorSpec,
    checkpoints: Mapping[str, Checkpoint],
    out: Path,
    *,
    force: bool,
    told: Callable[[dict[str, Any]], dict[str, Any]] = lambda made: made,
    check: Callable[[str], None] = lambda fingerprint: None,  # noqa: ARG005 - the name documents
    describing: AbstractContextManager[None] | None = None,
) -> dict[str, Any]:
    """Merge and write the folder of an export, but for scores.

    Args:
        recipe: what to merge.
        spec: where its sources lie and how the model encodes; no collection is read.
        checkpoints: the sources, opened.
        out: the folder to make.
        force: replace `out` when it is an earlier export, or empty.
        told: from what is known of this merge to what mergesearch.json shall hold.
        check: called with the fingerprint of the weights before anything is written; may refuse it.
        describing: entered while the card is written.

    Returns:
        What mergesearch.json holds.

    Raises:
        ExportError: sources cannot be merged, or `out` cannot be made.
    """
    template = spec.folders[recipe.template]
    trusted = recipe.template in spec.trusted
    torch.set_num_threads(spec.threads)
    with unusable_is_an_export_error("the sources"):
        merged, merger = open_merger(spec)
        merger.apply(recipe)
    fingerprint = merger.fingerprint()
    del merger  # the sources are needed no more
    check(fingerprint)
    with made_whole(out, force=force) as partial:
        overridden = save_merged(merged, template, partial, out, recipe)
        del merged
        with unusable_is_an_export_error():
            model = open_saved(partial, spec, fingerprint)
            check_libraries(partial, model, _TEXTS, trust_remote_code=trusted)
        located = {**spec.folders, **spec.adapters}
        made = told(
            {
                "sources": describe_sources(recipe, located, spec.folders),
                **how_used(model, overridden=overridden),
                "settings": settings_of(spec),
                "weights": fingerprint,
                "made_on": made_on(spec),
                "versions": {"export": versions()},
                "exported_at": now(),
            }
        )
        layout = read_layout(template, head=spec.head, trust_remote_code=trusted)
        configuration = mergekit_config(recipe, layout, checkpoints, located)
        with writing(out), describing or nullcontext():
            write_own_files(partial, made, configuration)
    return made

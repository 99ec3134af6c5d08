"""What mergesearch.json of an export holds: the recipe, where everything came from, and what it scored.

The card is written from it alone, and `mergesearch merge` makes the model again from it alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mergesearch.evaluation.encoder import Encoder
from mergesearch.evaluation.result import TrialResult
from mergesearch.evaluation_schema import CollectionEntry
from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import Choice
from mergesearch.results.evaluate import CHOSEN, HIGHEST
from mergesearch.results.licences import Licence, read_licence
from mergesearch.results.readings import COMMAND
from mergesearch.sources.locate import hub_id
from mergesearch.storage import Reading, redact
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.versions import versions
from mergesearch.workers.evaluator_spec import EvaluatorSpec
from mergesearch.workers.opening import Model

FORMAT = 1
SETTINGS = ("pooling", "normalize", "similarity", "append_eos", "max_query_length", "max_document_length")
"""What a study may say of encoding beside the template's files; names of `EvaluationSettings`."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def provenance_of(
    study: Study,
    store: StudyStore,
    number: int,
    recipe: MergeRecipe,
    recorded: TrialResult,
    rescored: TrialResult,
    choice: Choice,
) -> dict[str, Any]:
    """What is known of a trial's merge, as plain JSON types; `MergeRecipe.from_dict` reads `recipe` back."""
    # Of several readings of one test split the latest is told.
    readings = {
        (r.split, r.scores.collection, r.scores.metric): r
        for r in store.test_readings()
        if r.fingerprint == recipe.fingerprint and not _searched_on(study, r)
    }
    pseudo, pseudo_test = (
        {c.name for c in study.collection_specs(test=test) if c.pseudo_queries} for test in (False, True)
    )
    pooled = {c.name for c in study.parsed.content.evaluation.collections if c.pool is not None}
    datasets = {c.name: _hub_dataset(c, study.parsed.folder) for c in study.parsed.content.evaluation.collections}
    return {
        "format": FORMAT,
        "study": study.name,
        "study_file": redact(study.parsed.text),
        "trial": number,
        "fingerprint": recipe.fingerprint,
        "recipe": recipe.to_dict(),
        "sources": sources_of(recipe, {**study.folders, **study.adapters}, study.folders),
        "dev": {
            "note": "selection scores: the coefficients were chosen on these queries",
            "value": recorded.value,
            "rescored": rescored.value,
            **_luck(number, choice),
            "collections": {
                c.collection: {
                    "metric": c.metric,
                    "score": c.mean,
                    "rescored": again.mean,
                    "queries": len(c.query_ids),
                    "weight": c.weight,
                    "pool": c.collection in pooled,
                    "pseudo_queries": c.collection in pseudo,
                }
                for c, again in zip(recorded.collections, rescored.collections, strict=True)
            },
        },
        "test": [
            {
                "split": r.split,
                "collection": r.scores.collection,
                "dataset": datasets.get(r.scores.collection),
                "metric": r.scores.metric,
                "score": r.scores.mean,
                "queries": len(r.scores.query_ids),
                "pseudo_queries": r.scores.collection in pseudo_test,
                "at": r.at.isoformat(),
                "others": _others(r, store.test_readings()),
            }
            for r in readings.values()
        ],
        "versions": {"study": dict(store.record.versions), "export": versions()},
        "exported_at": now(),
    }


def _others(mine: Reading, readings: Sequence[Reading]) -> dict[str, float]:
    """Mean scores of every source alone and the uniform average on the same test queries, the newest of each."""
    return {
        r.subject: r.scores.mean
        for r in readings
        if (r.command, r.split, r.scores.collection, r.scores.metric)
        == (COMMAND, mine.split, mine.scores.collection, mine.scores.metric)
        and r.scores.query_ids == mine.scores.query_ids
        and r.fingerprint != mine.fingerprint
        and not r.subject.startswith((CHOSEN, HIGHEST))  # other merges of the study
    }


def sources_of(
    recipe: MergeRecipe, located: Mapping[str, Path], folders: Mapping[str, Path]
) -> dict[str, dict[str, Any]]:
    """By source: its name on the hub and its licence, where they are known, and an adapter's base.

    Args:
        recipe: names the sources.
        located: source to the folder of the model or adapter that it names.
        folders: source to the folder of its whole model: an adapter's base.
    """
    found = {}
    for ref in recipe.sources:
        here = located[ref.name]
        licence = read_licence(here)
        found[ref.name] = {
            "hub": hub_id(here),
            "licence": licence.to_dict() if licence else None,
        }
        if folders[ref.name] != here:
            base = next((s for s, f in located.items() if f == folders[ref.name]), None)
            base_licence = read_licence(folders[ref.name])
            found[ref.name]["base"] = {
                "source": base,
                "hub": hub_id(folders[ref.name]),
                "licence": base_licence.to_dict() if base_licence else None,
            }
    return found


def licences_of(provenance: Mapping[str, Any]) -> dict[str, Licence | None]:
    """Of every source, and of the bases of adapters."""
    found = {}
    for name, source in provenance["sources"].items():
        found[name] = Licence(**source["licence"]) if source["licence"] else None
        base = source.get("base")
        if base and base["source"] is None:
            found[f"the base of {name}"] = Licence(**base["licence"]) if base["licence"] else None
    return found


def how_scored(model: Model, study: Study, recipe: MergeRecipe, *, overridden: bool) -> dict[str, Any]:
    """How texts were encoded, or pairs scored, and whether that is not what the template's files say."""
    if not isinstance(model, Encoder):
        return how_used(model, overridden=overridden)
    lengths = study.parsed.content.evaluation.max_length
    given: dict[str, dict[str, str]] = {}
    if not recipe.prompts:  # else the model's files hold them
        given = {c.name: {k: p for k, p in c.prompts.items() if p is not None} for c in study.collection_specs()}
    settings = how_used(model, overridden=overridden)["encoding"]
    cut = {"query": lengths.query, "document": lengths.document}
    encoding = {
        **settings,
        "scored_length": {kind: n or settings["max_length"][kind] for kind, n in cut.items()},
        "given_prompts": {name: prompts for name, prompts in given.items() if prompts},
    }
    return {"encoding": encoding}


def how_used(model: Model, *, overridden: bool) -> dict[str, Any]:
    """How a model that nothing was scored with encodes, or scores pairs."""
    settings = asdict(model.describe())
    if not isinstance(model, Encoder):
        return {"reranking": settings}
    encoding = {
        **settings,
        "differs_from_template": overridden,
        "scored_length": settings["max_length"],
        "given_prompts": {},
    }
    return {"encoding": encoding}


def settings_of(spec: EvaluatorSpec) -> dict[str, Any]:
    """What the study said of encoding, None where it left it to the template's files."""
    rerank = spec.evaluation.rerank
    said = {} if rerank is None else {"rerank": asdict(rerank)}
    return {name: getattr(spec.evaluation, name) for name in SETTINGS} | said


def made_on(spec: EvaluatorSpec) -> dict[str, Any]:
    """What weights may depend on in their last bits."""
    return {"device": spec.evaluation.device, "threads": spec.threads}


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _searched_on(study: Study, reading: Reading) -> bool:
    """Whether dev queries are among those of a reading, as where the dev split was read by its own name.

    Ids tell, as both splits are read from one place; where the test split is read from another they say nothing.
    """
    elsewhere = {c.name for c in study.parsed.content.evaluation.collections if c.test}
    name = reading.scores.collection
    return name not in elsewhere and any(
        c.name == name and not set(c.query_ids).isdisjoint(reading.scores.query_ids) for c in study.collections
    )


def _hub_dataset(collection: CollectionEntry, relative_to: Path) -> str | None:
    """The hub's name of a collection's data set, where it is one."""
    named = str(collection.options.get("dataset", "")) if collection.format == "huggingface" else ""
    return named if _HUB_ID.fullmatch(named) and not (relative_to / named).exists() else None


def _luck(number: int, choice: Choice) -> dict[str, Any]:
    """What is known of the luck in a trial's dev score; of a trial that someone named, nothing."""
    if number == choice.number:
        return {"optimism": choice.optimism, "expected": choice.expected, "verdict": choice.reason()}
    if number == choice.best_number:
        optimism = choice.best_optimism
        return {"optimism": optimism, "expected": choice.best_value - optimism, "verdict": choice.reason()}
    return {"optimism": None, "expected": None, "verdict": None}

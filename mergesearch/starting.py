"""A study that starts from another one: the other's merges as trials of this one, unevaluated, or as its first points.

A merge is the same however its places are divided into groups, so what was scored with two segments is known to a
study with four. It comes over where it is a point of this study's space (or one of its anchors) and gives the same
weights at every place, see `MergeRecipe.prefix_key`.

Each trial is added in one transaction under a logical id that its recipe decides, and a note of the whole is written
when all are there. So a process may be killed in between, and several may do it at once: the next one adds what is
missing, and after the note nobody looks at the other study again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mergesearch.anchors import LABEL_CHARACTERS, anchor_attrs
from mergesearch.errors import Problem
from mergesearch.evaluation.result import IMPORTED_ATTR, TrialResult
from mergesearch.judging import Judge
from mergesearch.recipe import MergeRecipe
from mergesearch.search.points import Params
from mergesearch.search.strategy import PROPOSAL_ATTR, proposal_attrs
from mergesearch.storage.engine import redact_urls
from mergesearch.storage.reader import StudyReader
from mergesearch.storage.record import score_differences
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.study_prompts import searched_prompts
from mergesearch.study_recipes import Anchor, Coefficients

BEST_AGAIN = 10
"""Merges that are evaluated again where the study file does not say how many."""
OUTSIDE = "outside of this study's space"
DIVIDED = "with several coefficients in one group of this study"
OTHERWISE = "with other weights where this study searches nothing"
HERE = "evaluated here before"
_UNSCORED = {TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed", TrialState.RUNNING: "not ended"}
_NO_QUERIES = "without scores per query"


@dataclass(frozen=True)
class Brought:
    """What came over from another study.

    Attributes:
        study: its name.
        taken: how many of its merges are trials of this study, or points that are evaluated again.
        left: how many are not, by the reason.
        again: they are evaluated again.
    """

    study: str
    taken: int
    left: Mapping[str, int]
    again: bool = False

    def describe(self) -> str:
        """One line for people."""
        of = self.taken + sum(self.left.values())
        how = "to be evaluated again" if self.again else "with their scores"
        why = ", ".join(f"{n} {reason}" for reason, n in self.left.items() if n)
        share = f"{self.taken} of its {of} merges" if why else f"all {of} merges"
        return f"start from {self.study}: {share}, {how}" + (f"; without {why}" if why else "")


@dataclass(frozen=True)
class KnownMerge:
    """A merge that another study scored, as this one has it.

    Attributes:
        number: of its trial there.
        recipe: divided into this study's groups.
        params: its point in this study's space; empty for an anchor outside of it.
        attrs: of its trial here.
        result: what its trial brought back there.
        anchor: this study enqueues it.
    """

    number: int
    recipe: MergeRecipe
    params: Params
    attrs: Mapping[str, Any]
    result: TrialResult
    anchor: bool


@contextmanager
def opened(study: Study, store: StudyStore) -> Iterator[StudyReader | None]:
    """The study that this one starts from, for reading; None where there is none, or all came over before.

    Raises:
        StudyFileError: scores of the two cannot be compared, with every difference; or nothing is scored there.
        StorageError: no such study, or no access.
    """
    entry = study.parsed.content.search.start_from
    if entry is None or store.start_noted(entry.study) is not None:
        yield None
        return
    with store.beside(entry.study, entry.storage) as other:
        if entry.scores == "recorded" and (found := differences(study, other)):
            lines = "\n".join(f"    {path}: {there} → {here}" for path, (there, here) in found.items())
            message = (
                f"scores of study {entry.study!r} cannot be compared with those of this one (there → here):\n{lines}\n"
                "    Make them agree, or have its best merges evaluated here: `scores: again`"
            )
            raise study.parsed.problems([Problem(message, study.parsed.where("search", "start_from"))])
        yield other


def bring_losses(study: Study, store: StudyStore, other: StudyReader) -> None:
    """Take over the losses that another study measured of equal sources on equal examples."""
    if study.examples is None or other.record.score_relevant["merge"].get("measured") is None:
        return
    examples = study.examples.fingerprint
    known = other.losses(examples)
    for source in study.sources_to_measure:
        content = study.content_hash(source)
        if content in known:
            store.record_loss(source, content, examples, known[content])


def bring(study: Study, store: StudyStore, other: StudyReader) -> Brought:
    """Take over what another study scored; to be repeated until it returns.

    Raises:
        StudyFileError: nothing is scored there yet, or not what guards are measured against.
    """
    merges, brought = offered(study, other)
    if not brought.taken and not set(brought.left) - set(_UNSCORED.values()):
        message = f"study {brought.study!r} has no scored merge yet: run it first"
        raise study.parsed.problems([Problem(message, study.parsed.where("search", "start_from"))])
    if not brought.again:
        judge = Judge(study, store)
        merges.sort(key=lambda merge: not judge.is_template(merge.recipe.fingerprint))  # guards are measured against it
        if not judge.ready and not any(judge.is_template(merge.recipe.fingerprint) for merge in merges[:1]):
            message = (
                f"study {brought.study!r} has not scored {study.objectives.template} alone, which `may_lose` is "
                "measured against: have that evaluated there (`search: {enqueue: [sources]}`), or its best merges here "
                "(`scores: again`)"
            )
            raise study.parsed.problems([Problem(message, study.parsed.where("search", "start_from"))])
        here = sum(not _add(study, store, merge, judge, brought.study) for merge in merges)
        brought = replace(brought, taken=brought.taken - here, left={**brought.left, HERE: here})
    points = [merge.params for merge in merges] if brought.again else []
    told = {"search.start_from": ["", brought.describe()]}
    store.note_start(brought.study, {"changed": told, "points": points})
    return brought


def offered(study: Study, other: StudyReader) -> tuple[list[KnownMerge], Brought]:
    """What another study has for this one, before anything is taken over.

    Returns:
        The merges, in number order, or the best first where they are to be evaluated again; and what is to be said.
    """
    entry = study.parsed.content.search.start_from
    assert entry is not None
    again = entry.scores == "again"
    known, left = known_merges(study, other)
    ranked = [merge for merge in highest(study, known) if not merge.anchor]
    most = entry.best or (BEST_AGAIN if again else len(ranked))
    kept = ranked[:most]
    if len(ranked) > most:
        left[f"among the best {most}"] = len(ranked) - most
    # What is enqueued here is evaluated here in any case, unless its score comes over.
    merges = kept if again else [merge for merge in known if merge.anchor or merge in kept]
    return merges, Brought(entry.study, len(merges), left, again)


def with_inherited(study: Study, store: StudyStore) -> Study:
    """The study with the points of another one that are to be evaluated again."""
    entry = study.parsed.content.search.start_from
    noted = None if entry is None else store.start_noted(entry.study)
    return study if noted is None else replace(study, inherited=tuple(noted["points"]))


def differences(study: Study, other: StudyReader) -> dict[str, tuple[str, str]]:
    """What could change a score and is not the same in two studies: entry to (there, here).

    Groups and ranges may differ, and so may objectives and guards, which scores are only judged by.
    """
    there, here = map(_scoring, (other.record.score_relevant, redact_urls(study.score_relevant())))
    return score_differences(there, here, study.score_defaults())


def _scoring(relevant: Mapping[str, Any]) -> dict[str, Any]:
    merge = {k: v for k, v in relevant["merge"].items() if k not in ("groups", "space")}
    collections = {
        name: {k: v for k, v in entry.items() if k not in ("objective", "may_lose")}
        for name, entry in relevant["evaluation"]["collections"].items()
    }
    return {**relevant, "merge": merge, "evaluation": {**relevant["evaluation"], "collections": collections}}


def known_merges(study: Study, other: StudyReader) -> tuple[list[KnownMerge], Counter[str]]:
    """The merges that another study scored as far as this one has them, in number order, and why it lacks others.

    Each merge once. Where this study is to evaluate them again its other weights may differ.
    """
    entry = study.parsed.content.search.start_from
    exact = entry is None or entry.scores == "recorded"
    anchors = {_key(study, study.anchored(a)): a for a in study.anchors()}
    scored = other.scored()
    seen: set[str] = set()
    found: list[KnownMerge] = []
    left: Counter[str] = Counter()
    for trial in other.trials():
        if trial.state != TrialState.COMPLETE or trial.number not in scored:
            left[_UNSCORED.get(trial.state, _NO_QUERIES)] += 1
            continue
        recipe, result = scored[trial.number]
        if recipe.fingerprint in seen:
            continue
        seen.add(recipe.fingerprint)
        here = _here(study, recipe, anchors, exact=exact)
        if isinstance(here, str):
            left[here] += 1
            continue
        mine, params, anchor = here
        attrs = {"label": study.space.label(params)[:LABEL_CHARACTERS], **_proposed(trial)}
        if anchor is not None:
            attrs = anchor_attrs(anchor, mine)
        found.append(KnownMerge(trial.number, mine, params, attrs, result, anchor=anchor is not None))
    return found, left


def highest(study: Study, merges: list[KnownMerge]) -> list[KnownMerge]:
    """Merges by the scores that they had, the best first; what this study's guards would set aside comes last."""
    measure = "" if study.measure is None else study.measure.fingerprint
    template = next((m.result.collections for m in merges if m.recipe.fingerprint == measure), ())
    there = {c.collection for c in template}
    allowances = {name: allowed for name, allowed in study.objectives.allowances.items() if name in there}
    guards = replace(study.objectives, allowances=allowances)

    def lost(merge: KnownMerge) -> bool:
        return any(lost > 0 for lost in guards.excess(merge.result.collections, template).values())

    return sorted(merges, key=lambda m: (lost(m), -m.result.value, m.number))


def _add(study: Study, store: StudyStore, merge: KnownMerge, judge: Judge, name: str) -> bool:
    """Make a merge a trial; False where it was evaluated here before."""
    equal = [t for t in store.trials() if t.user_attrs.get("recipe") == merge.recipe.fingerprint]
    if any(t.state == TrialState.COMPLETE for t in equal):
        return any(IMPORTED_ATTR in t.user_attrs for t in equal)
    distributions = {k: v for k, v in study.space.distributions().items() if k in merge.params}
    store.add_scored(
        merge.params,
        distributions,
        recipe=merge.recipe,
        attrs={**merge.attrs, IMPORTED_ATTR: f"trial {merge.number} of {name}"},
        logical_id=f"from:{merge.recipe.fingerprint}",
        result=replace(merge.result, seconds={}, tokens=0, layer_tokens=0, worker="imported", notes=()),
        judged=judge.of(merge.recipe.fingerprint, merge.result),
    )
    return True


def _here(
    study: Study, recipe: MergeRecipe, anchors: Mapping[str, Anchor], *, exact: bool
) -> tuple[MergeRecipe, Params, Anchor | None] | str:
    """A recipe divided into this study's groups, its point, and the anchor that it is; or why this study lacks it."""
    key = _key(study, recipe)
    if key not in anchors:
        coefficients = _regrouped(study, recipe)
        located = None if coefficients is None else study.space.locate(coefficients)
        picked = _picked(study, recipe)
        if located is None or picked is None:
            return DIVIDED if coefficients is None else OUTSIDE
        found = {**located, **picked}
        # Solving for a point costs its last digits; strategies propose points that have none there.
        points = (study.space.snap(found), found)
        params = next((p for p in points if _key(study, study.recipe(p)) == key), None if exact else points[0])
        if params is None:
            return OTHERWISE
        mine = study.recipe(params)
        if (key := _key(study, mine)) not in anchors:
            return mine, params, None
    anchor = anchors[key]
    return study.anchored(anchor), dict(anchor.params or {}), anchor


def _key(study: Study, recipe: MergeRecipe) -> str:
    """Equal for recipes with equal weights at every place, behind equal prompts."""
    prompts = json.dumps(recipe.prompts, sort_keys=True, default=dict)
    return f"{recipe.prefix_key(frozenset(study.layout.places))} {prompts}"


def _picked(study: Study, recipe: MergeRecipe) -> Params | None:
    """Which of this study's prompts a recipe is used with; None where it is another one."""
    found: Params = {}
    for collection, dimensions in searched_prompts(study.parsed.content.evaluation).items():
        for kind, dimension in dimensions.items():
            text = recipe.prompts.get(collection, {}).get(kind, dimension.names[0])
            if text not in dimension.names:
                return None
            found[dimension.name] = float(dimension.names.index(text))
    return found


def _regrouped(study: Study, recipe: MergeRecipe) -> Coefficients | None:
    """The coefficients of this study's groups in a recipe; None where the places of a group do not agree."""
    of_place = {place: group for group in recipe.groups for place in group.places}
    found = {}
    for group in study.groups:
        if not group.merged:
            continue
        theirs = [of_place.get(place) for place in group.places]
        first = theirs[0]
        if first is None or any(
            t is None or t.copy_from is not None or t.coefficients != first.coefficients for t in theirs
        ):
            return None
        found[group.name] = {k: v for k, v in first.coefficients.items() if k not in study.method.measured}
    return found


def _proposed(trial: FrozenTrial) -> dict[str, Any]:
    """What of a trial's attributes still holds in another study: who proposed it, and the luck of its being picked."""
    found: dict[str, Any] = {k: trial.user_attrs[k] for k in ("optimism",) if k in trial.user_attrs}
    strategy = proposal_attrs(trial).get("strategy")
    return found if strategy is None else {**found, PROPOSAL_ATTR: {"strategy": strategy}}

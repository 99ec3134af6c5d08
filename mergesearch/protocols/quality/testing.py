"""The one reading of a collection's test split: what was chosen, the sources and the uniform average, once each.

What is read is written down before (`choices.json`), and refused when it is no longer what searches and protocol say.
Scores of a model are kept as soon as they are there, and no model is ever scored twice: equal weights are one model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.result import CollectionScores
from mergesearch.protocols.quality.schema import RETRIEVER, Protocol
from mergesearch.protocols.quality.searching import Planned
from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import choose
from mergesearch.workers.evaluator import TrialEvaluator

COMMAND = "protocol quality"
"""What readings of the test split are recorded under, with the study that a model is of."""
UNIFORM = "uniform average"


@dataclass(frozen=True)
class Candidate:
    """A model that test is read for.

    Attributes:
        row: of the table.
        seed: of its search; None for what is not searched.
        subject: what it is, in words.
        of: the study that its recipe belongs to.
        recipe: how it is built.
        dev: its score on the dev sample; None where the study never scored it.
        choice: `Choice.to_dict()` of the study; None for what is not searched.
    """

    row: str
    seed: int | None
    subject: str
    of: Planned
    recipe: MergeRecipe
    dev: float | None
    choice: dict[str, Any] | None


def candidates(planned: list[Planned], uniform: Collection[str]) -> list[Candidate]:
    """Every source alone, the uniform averages with some domain models, and what each search chose, in this order.

    Raises:
        NothingScoredError: a search has no scored trial.
    """
    first: dict[str, Planned] = {}
    for plan in planned:
        first.setdefault(plan.domain, plan)
    fixed: dict[str, Candidate] = {}
    for domain, plan in first.items():
        recipes = {f"{name} alone": plan.study.source_alone(name) for name in (RETRIEVER, domain)}
        if domain in uniform:
            even = plan.study.uniform_average()
            assert even is not None  # weighted averages have one
            recipes[f"{UNIFORM} with {domain}"] = plan.study.recipe_of(even)
        with plan.open() as store:
            for row, recipe in recipes.items():
                known = store.value_of(recipe.fingerprint)
                dev = None if known is None else known[1].value
                fixed.setdefault(row, Candidate(row, None, row, plan, recipe, dev, None))
    order = {f"{RETRIEVER} alone": 0, **{f"{domain} alone": 1 for domain in first}}
    found = sorted(fixed.values(), key=lambda c: order.get(c.row, 2))
    for plan in planned:
        with plan.open() as store:
            choice = choose(plan.study, store)
            recipe = store.recipe(choice.number)
        subject = f"chosen (trial {choice.number})"
        found.append(Candidate(plan.row, plan.seed, subject, plan, recipe, choice.value, choice.to_dict()))
    return found


def fix_choices(protocol: Protocol, collection: str, found: list[Candidate]) -> None:
    """Write down what test will be read for; refuse another list than the one that was written before.

    Raises:
        EvaluationError: the test split was, or was going to be, read for other models or by another protocol.
    """
    file = protocol.work / collection / "choices.json"
    now = {
        "protocol_sha256": protocol.sha256,
        "models": [{"row": c.row, "seed": c.seed, "recipe": c.recipe.fingerprint} for c in found],
    }
    if not file.is_file():
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        draft.rename(file)
    elif json.loads(file.read_text(encoding="utf-8")) != now:
        raise EvaluationError(
            f"{file} says that the test split of {collection} was read for other models, or by another protocol than "
            f"{protocol.path.name} is now; restore it, or give the new one another `work` folder"
        )


def read_test(
    protocol: Protocol, collection: str, found: list[Candidate], tell: Callable[[str], None] = lambda _: None
) -> list[CollectionScores]:
    """Test scores per query of every candidate, in their order; what was read before is not read again.

    Args:
        protocol: what is asked for.
        collection: whose test split.
        found: of `candidates`, and fixed by `fix_choices`.
        tell: called with a line for every model that is scored.

    Raises:
        ResumeError: a study is not the recorded one.
        EvaluationError: see `fix_choices`.
    """
    fix_choices(protocol, collection, found)
    folder = protocol.work / collection / "test"
    folder.mkdir(exist_ok=True)
    names: dict[int, str] = {}
    for domain in dict.fromkeys(c.of.domain for c in found):
        mine = [(i, c) for i, c in enumerate(found) if c.of.domain == domain]
        names.update(_read(folder, mine, tell))
    return [_load(folder / f"{names[i]}.json") for i in range(len(found))]


def _read(folder: Path, mine: list[tuple[int, Candidate]], tell: Callable[[str], None]) -> dict[int, str]:
    """Score the candidates of one domain model; returns names of weights, which are names of files."""
    known = folder / f"{mine[0][1].of.domain}.names.json"
    names = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    if missing := [(i, c) for i, c in mine if c.recipe.fingerprint not in names]:
        study = missing[0][1].of.study
        spec = study.unmerged_spec()
        evaluator = TrialEvaluator(replace(spec, collections=study.collection_specs(test=True)))
        for _, candidate in missing:
            evaluator.merger.apply(candidate.recipe)
            weights = evaluator.merger.fingerprint()
            file = folder / f"{weights}.json"
            if not file.is_file():
                (scores,) = evaluator.evaluate(candidate.recipe).collections
                _save(scores, file)
                tell(f"test: {candidate.row}, {candidate.subject}: {scores.mean:.4f}")
            with candidate.of.open() as store:
                store.record_test_reading(
                    [_load(file)],
                    subject=candidate.subject,
                    split="test",
                    command=COMMAND,
                    fingerprint=candidate.recipe.fingerprint,
                )
            names[candidate.recipe.fingerprint] = weights
            draft = known.with_suffix(".draft")
            draft.write_text(json.dumps(names), encoding="utf-8")
            draft.rename(known)
    return {i: names[c.recipe.fingerprint] for i, c in mine}


def _save(scores: CollectionScores, file: Path) -> None:
    plain = {
        "collection": scores.collection,
        "metric": scores.metric,
        "query_ids": list(scores.query_ids),
        "scores": scores.scores.tolist(),
    }
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(plain), encoding="utf-8")
    draft.rename(file)


def _load(file: Path) -> CollectionScores:
    plain = json.loads(file.read_text(encoding="utf-8"))
    return CollectionScores(
        plain["collection"], plain["metric"], tuple(plain["query_ids"]), np.array(plain["scores"], dtype=np.float64)
    )

"""Faults, drawn from a seed, on one study after the other until as many were played as should be."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.chaos.checks import STARTUP_TRIALS, Likeness, late_results, undisturbed, violations
from tests.chaos.faults import Fault
from tests.chaos.world import World
from tests.tiny_studies import TinyStudy, copy_study

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

RETRIES = 1000
"""So that no trial is given up for having been interrupted so often."""
TPE = {"name": "tpe", "n_startup_trials": STARTUP_TRIALS}
FEW, MANY = 6, 10
"""Values of each of two coefficients of a grid."""


@dataclass
class Played:
    """What happened in an episode, or in all."""

    faults: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    trials: int = 0
    late: int = 0

    def __str__(self) -> str:
        which = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return (
            f"{self.faults.total()} faults in {self.studies} studies with {self.trials} trials, "
            f"{self.late} late results kept aside ({which})"
        )

    def add(self, other: Played) -> None:
        self.faults += other.faults
        self.studies += other.studies
        self.trials += other.trials
        self.late += other.late


def show(request: pytest.FixtureRequest, line: str) -> None:
    """A line in the terminal, past what captures the output of tests."""
    capturing = request.config.pluginmanager.get_plugin("capturemanager")
    with capturing.global_and_fixture_disabled() if capturing is not None else nullcontext():
        sys.stdout.write(f"\n{line}; no violation\n")


@dataclass
class Episode:
    """Plays faults on one study after the other."""

    server: PostgresServer
    study: TinyStudy
    folder: Path
    seed: int
    coordinators: int
    like: Likeness
    options: dict[str, Any] = field(default_factory=dict)

    def play(self, choices: Sequence[Fault], count: int) -> Played:
        """`count` faults, all of the choices in turn before any comes again, each time in another order."""
        expected = undisturbed(self.study, self.folder)
        rng = np.random.default_rng(self.seed)
        order = itertools.chain.from_iterable(rng.permutation(len(choices)) for _ in itertools.count())
        played, left = Played(), [choices[next(order)] for _ in range(count)]
        while left:
            folder = self.folder / f"study-{played.studies}"
            folder.mkdir()
            with World(
                self.server,
                self.study,
                folder,
                seed=self.seed + 1000 * played.studies,
                coordinators=self.coordinators,
                **self.options,
            ) as world:
                while left and left[0](world):
                    played.faults[left.pop(0).__name__] += 1
                world.end()
                found = violations(world, expected, self.like)
                assert found == [], f"{world.state()}\n{found}\nafter {played}"
                played.late += late_results(world)
            played.studies += 1
            played.trials += len(expected)
        return played


def grid(tiny: TinyStudy, folder: Path, values: int) -> TinyStudy:
    study = copy_study(tiny, folder / "study")
    study.change("merge", "coefficients", to={"alpha": {"values": [i / (values - 1) for i in range(values)]}})
    return study.change("search", to={"strategy": "grid", "retries": RETRIES})


def tpe(tiny: TinyStudy, folder: Path, trials: int) -> TinyStudy:
    study = copy_study(tiny, folder / "study").change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    return study.change("search", to={"strategy": TPE, "trials": trials, "retries": RETRIES})

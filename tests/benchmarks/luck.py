"""What the choice is worth on test, and whether the luck it predicts is the luck there is, on banks of merges.

    python -m tests.benchmarks.luck BANK [BANK …] [--resamples 200] [--splits drawn|official|population]

For dev splits of 50, 100, 300 and all queries: the test score of plain maximisation, of the one-standard-error rule
(among merges within one paired standard error of the highest, the nearest to a source), of the choice that `best`
makes, and of the best source; and the predicted luck against the measured one: (dev − test) of the merge less
(dev − test) of the merge that is highest on all queries together, which says how much harder one split is. `official`
draws the dev split from the bank's dev queries and tests on all its test queries. `drawn` shuffles all queries anew
every time: dev from one part, of the size of the bank's dev split, test on the other; then also "all queries" are many
splits, and differences are not those of one test split. But what such a dev split has too much of, its test split
has too little of: a gain that dev misses is found on test, and a rule that goes by what dev says is charged for both.
`population` takes all queries for the population: dev is drawn from them with replacement, and test is all of them.
`tests.benchmarks.bank` makes banks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mergesearch.evaluation.result import CollectionScores
from mergesearch.results.choose import Candidate, pick
from tests.benchmarks.bank import Bank

SIZES = (50, 100, 300)
CONSOLE = Console(soft_wrap=True, highlight=False)
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """One dev split: test scores by rule, and (predicted, measured) luck of the highest and of the choice."""

    test: dict[str, float]
    highest: tuple[float, float]
    choice: tuple[float, float]
    verdict: str


def splits(bank: Bank, size: int, resamples: int, kind: str) -> Iterator[tuple[Matrix, Matrix]]:
    """Scores on resampled dev splits of `size` queries, and on the test split that belongs to each."""
    rng = np.random.default_rng(size)
    n_dev = bank.dev.shape[1]
    every = np.hstack([bank.dev, bank.test])
    if kind == "official" and size == n_dev:
        resamples = 1
    for _ in range(resamples):
        if kind == "official":
            yield bank.dev[:, rng.permutation(n_dev)[:size]], bank.test
        elif kind == "population":
            yield every[:, rng.integers(every.shape[1], size=size)], every
        else:
            order = rng.permutation(every.shape[1])
            yield every[:, order[:size]], every[:, order[n_dev:]]


def one_standard_error(dev: Matrix, distances: Matrix) -> int:
    """Of the merges within one paired standard error of the highest, the nearest to a source."""
    values = dev.mean(axis=1)
    errors = (dev[values.argmax()] - dev).std(axis=1, ddof=1) / np.sqrt(dev.shape[1])
    close = np.flatnonzero(values.max() - values <= errors)
    return int(min(close, key=lambda i: (distances[i], -values[i])))


def outcome(bank: Bank, dev: Matrix, test: Matrix, typical: int) -> Outcome:
    """Choose on `dev` by every rule and look on `test`."""
    queries = tuple(f"q{i}" for i in range(dev.shape[1]))
    value_dev, value_test = dev.mean(axis=1), test.mean(axis=1)
    candidates = [
        Candidate(i, m.label, float(v), (CollectionScores(bank.name, "", queries, row),), m.distance, m.nearest, m.key)
        for i, (m, v, row) in enumerate(zip(bank.merges, value_dev, dev, strict=True))
    ]
    choice = pick(candidates)
    assert choice.source_number is not None
    harder = value_dev[typical] - value_test[typical]
    distances = np.array([m.distance for m in bank.merges])

    def luck(number: int) -> float:
        return float(value_dev[number] - value_test[number] - harder)

    chosen = {
        "best source": choice.source_number,
        "highest": choice.best_number,
        "one s.e.": one_standard_error(dev, distances),
        "choice": choice.number,
    }
    return Outcome(
        {rule: float(value_test[number]) for rule, number in chosen.items()},
        (choice.best_optimism, luck(choice.best_number)),
        (choice.optimism, luck(choice.number)),
        choice.verdict,
    )


def row(size: str, outcomes: Sequence[Outcome]) -> str:
    """A line of the table."""
    test = {rule: np.array([o.test[rule] for o in outcomes]) for rule in outcomes[0].test}
    over = (test["choice"] - test["highest"]).mean()
    cells = [size, str(len(outcomes)), *(f"{v.mean():.4f}" for v in test.values()), f"{over:+.4f}"]
    cells.append(f"{np.mean([o.verdict == 'source' for o in outcomes]):.0%}")
    for pairs in ([o.highest for o in outcomes], [o.choice for o in outcomes]):
        predicted, measured = np.mean(pairs, axis=0)
        cells += [f"{predicted:.4f}", f"{measured:+.4f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table per bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", type=Path, nargs="+")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--splits", choices=["drawn", "official", "population"], default="drawn")
    given = parser.parse_args()
    for folder in given.banks:
        bank = Bank.read(folder)
        n_dev, n_test = bank.dev.shape[1], bank.test.shape[1]
        typical = int(np.hstack([bank.dev, bank.test]).mean(axis=1).argmax())
        title = f"{bank.name}: {len(bank.merges)} merges, {n_dev} dev and {n_test} test queries, {given.splits} splits"
        headers = ["dev queries", "splits", "best source", "highest", "one s.e.", "choice", "choice − highest"]
        headers += ["source chosen", "highest: luck predicted", "measured", "choice: luck predicted", "measured"]
        CONSOLE.print(f"\n{title}\n\n| {' | '.join(headers)} |\n|{'---|' * len(headers)}")
        for size in [*(s for s in SIZES if s < n_dev), n_dev]:
            drawn = splits(bank, size, given.resamples, given.splits)
            found = [outcome(bank, dev, test, typical) for dev, test in drawn]
            CONSOLE.print(row("all" if size == n_dev else str(size), found))


if __name__ == "__main__":
    main()

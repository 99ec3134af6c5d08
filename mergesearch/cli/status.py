"""`mergesearch status`: how far a study is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergesearch.cli.common import (
    examples,
    format_option,
    open_existing,
    print_json,
    print_table,
    storage_option,
    study_argument,
)

if TYPE_CHECKING:
    from mergesearch.results.status import TrialLine


@click.command(
    "status",
    short_help="Show every trial of a study.",
    epilog=examples("mergesearch status studies/segment-grid.yaml", "mergesearch status -f json my.yaml"),
)
@study_argument
@storage_option
@format_option
def command(study_file: Path, storage: str | None, output: str) -> None:
    """Show every trial of a study: state, dev score, coefficients, cost. Works while it runs."""
    from mergesearch.results.status import read_status
    from mergesearch.study_file import parse_study

    budget = parse_study(study_file).content.search.gpu_hours
    with open_existing(study_file, storage) as store:
        status = read_status(store, budget)
    if output == "json":
        print_json(status.to_dict())
        return
    predicted = status.prediction_error is not None
    print_table(
        ["trial", "state", "dev score", *(["predicted"] if predicted else []), "seconds", "tokens", "what"],
        [
            (
                t.number,
                t.state,
                _score(t, best=t.number == status.best),
                *(["" if t.predicted is None else f"{t.predicted:.4f}"] if predicted else []),
                "" if t.seconds is None else f"{t.seconds:.1f}",
                "" if t.tokens is None else f"{t.tokens:,}",
                t.label if not t.failure else f"{t.label}: {t.failure}",
            )
            for t in status.trials
        ],
        title=status.study,
    )
    click.echo(status.summary())
    click.echo(status.who(study_file))


def _score(trial: TrialLine, *, best: bool) -> str:
    if trial.value is not None:
        return f"{trial.value:.4f}{' *' if best else ''}"
    return "" if trial.estimate is None else f"≈{trial.estimate:.3f}"

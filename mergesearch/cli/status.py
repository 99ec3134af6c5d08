"""`mergesearch status`: how far a study is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergesearch.cli.common import (
    STUDY_FILE,
    examples,
    format_option,
    open_existing,
    print_json,
    print_table,
    storage_option,
    url_or_environment,
)

if TYPE_CHECKING:
    from mergesearch.results.status import TrialLine
    from mergesearch.storage.store import StudyStore

EVERY_SECONDS = 2.0


@click.command(
    "status",
    short_help="Show every trial of a study.",
    epilog=examples(
        "mergesearch status studies/segment-grid.yaml",
        "mergesearch status -f json my.yaml",
        "mergesearch status my.yaml --watch",
        "mergesearch status --study segment-grid --storage postgresql://me@db/studies --watch   # without its file",
    ),
)
@click.argument("study_file", metavar="[STUDY.yaml]", type=STUDY_FILE, required=False)
@click.option("--study", metavar="NAME", help="A study by its name in the database, where its file is not at hand.")
@storage_option
@click.option("--watch", is_flag=True, help="Go on showing how far it is, until nobody runs it or Ctrl-C.")
@click.option(
    "--every", metavar="SECONDS", type=click.FloatRange(min=0.1), help=f"With --watch, by default {EVERY_SECONDS:g}."
)
@format_option
def command(
    study_file: Path | None, study: str | None, storage: str | None, watch: bool, every: float | None, output: str
) -> None:
    """Show every trial of a study: state, dev score, coefficients, cost. Works while it runs.

    The study is named by its file, or by --study; then the database is --storage's or the environment's.
    """
    if (study_file is None) == (study is None):
        raise click.UsageError("name a study: its file, or --study NAME; not both")
    if every is not None and not watch:
        raise click.UsageError("--every goes with --watch")
    if watch and output == "json":
        raise click.UsageError("--watch is for people; programs call `mergesearch status -f json` again and again")
    with _opened(study_file, study, storage) as (store, budget, file):
        if watch:
            from mergesearch.cli.watching import watch as look_on

            look_on(store, every or EVERY_SECONDS)
        else:
            _show(store, budget, file, output)


@contextmanager
def _opened(
    study_file: Path | None, study: str | None, storage: str | None
) -> Iterator[tuple[StudyStore, float | None, str]]:
    """The study, its budget of GPU-hours, and what its file is called."""
    from mergesearch.storage.store import StudyStore
    from mergesearch.study_file import parse_study

    if study_file is not None:
        budget = parse_study(study_file).content.search.gpu_hours
        with open_existing(study_file, storage) as store:
            yield store, budget, str(study_file)
        return
    assert study is not None
    with StudyStore.open(url_or_environment(storage), study, None, exclusive=False) as store:
        last = store.last_run()
        yield store, last.other.get("search", {}).get("gpu_hours"), last.file_name


def _show(store: StudyStore, budget: float | None, file: str, output: str) -> None:
    from mergesearch.results.status import read_status

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
                _what(t),
            )
            for t in status.trials
        ],
        title=f"{status.study}: dev scores{status.on_queries}" if status.on_queries else status.study,
    )
    click.echo(status.summary())
    click.echo(status.who(file))


def _what(trial: TrialLine) -> str:
    imported = f" (imported: {trial.imported})" if trial.imported else ""
    return f"{trial.label}: {trial.failure}" if trial.failure else f"{trial.label}{imported}"


def _score(trial: TrialLine, *, best: bool) -> str:
    if trial.value is not None:
        return f"{trial.value:.4f}{' *' if best else ''}"
    return "" if trial.estimate is None else f"≈{trial.estimate:.3f}"

"""`mergesearch control`: what all coordinators of a study are to do."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import examples, open_existing, storage_option, study_argument


@click.command(
    "control",
    short_help="Pause a running study, let it go on, or end it.",
    epilog=examples(
        "mergesearch control my.yaml pause   # begin no trial; workers and sources stay where they are",
        "mergesearch control my.yaml go      # begin trials again",
        "mergesearch control my.yaml drain   # end the trials in flight, then the runs",
        "mergesearch control my.yaml stop    # end the runs now; the next one takes their trials over",
    ),
)
@study_argument
@click.argument("what", type=click.Choice(["pause", "go", "drain", "stop"]))
@storage_option
def command(study_file: Path, what: str, storage: str | None) -> None:
    """Tell all `run`s of a study, wherever they are, what to do.

    They hear it within seconds. A pause holds until `go`, also for those that start meanwhile; `drain` and `stop` end
    those that run now.
    """
    from mergesearch.results.control import control

    with open_existing(study_file, storage) as store:
        click.echo(control(store, what, study_file))

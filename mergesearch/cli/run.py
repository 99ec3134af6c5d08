"""`mergesearch run`: run a study, or go on with it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import examples, quiet_libraries, storage_option, study_argument


class WorkerCount(click.IntRange):
    """A whole number from 1 on, or `auto`."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or `auto`."""
        return value if value == "auto" else super().convert(value, param, ctx)


@click.command(
    "run",
    short_help="Run a study, or go on with it.",
    epilog=examples(
        "mergesearch run studies/segment-grid.yaml",
        "mergesearch run studies/segment-grid.yaml --workers ray --count 2",
        "mergesearch run my.yaml --trials 40            # go on with a larger budget",
        "mergesearch run my.yaml --storage postgresql://me@db/studies",
    ),
)
@study_argument
@storage_option
@click.option("--workers", type=click.Choice(["local", "ray"]), help="Overrides the study file.")
@click.option("--count", type=WorkerCount(1), help="Number of Ray workers, or auto; implies --workers ray.")
@click.option("--address", help="An existing Ray cluster; implies --workers ray.")
@click.option("--trials", type=click.IntRange(1), help="Overrides the study file's budget.")
@click.option("--device", help="auto, cpu, cuda, …")
@click.option(
    "--residency",
    type=click.Choice(["auto", "device", "pinned", "mapped"]),
    help="Where the sources are kept; overrides the study file.",
)
@click.option("--quiet", is_flag=True, help="No progress, only the summary.")
def command(
    study_file: Path,
    storage: str | None,
    workers: str | None,
    count: int | str | None,
    address: str | None,
    trials: int | None,
    device: str | None,
    residency: str | None,
    quiet: bool,
) -> None:
    """Run a study. Ctrl-C or a crash loses nothing: the same command goes on where it stopped."""
    from mergesearch.cli.progress import StudyProgress
    from mergesearch.resolving import resolve
    from mergesearch.results.choose import choose
    from mergesearch.session import open_store, run_study
    from mergesearch.storage.engine import redact
    from mergesearch.study_file import parse_study, storage_url

    parsed = parse_study(study_file)
    if workers == "local" and (count or address):
        raise click.UsageError("--count and --address are for Ray workers; local is one worker")
    kind = "ray" if count or address else workers
    given = {
        "kind": kind,
        "count": 1 if kind == "local" else count,
        "address": address,
        "device": device,
        "residency": residency,
    }
    changed = {k: v for k, v in given.items() if v is not None}
    content = parsed.content
    search = content.search.model_copy(update={"trials": trials} if trials else {})
    content = content.model_copy(update={"search": search, "workers": content.workers.model_copy(update=changed)})
    study = resolve(replace(parsed, content=content))
    with quiet_libraries(), open_store(study, storage_url(content, storage)) as store:
        for note in store.not_told(study.notes()):
            click.echo(f"note: {note}")
        try:
            with StudyProgress(study.planned_trials, quiet=quiet) as progress:
                progress.recorded(sum(t.state.is_finished() for t in store.trials()))
                summary = run_study(study, store, progress, progress.batch)
        except KeyboardInterrupt:
            again = redact(shlex.join(["mergesearch", *sys.argv[1:]]))
            click.echo(f"interrupted; nothing is lost. Go on with: {again}", err=True)
            raise
        click.echo(summary.describe())
        click.echo(choose(study, store).describe())
    click.echo(f"next: mergesearch evaluate {study_file}; mergesearch export {study_file} --out merged")

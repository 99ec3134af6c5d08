"""`mergesearch run`: run studies, or go on with them."""

from __future__ import annotations

import shlex
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergesearch.cli.common import STUDY_FILE, examples, quiet_libraries, storage_option

if TYPE_CHECKING:
    from mergesearch.session import Workers
    from mergesearch.study import Study


class WorkerCount(click.IntRange):
    """A whole number from 1 on, or `auto`."""

    name = "number|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or `auto`."""
        return value if value == "auto" else super().convert(value, param, ctx)


@click.command(
    "run",
    short_help="Run a study, or go on with it; or several.",
    epilog=examples(
        "mergesearch run studies/segment-grid.yaml",
        "mergesearch run studies/segment-grid.yaml --workers ray --count 2",
        "mergesearch run my.yaml --trials 40            # go on with a larger budget",
        "mergesearch run my.yaml --storage postgresql://me@db/studies",
        "mergesearch run a.yaml b.yaml                 # one after the other, sources that both have loaded once",
    ),
)
@click.argument("study_files", metavar="STUDY.yaml...", type=STUDY_FILE, nargs=-1, required=True)
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
@click.option("--shared", is_flag=True, help="Refuse a database that other machines cannot reach; jobs are run so.")
@click.option("--quiet", is_flag=True, help="No progress, only the summary.")
def command(
    study_files: tuple[Path, ...],
    storage: str | None,
    workers: str | None,
    count: int | str | None,
    address: str | None,
    trials: int | None,
    device: str | None,
    residency: str | None,
    shared: bool,
    quiet: bool,
) -> None:
    """Run studies, one after the other. Ctrl-C or a crash loses nothing: the same command goes on where it stopped.

    Studies with the same sources, template and workers keep them loaded from one to the next; their scores are those of
    separate runs.
    """
    from mergesearch.resolving import resolve
    from mergesearch.session import Workers
    from mergesearch.study_file import parse_study
    from mergesearch.submitting import check_shared

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
    studies = []
    for parsed in map(parse_study, study_files):
        content = parsed.content
        if shared:
            check_shared(content, storage)
        search = content.search.model_copy(update={"trials": trials} if trials else {})
        content = content.model_copy(update={"search": search, "workers": content.workers.model_copy(update=changed)})
        studies.append(resolve(replace(parsed, content=content)))
    with quiet_libraries(), closing(Workers()) as pool:
        for study in studies:
            if len(studies) > 1:
                click.echo(f"study {study.name} ({study.parsed.path})")
            _run(study, storage, pool, quiet=quiet)


def _run(study: Study, storage: str | None, pool: Workers, *, quiet: bool) -> None:
    from mergesearch.cli.progress import StudyProgress
    from mergesearch.evaluation.result import IMPORTED_ATTR
    from mergesearch.results.choose import choose
    from mergesearch.session import open_store, run_study
    from mergesearch.storage.engine import redact

    with open_store(study, storage) as store:
        for note in store.not_told(study.notes()):
            click.echo(f"note: {note}")
        scored = [t for t in store.trials() if t.state.name == "COMPLETE"]
        imported = sum(IMPORTED_ATTR in t.user_attrs for t in scored)
        if scored and not quiet:
            before = len(scored) - imported
            came = f", {imported} that came over from another study" if imported else ""
            click.echo(f"going on: {before} trial{'s' * (before != 1)} evaluated before{came}")
        try:
            with StudyProgress(store, quiet=quiet) as progress:
                summary = run_study(study, store, progress, progress.batch, pool)
        except KeyboardInterrupt:
            again = redact(shlex.join(["mergesearch", *sys.argv[1:]]))
            click.echo(f"interrupted; nothing is lost. Go on with: {again}", err=True)
            raise
        click.echo(summary.describe())
        click.echo(choose(study, store).describe())
    file = study.parsed.path
    report = f"mergesearch report {file} --out report.html"
    click.echo(f"next: mergesearch evaluate {file}; {report}; mergesearch export {file} --out merged")

"""`mergesearch quickstart`: a real study on this machine, from nothing to an exported merge."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergesearch.cli.common import examples, format_option, print_json, print_table, quiet_libraries

if TYPE_CHECKING:
    from mergesearch.listener import Listener
    from mergesearch.quickstart.demo import Report
    from mergesearch.storage.reader import StudyReader


@click.command(
    "quickstart",
    short_help="A real study on this machine, in minutes.",
    epilog=examples("mergesearch quickstart", "mergesearch quickstart --folder /tmp/demo"),
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("mergesearch-quickstart"),
    show_default=True,
    help="Where everything is kept; an interrupted quickstart goes on from there.",
)
@click.option("--trials", type=click.IntRange(4), help="Evaluated merges.")
@format_option
def command(folder: Path, trials: int | None, output: str) -> None:
    """Build a collection, train an expert, search its merge, test and export it: minutes on two cores."""
    from mergesearch.quickstart.demo import TRIALS, run_quickstart

    started = time.perf_counter()
    try:
        with quiet_libraries():
            report = run_quickstart(folder, _Reporter(quiet=output == "json"), trials=trials or TRIALS)
    except KeyboardInterrupt:
        click.echo("interrupted; finished phases and trials are kept. The same command goes on.", err=True)
        raise
    if output == "json":
        print_json(asdict(report))
        return
    _show(report, time.perf_counter() - started)


def _show(report: Report, seconds: float) -> None:
    click.echo(f"\n{report.choice}\n")
    for title, headers, rows in report.tables:
        print_table(headers, rows, title=title)
        click.echo()
    for note in report.notes:
        click.echo(note)
    phases = ", ".join(f"{name} {s:.0f} s" for name, s in report.seconds.items())
    click.echo(f"time: {phases}; this call {seconds:.0f} s")
    click.echo(f"exported: {report.exported}")
    click.echo(f"page to look at: {report.page}")
    program = "mergesearch" if shutil.which("mergesearch") else os.path.relpath(sys.argv[0])
    python = "python" if program == "mergesearch" else os.path.relpath(sys.executable)
    click.echo(f"""
next:
  {program} dashboard {report.study_file}
  {program} status {report.study_file}
  {program} report {report.study_file} --out report.html
  {python} -c "from sentence_transformers import SentenceTransformer as Model
print(Model('{report.model}').encode('hello').shape)"
  edit a copy beside {report.study_file}, for its paths start there, to name your own models and data; then:
  {program} run COPY.yaml""")


class _Reporter:
    """Bars in a terminal, lines elsewhere, each phase with its time."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def note(self, text: str) -> None:
        """One line below the phase it belongs to."""
        if not self._quiet:
            click.echo(f"  {text}")

    @contextmanager
    def phase(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar while the phase lasts, then a line with its seconds; in a log file the line begins with the phase."""
        from mergesearch.cli.progress import phase_bar

        started = time.perf_counter()
        begun = not self._quiet and not sys.stdout.isatty()
        if begun:
            click.echo(f"  {title}", nl=False)
        try:
            with phase_bar(title, quiet=self._quiet) as progress:
                yield progress
        except BaseException:
            if begun:
                click.echo()  # what went wrong has a line of its own
            raise
        seconds = f": {time.perf_counter() - started:.1f} s"
        if begun:
            click.echo(seconds)
        else:
            self.note(title + seconds)

    @contextmanager
    def trials(self, store: StudyReader) -> Iterator[tuple[Listener, Callable[[int, int], None]]]:
        """The panel of `mergesearch run`."""
        from mergesearch.cli.progress import StudyProgress

        with StudyProgress(store, quiet=self._quiet) as progress:
            yield progress, progress.batch

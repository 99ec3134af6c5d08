"""How a running study looks in a terminal, and in a log file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from mergesearch.cli.live import LivePanel, watched
from mergesearch.cli.panel import panel
from mergesearch.errors import StorageError
from mergesearch.evaluation.result import TrialResult
from mergesearch.listener import Listener
from mergesearch.results.watch import Snapshot, Watch
from mergesearch.storage.reader import StudyReader
from mergesearch.surrogate.report import ScreeningReport

logger = logging.getLogger(__name__)

READ_SECONDS = 2.0
"""So often the database is read while nothing happens here, and things may elsewhere."""
LEAST_SECONDS = 0.25
"""Between two readings, however much happens."""


class StudyProgress(Listener):
    """A `Listener`: one line per trial; in a terminal also a panel below them, read from the study's database.

    Args:
        store: the study's records. They tell what other processes do as well.
        quiet: shows nothing.
    """

    def __init__(self, store: StudyReader, *, quiet: bool = False) -> None:
        self._console = Console(highlight=False)
        self._quiet = quiet
        self._reader = Watch(store)
        self._now: Snapshot | None = None
        self._batches: tuple[int, int] | None = None
        self._predicting = False
        self._news, self._closed = threading.Event(), threading.Event()
        self._live: LivePanel | None = None
        self._thread = threading.Thread(target=self._read, name="mergesearch-progress", daemon=True)

    def __enter__(self) -> Self:
        if not self._quiet and watched(self._console):
            self._live = LivePanel(self._console, self._panel, transient=True)
            self._live.start()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._closed.set()
            self._news.set()
            self._live.stop()
            self._thread.join(READ_SECONDS)  # nobody has to wait for a database that does not answer

    def batch(self, done: int, total: int) -> None:
        """Batches of the running trial (local workers only)."""
        self._batches = done, total

    def measured(self, source: str, loss: float, seconds: float) -> None:
        """One line with the loss."""
        self._line(f"loss {loss:>9.4f}  {seconds:5.1f} s  {source}")

    def started_from(self, what: str) -> None:
        """One line."""
        self._line(what)

    def planned(self, sources: str) -> None:
        """One line."""
        self._line(sources)

    def waiting(self, what: str) -> None:
        """One line."""
        self._line(what)

    def screening(self) -> None:
        """Part of the panel."""
        self._predicting = True

    def screened(self, report: ScreeningReport) -> None:
        """One line with what is promised."""
        self._predicting = False
        if report.picks:
            pick = report.picks[0]
            self._line(
                f"predicted  {pick.mean:.4f} ± {pick.sd:.4f}, the most promising of {report.n_screened:,} merges "
                f"(luck of the best: {report.optimism:.4f})"
            )

    def started(self, number: int, label: str) -> None:  # noqa: ARG002 - the listener's signature
        """No batch of it is encoded yet."""
        self._batches = None
        self._news.set()

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:
        """One line with score and cost."""
        seconds = sum(result.seconds.values())
        mark = "  best so far" if new_best else ""
        self._line(f"trial {number:>3}  {result.value:.4f}  {seconds:5.1f} s  {label}{mark}", bold=new_best)

    def pruned(self, number: int, label: str, result: TrialResult) -> None:
        """One line with what the score would have been, about, and after how many queries that was clear."""
        seconds = f"{sum(result.seconds.values()):5.1f} s" if result.seconds else "      –"
        score = "stopped" if result.estimate is None else f"≈{result.estimate:.3f}"
        why = f"stopped after {result.looks[-1].queries} queries: cannot beat trial {result.stopped_by}"
        self._line(f"trial {number:>3}  {score}  {seconds}  {label} ({why})")

    def reused(self, number: int, label: str, value: float, original: int) -> None:
        """One line saying where the score came from."""
        self._line(f"trial {number:>3}  {value:.4f}        –  {label} (same merge as trial {original})")

    def failed(self, number: int, label: str, reason: str, *, retried: bool) -> None:
        """One line with the reason."""
        what = " again" if retried else "failed"
        self._line(f"trial {number:>3}  {what}        –  {label}: {_plain(reason)}")

    def _line(self, text: str, *, bold: bool = False) -> None:
        self._news.set()
        if self._live is not None:
            # As Text, because reasons may hold what rich takes for markup.
            self._console.print(Text(text, style="bold" if bold else ""))
        elif not self._quiet:
            click.echo(text)

    def _panel(self) -> RenderableType:
        return Text("") if self._now is None else panel(self._now, self._batches, self._predicting)

    def _read(self) -> None:
        """In a thread of its own: trials are not to wait until they are shown."""
        while not self._closed.is_set():
            self._news.clear()
            try:
                self._now = self._reader.read()
            except StorageError as error:  # the study's own calls will say so
                logger.debug("the progress of the study was not read: %s", error)
            self._closed.wait(LEAST_SECONDS)
            self._news.wait(READ_SECONDS)


def _plain(text: str) -> str:
    """One line without control characters: reasons may hold a library's colours and line ends."""
    return "".join(c if c.isprintable() else " " for c in click.unstyle(text))


@contextmanager
def phase_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar for one piece of work; yields a callback for (done, total), where a total of 0 is not known."""
    with phase_bars(title, quiet=quiet) as (show,):
        yield show


@contextmanager
def phase_bars(*titles: str, quiet: bool = False) -> Iterator[list[Callable[[int, int], None]]]:
    """Bars for pieces of work that follow each other; yields a callback for each, as `phase_bar` does.

    What was done before the first call, by an earlier process, tells nothing about the time that is left.
    """
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:

        def bar(title: str, *, alone: bool) -> Callable[[int, int], None]:
            task = bars.add_task(title, total=None, visible=alone)
            shown = bars.tasks[-1]

            def show(done: int, total: int) -> None:
                if shown.total is None:
                    bars.reset(task, completed=done, total=total or None, visible=True)
                else:
                    bars.update(task, completed=done, total=total)

            return show

        yield [bar(title, alone=len(titles) == 1) for title in titles]

"""How a running study looks in a terminal, and in a log file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from mergesearch.evaluation.result import TrialResult
from mergesearch.listener import Listener
from mergesearch.surrogate.report import ScreeningReport


class StudyProgress(Listener):
    """A `Listener`: one line per trial; in a terminal also bars over trials and over a trial's batches."""

    def __init__(self, planned: int | None, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._trials = self._bars.add_task("trials", total=planned)
        self._batches = self._bars.add_task("batches", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def batch(self, done: int, total: int) -> None:
        """Batches of the running trial (local workers only)."""
        self._bars.update(self._batches, completed=done, total=total)

    def measured(self, source: str, loss: float, seconds: float) -> None:
        """One line with the loss."""
        self._line(f"loss {loss:>9.4f}  {seconds:5.1f} s  {source}", step=False)

    def planned(self, sources: str) -> None:
        """One line."""
        self._line(sources, step=False)

    def recorded(self, finished: int) -> None:
        """How many trials an earlier process had finished."""
        self._bars.update(self._trials, completed=finished)

    def waiting(self, what: str) -> None:
        """One line."""
        self._line(what, step=False)

    def screened(self, report: ScreeningReport) -> None:
        """One line with what is promised."""
        if report.picks:
            pick = report.picks[0]
            self._line(
                f"predicted  {pick.mean:.4f} ± {pick.sd:.4f}, the most promising of {report.n_screened:,} merges "
                f"(luck of the best: {report.optimism:.4f})",
                step=False,
            )

    def started(self, number: int, label: str) -> None:  # noqa: ARG002 - the listener's signature
        """Reset the bar over batches."""
        self._bars.update(self._batches, completed=0, description=f"trial {number}")

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
        self._line(f"trial {number:>3}  {what}        –  {label}: {reason}", step=not retried)

    def _line(self, text: str, *, step: bool = True, bold: bool = False) -> None:
        if step:
            self._bars.advance(self._trials)
        if self._quiet:
            return
        if self._console.is_terminal:
            # As Text, because reasons may hold what rich takes for markup.
            self._bars.console.print(Text(text, style="bold" if bold else ""))
        else:
            click.echo(text)


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

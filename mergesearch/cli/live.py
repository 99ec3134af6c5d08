"""A panel that stays below what is printed, for as long as there is somebody to look at it."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment


def watched(console: Console) -> bool:
    """Whether a terminal is there that can move its cursor; a pipe is none, whatever FORCE_COLOR says."""
    return console.is_interactive and console.file.isatty()


class LivePanel(Live):
    """Shows what `show` returns, anew several times a second, also after the terminal was resized.

    A terminal that gets narrower wraps the lines that stand there, so that more rows are to be erased than were drawn.

    Args:
        console: the terminal.
        show: makes the panel; it must not fail.
        transient: whether the panel goes at the end.
    """

    def __init__(self, console: Console, show: Callable[[], RenderableType], *, transient: bool) -> None:
        self._drawn = _Drawn(show)
        super().__init__(get_renderable=lambda: self._drawn, console=console, transient=transient)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is printed, with the panel erased before it and drawn again after it."""
        with self._lock:
            if wrapped := self._drawn.wrapped(self.console.width):
                # Rich goes up by the rows that it drew, and then comes what is printed.
                up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)]
                renderables = [Control(*up * wrapped), *renderables]
            return super().process_renderables(renderables)


class _Drawn:
    """What is drawn, remembering how long its lines are."""

    def __init__(self, show: Callable[[], RenderableType]) -> None:
        self._show = show
        self._lengths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._show(), options, pad=False)
        self._lengths = [Segment.get_line_length(line) for line in lines]
        for i, segments in enumerate(lines):
            yield from segments
            if i < len(lines) - 1:
                yield Segment.line()

    def wrapped(self, width: int) -> int:
        """Rows that the lines take at a width, less those that they were drawn on."""
        return sum(max(0, math.ceil(length / width) - 1) for length in self._lengths)

"""Looks at a study until it is over, from any machine that reaches its database."""

from __future__ import annotations

import time

import click
from rich.console import Console

from mergesearch.cli.live import LivePanel, watched
from mergesearch.cli.panel import line, panel
from mergesearch.results.status import read_status
from mergesearch.results.watch import Watch
from mergesearch.storage.patience import PATIENCE_SECONDS
from mergesearch.storage.store import StudyStore


def watch(store: StudyStore, every: float) -> None:
    """Show how far a study is until nobody drives it: a panel in a terminal, elsewhere a line per event.

    Args:
        store: the study, opened for reading; from now on it waits for a server that is away.
        every: seconds between two readings.

    Raises:
        StorageError: the database stays away, or the study was deleted.
    """
    store.patience = PATIENCE_SECONDS
    reader, console = Watch(store), Console(highlight=False)
    now = reader.read()
    if watched(console):
        with LivePanel(console, lambda: panel(now), transient=False):
            while not now.over:
                time.sleep(every)
                now = reader.read()
    else:
        click.echo(line(now))
        while not now.over:
            time.sleep(every)
            before, now = now, reader.read()
            if now.news != before.news:
                click.echo(line(now))
    click.echo(f"over, nobody runs it: {read_status(store, now.gpu_hours_granted).summary()}")

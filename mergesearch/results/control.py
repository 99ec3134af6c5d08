"""What all coordinators of a study are told to do."""

from __future__ import annotations

import shlex
from pathlib import Path

from mergesearch.storage.coordinators import Wanted
from mergesearch.storage.reader import StudyReader

WORDS: dict[str, Wanted] = {"pause": "pause", "go": "run", "drain": "drain", "stop": "stop"}


def control(store: StudyReader, what: str, study_file: Path) -> str:
    """Say it; returns who is to hear it, in words, and how those who wait go on with `study_file`."""
    store.want(WORDS[what])
    alive = [str(c) for c in store.coordinators() if c.alive]
    if alive:
        return f"{what}: told {'; '.join(alive)}"
    if what == "pause":
        go = f"mergesearch control {shlex.quote(str(study_file))} go"
        return f"nobody runs the study; the next run begins nothing until: {go}"
    return "nobody runs the study"

"""What all coordinators of a study are told to do."""

from __future__ import annotations

from mergesearch.storage.coordinators import Wanted
from mergesearch.storage.reader import StudyReader

WORDS: dict[str, Wanted] = {"pause": "pause", "go": "run", "drain": "drain", "stop": "stop"}


def control(store: StudyReader, what: str) -> str:
    """Say it; returns who is to hear it, in words."""
    store.want(WORDS[what])
    alive = [str(c) for c in store.coordinators() if c.alive]
    if alive:
        return f"{what}: told {'; '.join(alive)}"
    if what == "pause":
        return "nobody runs the study; the next run begins nothing until: mergesearch control STUDY.yaml go"
    return "nobody runs the study"

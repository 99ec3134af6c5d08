"""What to know of a reading of test queries: which were searched on, what they rank, how often they were read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mergesearch.evaluation.collection import Collection
from mergesearch.storage.reader import Reading
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study

COMMAND, OF_A_FOLDER = "evaluate", "evaluate folder"
"""What readings of a test split are recorded under: the study's models, or a single folder."""


def overlaps(study: Study, collections: Sequence[Collection]) -> list[str]:
    """Notes on test queries that were searched on, word for word."""
    searched = {text for c in study.collections for text in c.query_texts}
    found = [(c, sum(text in searched for text in c.query_texts)) for c in collections]
    return [
        f"{n} of {len(c.query_texts)} test queries of {c.name} are dev queries, too: they were searched on, and "
        "exports do not tell such scores as test scores"
        for c, n in found
        if n
    ]


def pools(collections: Sequence[Collection]) -> list[str]:
    """Notes on test queries that rank a pool."""
    return [
        f"queries of {c.name} rank a pool of {len(c.doc_ids):,} documents and not the whole corpus: the scores compare "
        "these models, and are higher than others' figures"
        for c in collections
        if c.pooled is not None
    ]


def readings(store: StudyStore) -> list[str]:
    """A note on how often the test split was read, where it was more than once."""
    times = times_read(store.test_readings())
    if times < 2:
        return []
    return [f"this study's test split has now been read {times} times; each choice made on it wears it out"]


def times_read(readings: Iterable[Reading]) -> int:
    """How often test queries were looked at: evaluations of the study, and of single folders, and protocols.

    A protocol looks once, at models that were all chosen before.
    """
    rows = list(readings)
    times = 0
    for collection in {r.scores.collection for r in rows}:
        mine = [r for r in rows if r.scores.collection == collection]
        whole = Counter(r.subject for r in mine if r.command == COMMAND)  # every evaluation scores every source once
        folders = sum(r.command == OF_A_FOLDER for r in mine)
        protocols = {r.command for r in mine} - {COMMAND, OF_A_FOLDER}
        times = max(times, max(whole.values(), default=0) + folders + len(protocols))
    return times

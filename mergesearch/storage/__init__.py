"""The study database: Optuna's tables for what a trial is, our own for what a trial brought back.

Any number of readers; one coordinator per SQLite file, any number of them per study in PostgreSQL. Everything that a
trial's creation or its end writes, in Optuna's tables and in ours, is one transaction, so a process may die at any
moment and the database still holds every trial exactly once, either running or with exactly one terminal value.

    engine.py       database URLs, passwords kept out of sight, errors that say what to do
    secrets.py      where a URL may come from, and whom its password is kept from
    schema.py       creating and upgrading the tables, one process at a time (migrations/ holds the steps)
    tables.py       our own tables
    lock.py         one coordinator per SQLite file, named when it is in the way
    coordinators.py who drives a study: heartbeats, and trials of those that are gone
    patience.py     calls that are repeated while a server is away
    transaction.py  our rows inside the transactions of Optuna's storage
    trials.py       the trials of a study, kept in memory
    attributes.py   what of a trial Optuna's tools show
    record.py       what a study is made of, and what differs when it is resumed
    scores.py       per-query scores to rows and back, to the bit
    opening.py      finding, making, comparing and mending a study when it is opened
    reader.py       what can be read of a study
    driving.py      what a coordinator does to trials: begin, lease, take over, end
    importing.py    what a study takes over from another one
    store.py        `StudyStore`: the one class that callers need
    listing.py      the studies of a database

Every trial carries a unique logical id, a count of attempts and a lease epoch; a result that arrives under an older
epoch is kept aside instead of being recorded.
"""

from __future__ import annotations

from mergesearch.storage.driving import Told
from mergesearch.storage.engine import redact
from mergesearch.storage.listing import StudySummary, list_studies
from mergesearch.storage.reader import Reading, UnfinishedTrial
from mergesearch.storage.record import StudyRecord
from mergesearch.storage.store import StudyStore

__all__ = [
    "Reading",
    "StudyRecord",
    "StudyStore",
    "StudySummary",
    "Told",
    "UnfinishedTrial",
    "list_studies",
    "redact",
]

"""What a program says to PostgreSQL, counted by libpq's own trace of the protocol: nothing is estimated."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from psycopg.pq import Trace

_ANSWER = re.compile(r"^B\t\d+\t(CommandComplete|ReadyForQuery)(?:\t +\"(\w+))?", re.MULTILINE)


@dataclass
class Traffic:
    """What went over the connections of this process to PostgreSQL.

    Attributes:
        round_trips: how often an answer was waited for; a pipeline of statements is waited for once.
        statements: all but those that begin or end a transaction.
        transactions: those that were begun, whether they wrote anything or not.
        writing: those that inserted, changed or removed rows, and were committed.
    """

    round_trips: int = 0
    statements: int = 0
    transactions: int = 0
    writing: int = 0
    tags: Counter[str] = field(default_factory=Counter)

    def read(self, trace: str) -> None:
        """Add what libpq's trace of one connection says."""
        wrote = False
        for kind, tag in _ANSWER.findall(trace):
            if kind == "ReadyForQuery":
                self.round_trips += 1
                continue
            self.tags[tag] += 1
            if tag == "BEGIN":
                self.transactions, wrote = self.transactions + 1, False
            elif tag == "COMMIT":
                self.writing += wrote
            elif tag != "ROLLBACK":
                self.statements += 1
                wrote = wrote or tag in ("INSERT", "UPDATE", "DELETE")


@contextmanager
def traced() -> Iterator[Traffic]:
    """Inside: every connection that is taken from a pool is traced. The counts are there at the end."""
    traffic, files = Traffic(), dict[Any, Any]()
    with ExitStack() as stack:

        def begin(connection: Any, *_: Any) -> None:
            if connection not in files:
                files[connection] = stack.enter_context(tempfile.TemporaryFile())
                connection.pgconn.trace(files[connection].fileno())
                connection.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)

        sa.event.listen(sa.pool.Pool, "checkout", begin)
        try:
            yield traffic
        finally:
            sa.event.remove(sa.pool.Pool, "checkout", begin)
            for connection, file in files.items():
                if not connection.closed:
                    connection.pgconn.untrace()
                file.seek(0)
                traffic.read(file.read().decode(errors="replace"))

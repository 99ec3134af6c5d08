"""Going on when a database server was away for a while."""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from mergesearch.errors import StorageError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 300.0
"""So long a coordinator tries to reach its database again; a restart or a fail-over is shorter."""
LONGEST_PAUSE_SECONDS = 5.0

P = ParamSpec("P")
R = TypeVar("R")


class ConnectionLostError(StorageError):
    """The server cannot be reached, or dropped the connection: the same call may succeed a little later."""


class Patient(Protocol):
    """Who calls a database and may wait for it."""

    patience: float
    """Seconds; zero for those who would rather know at once."""


S = TypeVar("S", bound=Patient)


def patient(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that is called again, with growing pauses, while it raises `ConnectionLostError`.

    Whether its last transaction was committed is then unknown, so a repetition must change nothing.
    """

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        deadline = time.monotonic() + self.patience
        pause, say = 0.1, logger.warning
        while True:
            try:
                return method(self, *args, **kwargs)
            except ConnectionLostError as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                say("%s Trying again for %.0f s.", error, left)
                say = logger.debug
                time.sleep(min(pause * random.uniform(0.5, 1.5), left))  # noqa: S311 - spreads the return of many
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    return call

"""Optuna without the messages that mean nothing here: its own studies are bookkeeping of ours, in memory."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Inside: no "a new study was created", and no warning that an option somebody chose is experimental."""
    before = optuna.logging.get_verbosity()
    talkative = before < optuna.logging.WARNING
    if talkative:  # setting a level makes Python forget which loggers are silent, for every library
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        if talkative:
            optuna.logging.set_verbosity(before)

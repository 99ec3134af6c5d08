"""The strategies that there are: every `Strategy` class defined in a file of `strategies/`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from mergesearch.search import strategies
from mergesearch.search.strategy import Proposal, Strategy, StrategyOptions

__all__ = ["STRATEGIES", "Proposal", "Strategy", "StrategyOptions"]


def _discover() -> dict[str, type[Strategy]]:
    found: dict[str, type[Strategy]] = {}
    for info in pkgutil.iter_modules(strategies.__path__, strategies.__name__ + "."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, Strategy) and value.__module__ == info.name:
                found[value.name] = value
    return found


STRATEGIES: dict[str, type[Strategy]] = _discover()
"""Name, as study files write it, to class: `STRATEGIES[name](space, STRATEGIES[name].Options(…), seed)`."""

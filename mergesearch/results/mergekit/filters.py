"""Values per tensor in mergekit's language: a list of filters, of which the first that is part of the name counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

Filters = list[tuple[str | None, float]]
"""(part of a tensor's name, value) in the order in which they are tried; None matches every name."""


def choose(filters: Filters, name: str) -> float | None:
    """The value of the first filter that is part of `name`; None where none is."""
    return next((value for part, value in filters if part is None or part in name), None)


def write_filters(values: Mapping[str, float]) -> Filters:
    """The shortest of some lists of filters that give every tensor its value.

    Args:
        values: by the tensor's whole name.
    """
    common = Counter(values.values()).most_common(1)[0][0]
    branches = _branches(values)
    # A short part may be found in other names, too (`norm.` in `input_layernorm.`): longer ones are asked first, and
    # whole names, longest first, can only be right.
    attempts: Sequence[Callable[[], Filters]] = (
        lambda: [(part, value) for part, value in branches if value != common],
        lambda: _longest_first(branches),
        lambda: _longest_first(list(values.items())),
    )
    for attempt in attempts:
        filters = [*attempt(), (None, common)]
        if all(choose(filters, name) == value for name, value in values.items()):
            return filters
    raise AssertionError("whole names, longest first, tell all tensors apart")


def _branches(values: Mapping[str, float], above: str = "") -> Filters:
    """The largest parts of the tree of names that have one value each."""
    found: Filters = []
    children: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        head, dot, rest = name.removeprefix(above).partition(".")
        children.setdefault(above + head + dot if rest else name, {})[name] = value
    for part, below in children.items():
        if len(set(below.values())) == 1:
            found.append((part, next(iter(below.values()))))
        else:
            found += _branches(below, part)
    return found


def _longest_first(filters: Sequence[tuple[str | None, float]]) -> Filters:
    return sorted(filters, key=lambda entry: -len(entry[0] or ""))

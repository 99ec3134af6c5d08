"""The merge methods as a page of the docs, from what they declare."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mergesearch.merging.declared import ARITHMETIC
from mergesearch.merging.registry import METHODS

if TYPE_CHECKING:
    from mergesearch.merging.declared import Coefficient, Option, Shorthand
    from mergesearch.merging.method import MergeMethod

_HEAD = f"""# Merge methods

Written by `mergesearch methods --format markdown > docs/methods.md`. Coefficients are searched, per parameter group;
options are fixed for a study. Without a default a coefficient must be given. The option `{ARITHMETIC.name}`, of some
methods, is {ARITHMETIC.doc}
"In one shot" is what `mergesearch merge` takes where nothing is set, n being the number of sources without the base.

| method | coefficients | options | needs | in one shot | beside mergekit 0.1.5 |
|---|---|---|---|---|---|
"""


def methods_page() -> str:
    """Every method in Markdown: paper, coefficients with ranges and defaults, options, needs, parity."""
    return _HEAD + "".join(_row(METHODS[name]) for name in sorted(METHODS))


def one_shot_words(method: MergeMethod) -> str:
    """What a method merges with where nothing is searched: `weight = 1, density = 0.2`; or what has to be given."""
    if method.one_shot is None:
        open_ones = [name for name, c in method.coefficients.items() if c.default is None]
        return f"{' and '.join(open_ones)} to be given"
    declared = method.one_shot.coefficients
    values: dict[str, bool | float | str | None] = {
        **{name: declared.get(name, c.default) for name, c in method.coefficients.items()},
        **method.one_shot.options,
    }
    return ", ".join(f"{name} = {_setting(value)}" for name, value in values.items() if value is not None)


def _row(method: MergeMethod) -> str:
    cells = [
        f"[`{method.name}`]({method.paper}): {method.title}",
        "<br>".join([*map(_coefficient, method.coefficients.values()), *map(_shorthand, method.shorthands.values())]),
        "<br>".join(map(_option, method.options.values())),
        _needs(method),
        f"{one_shot_words(method)}: {method.one_shot.origin}" if method.one_shot else one_shot_words(method),
        method.parity or "not in mergekit",
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') or '–' for cell in cells)} |\n"


def _coefficient(coefficient: Coefficient) -> str:
    if coefficient.names_sources:
        kind = "name of a source"
    else:
        scale = ", log scale" if coefficient.log else ""
        kind = f"{'per source, ' if coefficient.per_source else ''}{_range(coefficient.low, coefficient.high)}{scale}"
    default = "" if coefficient.default is None else f", default {_setting(coefficient.default)}"
    return f"`{coefficient.name}` ({kind}{default}): {coefficient.doc}"


def _shorthand(shorthand: Shorthand) -> str:
    kind = f"for {shorthand.n_sources} sources, {_range(shorthand.low, shorthand.high)}"
    return f"`{shorthand.name}` ({kind}): {shorthand.doc}"


def _option(option: Option) -> str:
    if option is ARITHMETIC:
        return f"`{option.name}`"
    return f"`{option.name}` = {_setting(option.default)}: {option.doc}"


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "any number"
    if math.isinf(high):
        return f"{low:g} or more"
    return f"{low:g} to {high:g}"


def _setting(value: bool | float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _needs(method: MergeMethod) -> str:
    fewest, most = method.min_sources, method.max_sources
    number = f"{fewest}" if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
    sources = f"{number} source{'' if number == '1' else 's'}"
    if method.measured:
        sources += f"; a {', a '.join(method.measured)} of each, measured on examples or given"
    if method.needs_base:
        return f"a base and {sources}"
    return f"{sources}, base optional" if method.takes_base else sources

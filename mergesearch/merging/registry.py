"""The registry of merge methods, filled by the files of `merging/methods/`.

`@merge_method` reads a kernel's signature (see `merging/kernel.py`) and makes a `MergeMethod` of it: search
spaces, the study file's checks, the table in the docs and the conformance tests all derive from that.
"""

from __future__ import annotations

import inspect
import math
import types
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from mergesearch.errors import MergeError, unknown
from mergesearch.merging.declared import ARITHMETIC, EQUAL, PROPERTIES, Coefficient, OneShot, Option, Shorthand
from mergesearch.merging.kernel import Choice, Doc, Measured, PerSource, Range, Site, Tensors, Workspace
from mergesearch.merging.method import MergeMethod, kernel_parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from mergesearch.recipe import CoefficientValue

__all__ = [
    "EQUAL",
    "METHODS",
    "Choice",
    "Doc",
    "Measured",
    "MergeMethod",
    "OneShot",
    "PerSource",
    "Range",
    "Shorthand",
    "Site",
    "Tensors",
    "Workspace",
    "get_method",
    "merge_method",
]

METHODS: dict[str, MergeMethod] = {}
"""Every merge method by name."""

_GIVEN = frozenset({"tensors", "base", "out", "work", "site", "start", "prepared"})


def get_method(name: str) -> MergeMethod:
    """The method of that name.

    Raises:
        MergeError: if there is none, with the closest name suggested.
    """
    if name not in METHODS:
        raise MergeError(unknown("merge method", name, METHODS))
    return METHODS[name]


def merge_method(
    *,
    title: str,
    paper: str,
    by_rows: bool = False,
    prepare: Callable[..., Any] | None = None,
    alone: Callable[[int, int], dict[str, CoefficientValue]] | None = None,
    min_sources: int = 1,
    max_sources: int | None = None,
    properties: Iterable[str] = (),
    dense: str = "",
    parity: str = "",
    mergekit: Callable[..., torch.Tensor] | None = None,
    shorthands: Sequence[Shorthand] = (),
    one_shot: OneShot | None = None,
) -> Callable[[Callable[..., torch.Tensor]], MergeMethod]:
    """Register the decorated kernel under its own name.

    Args:
        title: the method's name for people.
        paper: URL of what it follows.
        by_rows: the kernel sees blocks of whole rows (along the last dimension) and not flat pieces.
        prepare: takes `site`, `work`, coefficients and options by name; the kernel gets its result as `prepared`.
        alone: (index of a source, number of sources) to the coefficients, without those that have defaults, that
            give this source exactly; for methods without weights.
        min_sources: fewest sources, base left out.
        max_sources: most sources, base left out; None for any number.
        properties: names in `PROPERTIES`; the conformance suite tests them.
        dense: name of the method that it equals where every `density` is 1, if that is another; tested likewise.
        parity: how its results compare to mergekit's, for the table in the docs.
        mergekit: the same as mergekit computes it (see `merging/mergekit_arithmetic.py`), which adds the option
            `arithmetic`.
        shorthands: ways to write the coefficients as one number.
        one_shot: what to merge with where nothing is searched, as the paper has it; None where a coefficient has no
            value that could stand for all models.

    Raises:
        TypeError: for a signature that is not of the form that `merging/kernel.py` describes.
    """

    def register(kernel: Callable[..., torch.Tensor]) -> MergeMethod:
        coefficients, options, measured = _declared(kernel)
        if mergekit is not None:
            options.append(ARITHMETIC)
        parameters = inspect.signature(kernel).parameters
        method = MergeMethod(
            name=kernel.__name__,
            title=title,
            paper=paper,
            doc=inspect.getdoc(kernel) or "",
            coefficients=types.MappingProxyType({c.name: c for c in coefficients}),
            options=types.MappingProxyType({o.name: o for o in options}),
            measured=types.MappingProxyType(measured),
            needs_base="base" in parameters and parameters["base"].default is inspect.Parameter.empty,
            takes_base="base" in parameters,
            min_sources=min_sources,
            max_sources=max_sources,
            by_rows=by_rows,
            properties=frozenset(properties),
            dense=dense,
            parity=parity,
            shorthands=types.MappingProxyType({s.name: s for s in shorthands}),
            one_shot=one_shot,
            kernel=kernel,
            mergekit=mergekit,
            prepare=prepare,
            alone=alone,
            wants=frozenset(parameters) & _GIVEN,
            prepare_wants=frozenset(inspect.signature(prepare).parameters) if prepare else frozenset(),
        )
        _check(method)
        METHODS[method.name] = method
        return method

    return register


def _declared(kernel: Callable[..., Any]) -> tuple[list[Coefficient], list[Option], dict[str, Measured]]:
    """Coefficients, options and what is measured of a kernel's signature, in its order."""
    coefficients, options, measured = [], [], {}
    hints = get_type_hints(kernel, include_extras=True)
    for parameter in inspect.signature(kernel).parameters.values():
        if parameter.name in _GIVEN:
            continue
        name = parameter.name.removesuffix("_")
        hint = hints.get(parameter.name)
        kind, mark = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        if isinstance(mark, Range) and kind in (float, PerSource):
            per_source = kind == PerSource
            coefficients.append(Coefficient(name, per_source, mark.low, mark.high, default, mark.log, mark.doc))
        elif isinstance(mark, Choice) and kind is int:
            coefficients.append(Coefficient(name, False, 0.0, math.inf, default, False, mark.doc, names_sources=True))
        elif isinstance(mark, Doc) and kind in (bool, float, str) and default is not None:
            options.append(Option(name, default, kind, mark.text, low=mark.low, high=mark.high))
        elif isinstance(mark, Measured) and kind == PerSource and default is None:
            measured[name] = mark
        else:
            raise TypeError(
                f"{kernel.__name__}({parameter.name}): expected one of {', '.join(sorted(_GIVEN))}, "
                "Annotated[float | PerSource, Range(...)], Annotated[int, Choice(...)], "
                "Annotated[PerSource, Measured(...)], or Annotated[bool | float | str, Doc(...)] with a default"
            )
        if kernel_parameter(name) != parameter.name:
            raise TypeError(f"{kernel.__name__}({parameter.name}): only a Python keyword takes an underscore")
    return coefficients, options, measured


def _check(method: MergeMethod) -> None:
    """Refuse declarations that contradict themselves."""
    for name in method.properties - PROPERTIES.keys():
        raise TypeError(unknown(f"property of {method.name}", name, PROPERTIES))
    if (method.prepare is not None) != ("prepared" in method.wants):
        raise TypeError(f"{method.name}: `prepare=` and a parameter `prepared` belong together")
    declared = {kernel_parameter(name) for name in (*method.coefficients, *method.options)}
    for name in method.prepare_wants - declared - {"site", "work"}:
        raise TypeError(unknown(f"coefficient or option that {method.name} prepares with", name, declared))
    if method.dense and "density" not in method.coefficients:
        raise TypeError(f"{method.name}: `dense=` belongs to methods with a density")
    if method.one_shot is not None:
        for name in method.one_shot.coefficients.keys() - method.coefficients.keys():
            raise TypeError(unknown(f"coefficient of {method.name}'s one-shot merge", name, method.coefficients))
        for name in method.one_shot.options.keys() - method.options.keys():
            raise TypeError(unknown(f"option of {method.name}'s one-shot merge", name, method.options))
    if "zero_task_vectors" in method.properties and not method.needs_base:
        raise TypeError(f"{method.name}: task vectors need a base")
    if method.name in METHODS and METHODS[method.name].kernel.__module__ != method.kernel.__module__:
        raise TypeError(f"two merge methods are called {method.name}")

"""Prompts as dimensions: choices without an order, beside the coefficients.

A prompt changes no weight. What stands before queries may change while the documents stay as they are, so these
dimensions come last, where they vary fastest; those of documents come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mergesearch.search.dimension import Dimension

_DOCUMENTS = "prompt.document"


def prompt_dimension(kind: str, texts: Sequence[str], collection: str | None = None) -> Dimension:
    """A choice between texts; the value is a text's place in the list, from 0.

    Args:
        kind: `query` or `document`.
        texts: at least one, all different.
        collection: whose prompt alone it is; None for that of all collections without their own.
    """
    name = ".".join(["prompt", kind, *([] if collection is None else [collection])])
    values = tuple(float(i) for i in range(len(texts)))
    return Dimension(name, 0.0, values[-1], values=values, names=tuple(texts), ordered=False)


def of_documents(dimension: Dimension) -> bool:
    """Whether it is a prompt of documents."""
    return not dimension.ordered and f"{dimension.name}.".startswith(f"{_DOCUMENTS}.")


def around(prompts: Iterable[Dimension], coefficients: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """All of them in the order of a space."""
    prompts = tuple(prompts)
    first = tuple(d for d in prompts if of_documents(d))
    return (*first, *coefficients, *(d for d in prompts if d not in first))

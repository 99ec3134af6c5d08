"""Libraries that find the documents nearest to queries, one file each; `get_backend("torch")` by name.

A backend only proposes: `search.TopK` scores its proposals again, always in the same way, so every backend
gives the same ranking, ties included. Dropping a file into this folder is all it takes to add one;
tests/conformance/test_search_backends.py runs over the registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from mergesearch.errors import EvaluationError, unknown

if TYPE_CHECKING:
    from torch import Tensor


class SearchBackend(ABC):
    """Finds largest inner products. One object serves one thread.

    Notation: C documents of a chunk, Q queries, E embedding dimensions.

    An implementer must guarantee that reported scores are plain fp32 inner products: each within
    E · 2⁻²⁴ · ‖query‖ · ‖document‖ of the exact value. TF32 and quantised indexes break that promise.
    """

    @abstractmethod
    def open(self, documents_CE: Tensor) -> None:
        """Hold a chunk of documents, fp32, in place of the one before."""

    @abstractmethod
    def best(self, queries_QE: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The `n` best documents of the chunk for every query, ties in any order.

        Args:
            queries_QE: fp32, on the device of the documents.
            n: at least 1 and at most C.

        Returns:
            Scores, fp32 [Q, n], descending, and positions in the chunk, int64 [Q, n]; on the queries' device.
        """


BACKENDS: dict[str, type[SearchBackend]] = {}

_Backend = TypeVar("_Backend", bound=type[SearchBackend])


class backend:  # noqa: N801 (a decorator)
    """Register a `SearchBackend` under a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, cls: _Backend) -> _Backend:
        """Enter `cls` in the registry and hand it back."""
        BACKENDS[self.name] = cls
        return cls


def get_backend(name: str) -> SearchBackend:
    """A new backend of the given name.

    Raises:
        EvaluationError: there is none of that name, or its library is not installed.
    """
    if name not in BACKENDS:
        raise EvaluationError(unknown("search backend", name, BACKENDS))
    return BACKENDS[name]()


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

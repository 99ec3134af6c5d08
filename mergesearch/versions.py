"""Which software a study's scores come from."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of what scores may depend on, and of this machine's Python."""
    names = ("mergesearch", "torch", "transformers", "sentence-transformers", "optuna", "numpy", "tokenizers", "ray")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found

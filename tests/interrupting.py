"""Trainings that are interrupted and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import file_hashes


def interrupted_and_resumed(train: Callable[..., Any], folder: Path, *, after: int) -> Any:
    """Interrupt a training after a step and let it go on: the same files as undisturbed, and then finished.

    Args:
        train: called with a folder to leave, and with `progress` and `save_every_s`.
        folder: of all that is made; the interrupted one is `out`.
        after: how many steps.

    Returns:
        What the undisturbed training returned.
    """
    undisturbed = train(folder / "undisturbed")

    def stop(done: int, _: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder / "out", save_every_s=0, progress=stop)
    seen: list[int] = []
    train(folder / "out", progress=lambda done, _: seen.append(done))
    assert seen[0] == after - 1
    assert file_hashes(folder / "out") == file_hashes(undisturbed.folder)
    assert train(folder / "out").before
    return undisturbed

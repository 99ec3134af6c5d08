"""A tiny model to train, and one thread to do it: `pytest_plugins = ["tests.training_fixtures"]` gives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_models import make_tiny


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models of kilobytes gain nothing from threads and lose much where other work waits for the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("bert", tmp_path_factory.mktemp("models") / "bert", n_layers=2)

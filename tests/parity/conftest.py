"""Models that parity tests merge."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.merge_speed import minilm
from tests.parity.against_mergekit import Model


@pytest.fixture(scope="session")
def full_size() -> dict[str, Model]:
    """Three models of MiniLM's size, as far apart as fine-tuning takes them."""
    retriever = minilm()
    generator = torch.Generator().manual_seed(0)

    def tuned() -> Model:
        return {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in retriever.items()}

    return {"a_retriever": retriever, "b_domain": tuned(), "c_expert": tuned()}


@pytest.fixture(scope="session")
def models(full_size: dict[str, Model]) -> dict[str, Model]:
    """A few rows of every tensor, for the cases that are many."""
    return {name: {n: t[:50].clone() for n, t in model.items()} for name, model in full_size.items()}

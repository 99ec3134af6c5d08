"""A list of numbers gives every layer what it gives in mergekit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.search.gradients import knot_shares, mix
from mergesearch.sources.groups import Grouping, make_groups
from tests.unit.test_sources_groups import layout_of

mergekit = pytest.importorskip("mergekit.config", reason="mergekit is not installed (extra: parity)")


@given(values=st.lists(st.floats(-2, 2), min_size=2, max_size=6), n_layers=st.integers(2, 40))
def test_gradients_over_layers(values: list[float], n_layers: int) -> None:
    layers = make_groups(Grouping(per_layer=True), layout_of(n_layers, ()))
    ours = [mix(dict(enumerate(values)), knot_shares(layer.depth, len(values))) for layer in layers]
    # mergekit's planner takes t from the layer's index in this way.
    positions = [i / (n_layers - 1) for i in range(n_layers)]
    theirs = [mergekit.evaluate_setting("w", values, t, validate=float) for t in positions]
    assert ours == pytest.approx(theirs, abs=1e-8)

"""Coefficients that change over the depth of a model, and those that are given for its components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.merging.registry import METHODS
from tests.search_toys import SEGMENTS, problems_of, space_of

LAYERS = tuple(f"layer_{i}" for i in range(5))
ENDS_TO_ENDS = [i / 4 for i in range(5)]


def test_a_gradient_is_searched_at_its_knots() -> None:
    space = space_of({"alpha": {"low": 0, "high": 1, "knots": 3}}, groups=LAYERS, depths=ENDS_TO_ENDS)
    assert [d.name for d in space.dimensions] == ["alpha.knot_1", "alpha.knot_2", "alpha.knot_3"]
    found = space.coefficients({"alpha.knot_1": 0.2, "alpha.knot_2": 1, "alpha.knot_3": 0})
    assert [c["weight"]["retriever"] for c in found.values()] == [0.2, 0.6, 1, 0.5, 0]  # type: ignore[index,call-overload]
    assert found["layer_3"] == {"weight": {"retriever": 0.5, "domain": 0.5}}


@pytest.mark.parametrize(
    ("tie", "names"),
    [
        (None, ["weight.a.knot_1", "weight.a.knot_2", "weight.b.knot_1", "weight.b.knot_2"]),
        ("sources", ["weight.knot_1", "weight.knot_2"]),
    ],
)
def test_gradients_of_a_coefficient_per_source(tie: str | None, names: list[str]) -> None:
    entry = {"values": [0, 0.1, 1], "knots": 2} | ({"tie": tie} if tie else {})
    space = space_of({"weight": entry}, sources=("a", "b"), groups=LAYERS, depths=ENDS_TO_ENDS)
    assert sorted(d.name for d in space.dimensions) == names
    assert space.size() == 3 ** len(names), "a grid goes over the knots"
    one = space_of({"weight": {"a": 1, "b": {"low": 0, "high": 1, "knots": 2}}}, sources=("a", "b"), groups=SEGMENTS)
    assert one.coefficients({"weight.b.knot_1": 0, "weight.b.knot_2": 1}) == {
        "segment_1": {"weight": {"a": 1, "b": 0.25}},
        "segment_2": {"weight": {"a": 1, "b": 0.75}},
    }


def test_a_gradient_may_be_fixed() -> None:
    space = space_of(
        {"weight": {"a": [0, 0.5, 1], "b": {"low": 0, "high": 1, "tie": "groups"}}},
        sources=("a", "b"),
        groups=LAYERS,
        depths=ENDS_TO_ENDS,
    )
    found = space.coefficients({"weight.b": 0.5})
    assert [c["weight"]["a"] for c in found.values()] == [0, 0.25, 0.5, 0.75, 1]  # type: ignore[index,call-overload]


def test_components_of_a_layer_have_its_depth_and_ends_have_the_ends() -> None:
    groups = ("embeddings", "segment_1_attention", "segment_1_mlp", "segment_2_attention", "final_norm")
    space = space_of({"alpha": {"low": 0, "high": 1, "knots": 2}}, groups=groups, depths=(0.0, 0.25, 0.25, 0.75, 1.0))
    found = space.coefficients({"alpha.knot_1": 0, "alpha.knot_2": 1})
    assert [found[g]["weight"]["retriever"] for g in groups] == [0, 0.25, 0.25, 0.75, 1]  # type: ignore[index,call-overload]


DIVIDED = tuple(f"layer_{i}_{c}" for i in range(3) for c in ("attention", "mlp", "norms"))


def test_a_component_stands_for_its_groups() -> None:
    config = {
        "t": {
            "attention": {"low": 0, "high": 1, "knots": 2},
            "mlp": {"low": 0, "high": 1, "tie": "groups"},
            "norms": [0.2, 0.6],
            "layer_1_norms": {"low": 0, "high": 1},
            "embeddings": 0.5,
        }
    }
    depths = (0.0, *(d for d in (0.0, 0.5, 1.0) for _ in range(3)))
    space = space_of(config, method="slerp", groups=("embeddings", *DIVIDED), depths=depths)
    point = {"t.attention.knot_1": 0.0, "t.attention.knot_2": 1.0, "t.mlp": 0.3, "t.layer_1_norms": 0.9}
    assert {d.name for d in space.dimensions} == set(point)
    found = {group: coefficients["t"] for group, coefficients in space.coefficients(point).items()}
    assert [found[f"layer_{i}_attention"] for i in range(3)] == [0.0, 0.5, 1.0]
    assert {found[f"layer_{i}_mlp"] for i in range(3)} == {0.3}
    assert [found[f"layer_{i}_norms"] for i in range(3)] == [0.2, 0.9, 0.6]
    assert space.locate(space.coefficients(point)) == point


def test_components_of_sources_and_mistakes_about_them() -> None:
    per_source = {
        "weight": {"retriever": {"attention": 1.0, "mlp": 0.5, "norms": 0.5}, "domain": {"low": 0, "high": 1}}
    }
    depths = tuple(d for d in (0.0, 0.5, 1.0) for _ in range(3))
    space = space_of(per_source, groups=DIVIDED, depths=depths)
    assert len(space.dimensions) == 9
    every = {"weight": {"attention": 1.0, "mlp": {"low": 0, "high": 1}, "norms": 0.5}}
    names = {d.name for d in space_of(every, groups=DIVIDED, depths=depths).dimensions}
    assert "weight.domain.layer_0_mlp" in names
    (missing, *_) = problems_of(
        {"t": {"attention": {"low": 0, "high": 1}}}, method="slerp", groups=DIVIDED, depths=depths
    )
    assert missing == "t: has no value for group 'layer_0_mlp'"
    (unknown, *_) = problems_of({"t": {"attentoin": 0.5}}, method="slerp", groups=DIVIDED, depths=depths)
    assert "Did you mean 'attention'" in unknown
    assert "unknown group 'attention'" in problems_of({"t": {"attention": {"low": 0, "high": 1}}}, method="slerp")[0]


@given(
    depths=st.lists(st.integers(0, 64).map(lambda k: k / 64), min_size=1, max_size=12, unique=True).map(sorted),
    knots=st.integers(2, 5),
    data=st.data(),
)
def test_gradients_interpolate_and_are_found_again(depths: list[float], knots: int, data: st.DataObject) -> None:
    groups = tuple(f"layer_{i}" for i in range(len(depths)))
    config = {"alpha": {"low": 0, "high": 1, "knots": knots}}
    reachable = np.array([np.interp(depths, np.linspace(0, 1, knots), row) for row in np.eye(knots)]).T
    if np.linalg.matrix_rank(reachable) < knots:
        assert "knots apart" in "".join(problems_of(config, groups=groups, depths=depths))
        return
    space = space_of(config, groups=groups, depths=depths)
    numbers = data.draw(st.lists(st.integers(0, 1000).map(lambda k: k / 1000), min_size=knots, max_size=knots))
    params = {f"alpha.knot_{k + 1}": value for k, value in enumerate(numbers)}
    found = space.coefficients(params)
    alphas = [found[g]["weight"]["retriever"] for g in groups]  # type: ignore[index,call-overload]
    assert alphas == pytest.approx(reachable @ numbers, abs=1e-9)
    assert space.locate(found) == pytest.approx(params, abs=1e-9)
    constant = space.coefficients(dict.fromkeys(params, numbers[0]))
    assert constant == space_of({"alpha": {"low": 0, "high": 1, "tie": "groups"}}, groups=groups).coefficients(
        {"alpha": numbers[0]}
    ), "equal knots are a constant, to the last digit"
    assert space.locate(constant) == dict.fromkeys(params, numbers[0])


def test_anchors_lie_on_gradients_of_equal_knots() -> None:
    space = space_of({"weight": {"low": 0, "high": 1, "knots": 3}}, sources=("a", "b", "c"), groups=LAYERS)
    third = dict.fromkeys(LAYERS, METHODS["linear"].uniform(["a", "b", "c"]))
    params = space.locate(third)  # type: ignore[arg-type]
    assert params == dict.fromkeys(space.by_name, 1 / 3)
    assert space.coefficients(params) == third
    bent = {**third, "layer_2": {"weight": {"a": 1.0, "b": 0.0, "c": 0.0}}}
    assert space.locate(bent) is None  # type: ignore[arg-type]

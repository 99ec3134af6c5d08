"""Groups partition the model, in its order, by the rules that were given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.errors import SourceError
from mergesearch.sources.groups import RULES, Grouping, make_groups
from mergesearch.sources.layout import Layout, Parameter

ENDS = ("embeddings", "final_norm", "pooler")


def layout_of(n_layers: int, ends: tuple[str, ...] = ENDS) -> Layout:
    places = [*ends, *(f"layer.{i}" for i in range(n_layers))]
    parameters = {place: Parameter(place, (2, 2), place) for place in places}
    return Layout(parameters, {}, (), n_layers, "layers", "tiny", 10, 2)


def as_dict(grouping: Grouping, layout: Layout) -> dict[str, tuple[tuple[str, ...], bool]]:
    return {group.name: (group.places, group.merged) for group in make_groups(grouping, layout)}


def test_default_rules() -> None:
    assert as_dict(Grouping(segments=2), layout_of(5)) == {
        "embeddings": (("embeddings",), False),
        "segment_1": (("layer.0", "layer.1", "layer.2"), True),
        "segment_2": (("layer.3", "layer.4", "final_norm"), True),
        "pooler": (("pooler",), False),
    }


def test_boundaries_and_own_groups() -> None:
    grouping = Grouping(boundaries=(1, 3), embeddings="own", final_norm="template", pooler="last_segment")
    assert as_dict(grouping, layout_of(4)) == {
        "embeddings": (("embeddings",), True),
        "segment_1": (("layer.0",), True),
        "segment_2": (("layer.1", "layer.2"), True),
        "segment_3": (("layer.3", "pooler"), True),
        "final_norm": (("final_norm",), False),
    }


def test_per_layer() -> None:
    grouping = Grouping(per_layer=True, embeddings="first_segment")
    assert as_dict(grouping, layout_of(2, ("embeddings",))) == {
        "layer_0": (("embeddings", "layer.0"), True),
        "layer_1": (("layer.1",), True),
    }


rule = st.sampled_from(RULES)


@given(
    n_layers=st.integers(1, 40),
    data=st.data(),
    ends=st.sets(st.sampled_from(ENDS)),
    rules=st.tuples(rule, rule, rule),
)
def test_every_place_is_in_exactly_one_group_in_order(
    n_layers: int, data: st.DataObject, ends: set[str], rules: tuple[str, str, str]
) -> None:
    layout = layout_of(n_layers, tuple(end for end in ENDS if end in ends))
    segments = data.draw(st.integers(1, n_layers))
    grouping = Grouping(segments=segments, embeddings=rules[0], final_norm=rules[1], pooler=rules[2])
    groups = make_groups(grouping, layout)
    held = [place for group in groups for place in group.places]
    assert sorted(held) == sorted(layout.places)
    assert len({group.name for group in groups}) == len(groups)
    lengths = [sum(p.startswith("layer.") for p in g.places) for g in groups if g.name.startswith("segment_")]
    assert len(lengths) == segments
    assert max(lengths) - min(lengths) <= 1
    own = [[p for p in group.places if p.startswith("layer.")] or list(group.places) for group in groups]
    firsts = [layout.places.index(places[0]) for places in own]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(
    ("grouping", "message"),
    [
        (Grouping(), "exactly one of segments, boundaries and per_layer; given: none"),
        (Grouping(segments=2, per_layer=True), "given: segments, per_layer"),
        (Grouping(segments=5), "segments is 5, but the model has 4 layers: choose 1 to 4"),
        (Grouping(segments=0), "segments is 0"),
        (Grouping(boundaries=(0,)), "boundary 0 is outside the model"),
        (Grouping(boundaries=(4,)), "boundary 4 is outside the model"),
        (Grouping(boundaries=(3, 1)), "must increase"),
        (Grouping(boundaries=(2, 2)), "must increase"),
        (Grouping(segments=1, pooler="lst_segment"), "Did you mean 'last_segment'"),
    ],
)
def test_what_a_model_cannot_have(grouping: Grouping, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        make_groups(grouping, layout_of(4))


def test_all_problems_at_once() -> None:
    with pytest.raises(SourceError) as caught:
        make_groups(Grouping(segments=9, embeddings="x", pooler="y"), layout_of(4))
    assert len(caught.value.problems) == 3

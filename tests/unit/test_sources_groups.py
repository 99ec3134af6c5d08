"""Groups partition the model, in its order, by the rules that were given."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.errors import SourceError
from mergesearch.sources.groups import RULES, Group, Grouping, make_groups
from mergesearch.sources.layout import COMPONENTS, Layout, Parameter

ENDS = ("embeddings", "final_norm", "pooler")


def layout_of(n_layers: int, ends: tuple[str, ...] = ENDS) -> Layout:
    places = [*ends, *(f"layer.{i}.{component}" for i in range(n_layers) for component in COMPONENTS)]
    parameters = {place: Parameter(place, (2, 2), place) for place in places}
    return Layout(parameters, {}, (), n_layers, "layers", "tiny", 10, 2, "embeddings")


def whole(*layers: int) -> tuple[str, ...]:
    return tuple(f"layer.{i}.{component}" for i in layers for component in COMPONENTS)


def as_dict(grouping: Grouping, layout: Layout) -> dict[str, tuple[tuple[str, ...], bool]]:
    return {group.name: (group.places, group.merged) for group in make_groups(grouping, layout)}


def test_default_rules() -> None:
    assert as_dict(Grouping(segments=2), layout_of(5)) == {
        "embeddings": (("embeddings",), False),
        "segment_1": (whole(0, 1, 2), True),
        "segment_2": ((*whole(3, 4), "final_norm"), True),
        "pooler": (("pooler",), False),
    }


def test_boundaries_and_own_groups() -> None:
    grouping = Grouping(boundaries=(1, 3), embeddings="own", final_norm="template", pooler="last_segment")
    assert as_dict(grouping, layout_of(4)) == {
        "embeddings": (("embeddings",), True),
        "segment_1": (whole(0), True),
        "segment_2": (whole(1, 2), True),
        "segment_3": ((*whole(3), "pooler"), True),
        "final_norm": (("final_norm",), False),
    }


def test_per_layer() -> None:
    grouping = Grouping(per_layer=True, embeddings="first_segment")
    assert as_dict(grouping, layout_of(2, ("embeddings",))) == {
        "layer_0": (("embeddings", *whole(0)), True),
        "layer_1": (whole(1), True),
    }


def test_components_take_in_what_is_of_their_kind() -> None:
    grouping = Grouping(boundaries=(1,), components=True, embeddings="first_segment", pooler="last_segment")
    assert as_dict(grouping, layout_of(3)) == {
        "segment_1_attention": (("layer.0.attention",), True),
        "segment_1_mlp": (("embeddings", "layer.0.mlp"), True),
        "segment_1_norms": (("layer.0.norms",), True),
        "segment_2_attention": (("layer.1.attention", "layer.2.attention"), True),
        "segment_2_mlp": (("layer.1.mlp", "layer.2.mlp", "pooler"), True),
        "segment_2_norms": (("layer.1.norms", "layer.2.norms", "final_norm"), True),
    }


def test_depths_are_the_middles_of_the_layers() -> None:
    own = Grouping(boundaries=(1,), embeddings="own", final_norm="own", pooler="own")
    depths = {group.name: group.depth for group in make_groups(own, layout_of(5))}
    assert depths == {"embeddings": 0, "segment_1": 0, "segment_2": 2.5 / 4, "final_norm": 1, "pooler": 1}
    layers = make_groups(Grouping(per_layer=True), layout_of(5, ()))
    assert [group.depth for group in layers] == [0, 0.25, 0.5, 0.75, 1]
    (only,) = make_groups(Grouping(segments=1), layout_of(1, ()))
    assert only.depth == 0.5


rule = st.sampled_from(RULES)


@st.composite
def groupings(draw: st.DrawFn) -> tuple[Grouping, Layout]:
    n_layers = draw(st.integers(1, 20))
    ends = draw(st.sets(st.sampled_from(ENDS)))
    division: dict[str, object] = draw(
        st.one_of(
            st.builds(dict, segments=st.integers(1, n_layers)),
            st.builds(
                dict, boundaries=st.sets(st.integers(1, max(1, n_layers - 1))).map(lambda b: tuple(sorted(b)))
            ).filter(lambda d: n_layers > 1),
            st.builds(dict, per_layer=st.just(True)),
        )
    )
    rules = dict(zip(ENDS, draw(st.tuples(rule, rule, rule)), strict=True))
    grouping = Grouping(**division, components=draw(st.booleans()), **rules)  # type: ignore[arg-type]
    return grouping, layout_of(n_layers, tuple(end for end in ENDS if end in ends))


def layers_of(group: Group) -> list[int]:
    return sorted({int(p.split(".")[1]) for p in group.places if p.startswith("layer.")})


@given(groupings())
def test_every_place_is_in_exactly_one_group_in_order(drawn: tuple[Grouping, Layout]) -> None:
    grouping, layout = drawn
    groups = make_groups(grouping, layout)
    held = [place for group in groups for place in group.places]
    assert sorted(held) == sorted(layout.places)
    assert len({group.name for group in groups}) == len(groups)
    assert all("." not in group.name for group in groups), "problems of study files are placed by dotted keys"
    assert all(a.depth <= b.depth for a, b in pairwise(groups)), "lower groups come first"
    for group in groups:
        assert list(group.places) == sorted(group.places, key=layout.places.index)
        kinds = {p.split(".")[2] for p in group.places if p.startswith("layer.")}
        assert len(kinds) in ((0, 1) if grouping.components else (0, 3))
        assert group.merged or group.name in ENDS
        if layers := layers_of(group):
            assert layers == list(range(layers[0], layers[-1] + 1))
    if grouping.segments is not None:
        lengths = [len(layers_of(group)) for group in groups if group.name.startswith("segment_")]
        assert len(lengths) == grouping.segments * (3 if grouping.components else 1)
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("grouping", "message"),
    [
        (Grouping(), "exactly one of segments, boundaries and per_layer; given: none"),
        (Grouping(segments=2, per_layer=True), "given: segments, per_layer"),
        (Grouping(components=True), "exactly one of segments, boundaries and per_layer; given: none"),
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

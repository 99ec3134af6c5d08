"""From `merge.coefficients` of a study file to points, and from points to coefficients and back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.study import create_study

from mergesearch.errors import StudyFileError
from mergesearch.merging.registry import METHODS
from tests.search_toys import SEGMENTS, problems_of, space_of


def test_the_segment_grid_of_the_paper() -> None:
    space = space_of({"alpha": {"values": [0, 0.25, 0.5, 0.75, 1]}})
    assert [d.name for d in space.dimensions] == ["alpha.segment_1", "alpha.segment_2"]
    assert space.distributions() == dict.fromkeys(
        ["alpha.segment_1", "alpha.segment_2"], FloatDistribution(0.0, 1.0, step=0.25)
    )
    points = list(space.grid())
    assert space.size() == len(points) == 25
    lower = [p["alpha.segment_1"] for p in points]
    assert lower == sorted(lower), "the lower segment changes least often"
    assert space.coefficients({"alpha.segment_1": 0.75, "alpha.segment_2": 1.0}) == {
        "segment_1": {"weight": {"retriever": 0.75, "domain": 0.25}},
        "segment_2": {"weight": {"retriever": 1.0, "domain": 0.0}},
    }


def test_one_minus_alpha_is_written_as_people_write_it() -> None:
    space = space_of({"alpha": {"low": 0, "high": 1, "step": 0.1}}, groups=("all",))
    assert space.coefficients({"alpha.all": 0.9}) == {"all": {"weight": {"retriever": 0.9, "domain": 0.1}}}


def test_constants_ranges_and_groups_mix() -> None:
    space = space_of(
        {
            "weight": {
                "retriever": 1.0,
                "domain": {"low": 0, "high": 1, "step": 0.05},
                "expert": {"segment_1": {"low": -1, "high": 1}, "segment_2": 0.5},
            }
        },
        sources=("retriever", "domain", "expert"),
    )
    names = ["weight.domain.segment_1", "weight.expert.segment_1", "weight.domain.segment_2"]
    assert [d.name for d in space.dimensions] == names
    assert space.size() is None
    assert space.coefficients(dict(zip(names, (0.15, -0.25, 0.3), strict=True))) == {
        "segment_1": {"weight": {"retriever": 1.0, "domain": 0.15, "expert": -0.25}},
        "segment_2": {"weight": {"retriever": 1.0, "domain": 0.3, "expert": 0.5}},
    }


@pytest.mark.parametrize(
    ("tie", "names"),
    [
        (None, ["weight.a.segment_1", "weight.b.segment_1", "weight.a.segment_2", "weight.b.segment_2"]),
        ("groups", ["weight.a", "weight.b"]),
        ("sources", ["weight.segment_1", "weight.segment_2"]),
        ("all", ["weight"]),
    ],
)
def test_ties_of_a_coefficient_per_source(tie: str | None, names: list[str]) -> None:
    entry = {"low": 0, "high": 2} | ({"tie": tie} if tie else {})
    space = space_of({"weight": entry}, sources=("a", "b"))
    assert [d.name for d in space.dimensions] == names
    values = {name: 0.25 * (k + 1) for k, name in enumerate(names)}
    found = space.coefficients(values)
    for group in SEGMENTS:
        for source in ("a", "b"):
            label = {None: f"weight.{source}.{group}", "groups": f"weight.{source}", "sources": f"weight.{group}"}
            assert found[group]["weight"][source] == values[label.get(tie, "weight")]  # type: ignore[index]


def test_lambda_is_one_number_per_group_or_one_for_all() -> None:
    weight = {"a": 1, "b": 1}
    each = space_of(
        {"weight": weight, "lambda": {"low": 0.1, "high": 2, "log": True}},
        method="task_arithmetic",
        sources=("a", "b"),
        base="base",
    )
    assert [d.name for d in each.dimensions] == ["lambda.segment_1", "lambda.segment_2"]
    assert each.dimensions[0].log
    for tie in ("groups", "all"):
        tied = space_of(
            {"weight": weight, "lambda": {"low": 0.1, "high": 2, "tie": tie}},
            method="task_arithmetic",
            sources=("a", "b"),
            base="base",
        )
        assert [d.name for d in tied.dimensions] == ["lambda"]
        assert tied.coefficients({"lambda": 0.5})["segment_2"] == {"weight": {"a": 1.0, "b": 1.0}, "lambda": 0.5}


def test_defaults_fill_what_is_not_said() -> None:
    space = space_of({"weight": {"low": 0, "high": 1}}, method="task_arithmetic", sources=("a",), base="base")
    params = {"weight.a.segment_1": 0.2, "weight.a.segment_2": 0.4}
    assert space.coefficients(params)["segment_1"] == {"weight": {"a": 0.2}, "lambda": 1.0}
    assert space.locate({g: {"weight": {"a": 0.2}} for g in SEGMENTS}) == dict.fromkeys(params, 0.2)


def test_uneven_values_keep_their_order_for_samplers() -> None:
    space = space_of({"alpha": {"values": [1, 0, 0.1]}}, groups=("all",))
    (dimension,) = space.dimensions
    assert dimension.distribution() == CategoricalDistribution((0.0, 0.1, 1.0))
    assert [dimension.to_sampling(v) for v in (0.0, 0.1, 1.0)] == [0, 1, 2]
    assert [dimension.from_sampling(k) for k in (0, 1, 2)] == [0.0, 0.1, 1.0]
    assert [dimension.to_unit(v) for v in (0.0, 0.1, 1.0)] == [0.0, 0.5, 1.0]


def test_anchors_are_found_where_the_space_holds_them() -> None:
    method = METHODS["linear"]
    space = space_of({"alpha": {"low": 0.25, "high": 1, "step": 0.25}})
    sources = ["retriever", "domain"]
    alone = [method.coefficients_for_source(s, sources) for s in sources]
    uniform = method.uniform(sources)
    assert alone[0] is not None
    assert alone[1] is not None
    assert uniform is not None
    assert space.locate(dict.fromkeys(SEGMENTS, alone[0])) == dict.fromkeys(space.by_name, 1.0) == space.template
    assert space.locate(dict.fromkeys(SEGMENTS, alone[1])) is None
    assert space.locate(dict.fromkeys(SEGMENTS, uniform)) == dict.fromkeys(space.by_name, 0.5)
    assert space.locate({"segment_1": alone[0], "segment_2": uniform}) == {
        "alpha.segment_1": 1.0,
        "alpha.segment_2": 0.5,
    }


def test_a_third_is_located_although_it_has_no_end() -> None:
    space = space_of({"weight": {"low": 0, "high": 1}}, sources=("a", "b", "c"), groups=("all",))
    third = {"all": METHODS["linear"].uniform(["a", "b", "c"])}
    params = space.locate(third)  # type: ignore[arg-type]
    assert params is not None
    assert space.coefficients(params) == third, "to the last digit, or the recipe would be another one"


CONFIGS: list[dict[str, Any]] = [
    {"alpha": {"low": 0, "high": 1, "knots": 2}},
    {"weight": {"retriever": {"low": 0.1, "high": 1, "log": True, "knots": 2}, "domain": [0.25, 1, 0.5]}},
    {"weight": {"values": [0.5, 1, 4], "tie": "sources", "knots": 2}},
    {"alpha": {"low": 0, "high": 1}},
    {"alpha": {"values": [0.1, 0.2, 0.9], "tie": "groups"}},
    {"alpha": {"segment_1": {"low": 0.001, "high": 1, "log": True}, "segment_2": 0.5}},
    {"weight": {"low": -1, "high": 2, "step": 0.25, "tie": "sources"}},
    {"weight": {"retriever": 1, "domain": {"low": 0, "high": 1, "tie": "groups"}}},
    {"weight": {"retriever": {"low": 0.5, "high": 0.5}, "domain": {"values": [0.25]}}},
    {"weight": {"segment_1": {"low": 0, "high": 1}, "segment_2": {"low": 0, "high": 1, "tie": "sources"}}},
]


@given(config=st.sampled_from(CONFIGS), seed=st.integers(0, 10_000))
def test_points_and_coefficients_are_two_names_of_the_same(config: dict[str, Any], seed: int) -> None:
    space = space_of(config)
    trial = create_study(sampler=RandomSampler(seed)).ask(space.distributions())
    params = space.snap(trial.params)
    assert space.contains(trial.params)
    assert space.locate(space.coefficients(params)) == pytest.approx(params, rel=1e-9)
    assert space.find(params) == space.point(params)
    assert space.find({**params, "more": 1.0}) is None
    shifted = space.coefficients(params)
    shifted["segment_1"] = {"weight": {"retriever": 77.0, "domain": -5.0}}
    assert space.locate(shifted) is None


@pytest.mark.parametrize("config", CONFIGS)
def test_the_record_is_json_and_tells_spaces_apart(config: dict[str, Any]) -> None:
    record = space_of(config).to_dict()
    assert json.loads(json.dumps(record)) == record == space_of(config).to_dict()
    others = [space_of(c).to_dict() for c in CONFIGS if c != config]
    assert record not in others


def test_a_point_of_the_user_is_checked() -> None:
    space = space_of({"alpha": {"low": 0, "high": 1, "step": 0.25}})
    with pytest.raises(StudyFileError) as caught:
        space.coefficients({"alpha.segment_1": 0.3, "alfa.segment_2": 1})
    messages = "\n".join(str(p) for p in caught.value.problems)
    assert "alpha.segment_1: 0.3 is not in the space; the closest is 0.25" in messages
    assert "alpha.segment_2: has no value" in messages
    assert "Did you mean 'alpha.segment_2'" in messages
    with pytest.raises(StudyFileError, match="is not in the space"):
        space.coefficients({"alpha.segment_1": math.nan, "alpha.segment_2": 1})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "weight: linear needs it: give a number or a range, or write alpha"),
        ({"alpha": 0.5}, "there is nothing to search"),
        ({"alfa": {"low": 0, "high": 1}}, "Did you mean 'alpha'"),
        ({"alpha": {"low": 0, "high": 1}, "weight": 1}, "weight: is already given by alpha; keep one of them"),
        ({"alpha": {"low": 0, "high": 1, "stop": 1}}, "alpha.stop: unknown key 'stop'. Did you mean 'step'"),
        ({"alpha": {"low": 0}}, "alpha.high: is required"),
        ({"alpha": {"low": "a", "high": 1}}, "alpha.low: expected a number, found 'a'"),
        ({"alpha": {"low": 1, "high": 0}}, "alpha: low 1 is above high 0"),
        ({"alpha": {"low": 0, "high": 1.5}}, "alpha.high: 1.5 is outside of what the method allows, 0 to 1"),
        ({"alpha": {"values": [0.5, 2]}}, "alpha.values: 2 is outside of what the method allows, 0 to 1"),
        ({"alpha": {"values": [0.5, 0.5]}}, "alpha.values: 0.5 is listed twice"),
        ({"alpha": {"values": []}}, "alpha.values: expected a list of numbers"),
        ({"alpha": {"values": [0, True]}}, "alpha.values: expected a number, found True"),
        ({"alpha": {"values": [0], "step": 1}}, "alpha.values: cannot stand beside step"),
        ({"alpha": {"low": 0, "high": 1, "step": 0.3}}, "alpha.step: steps of 0.3 from 0 do not end at 1"),
        ({"alpha": {"low": 0, "high": 1, "step": -1}}, "alpha.step: expected a number above 0"),
        ({"alpha": {"low": 0, "high": 1, "step": 1e-7}}, "alpha.step: gives more than 100,000 values"),
        ({"alpha": {"low": 0, "high": 1, "log": True}}, "alpha.low: a logarithmic range starts above 0"),
        ({"alpha": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}, "alpha.step: a logarithmic range has no"),
        ({"alpha": {"low": 0, "high": 1, "log": "yes"}}, "alpha.log: expected true or false"),
        ({"alpha": {"low": 0, "high": 1, "tie": "layers"}}, "alpha.tie: unknown tie 'layers'"),
        ({"alpha": {"low": 0, "high": 1, "tie": "sources"}}, "alpha.tie: `tie: sources` belongs directly under"),
        ({"alpha": {"low": 0, "high": math.nan}}, "alpha.high: expected a number, found nan"),
        ({"alpha": {"segment_1": {"low": 0, "high": 1}}}, "alpha: has no value for group 'segment_2'"),
        ({"alpha": {"segment_9": 1}}, "alpha.segment_9: unknown group 'segment_9'"),
        (
            {"alpha": {"segment_1": {"low": 0, "high": 1, "tie": "groups"}, "segment_2": 1}},
            "alpha.segment_1.tie: cannot be tied over groups",
        ),
        ({"weight": {"retriever": {"low": 0, "high": 1}}}, "weight: has no value for source 'domain'"),
        ({"alpha": {"low": 0, "high": 1, "knots": 1}}, "alpha.knots: expected a whole number from 2 to 100, found 1"),
        ({"alpha": {"low": 0, "high": 1, "knots": 2.5}}, "alpha.knots: expected a whole number"),
        ({"alpha": {"low": 0, "high": 1, "knots": 2, "tie": "all"}}, "alpha.tie: one value for all groups is no"),
        ({"alpha": {"low": 0, "high": 1, "knots": 3}}, "alpha.knots: the depths of the groups tell only 2 of 3 knots"),
        (
            {"alpha": {"low": 0, "high": 1, "knots": 2, "segment_1": 0.5}},
            "alpha.segment_1: a range for all groups and one for this group: list every group, or none",
        ),
        (
            {"alpha": {"segment_1": {"low": 0, "high": 1, "knots": 2}, "segment_2": 0.5}},
            "alpha.segment_1: a gradient runs over all groups: write it in place of the groups",
        ),
        ({"alpha": {"segment_1": [0, 1], "segment_2": {"low": 0, "high": 1}}}, "alpha.segment_1: a gradient runs"),
        ({"alpha": [0.5]}, "alpha: a gradient has two or more numbers"),
        ({"alpha": [0.5, 2]}, "alpha: 2 is outside of what the method allows"),
        ({"alpha": [0.5, "x"]}, "alpha: expected a number"),
        ({"weight": {"retriver": 1, "domain": {"low": 0, "high": 1}}}, "weight.retriver: unknown source or group"),
        ({"weight": "much"}, "weight: expected a number"),
    ],
)
def test_mistakes_are_named_with_their_place(config: dict[str, Any], expected: str) -> None:
    assert any(expected in problem for problem in problems_of(config))


SOURCES = ("domain", "retriever", "expert")


def test_a_choice_of_sources_is_written_by_name_and_counted_from_the_template() -> None:
    space = space_of({"source": {"values": ["expert", "retriever"]}}, method="passthrough", sources=SOURCES)
    assert [d.choices() for d in space.dimensions] == [(0.0, 2.0)] * 2
    assert space.coefficients({"source.segment_1": 0.0, "source.segment_2": 2.0}) == {
        "segment_1": {"source": 0.0, "scale": 1.0},
        "segment_2": {"source": 2.0, "scale": 1.0},
    }
    assert space.template == {"source.segment_1": 0.0, "source.segment_2": 0.0}
    mixed = {"source": {"segment_1": "domain", "segment_2": {"values": [0, "domain"]}}, "scale": 0.5}
    fixed = space_of(mixed, method="passthrough", sources=SOURCES)
    assert fixed.coefficients({"source.segment_2": 1.0})["segment_1"] == {"source": 1.0, "scale": 0.5}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("retriver", "source: unknown source 'retriver'. Did you mean 'retriever'"),
        ({"values": ["retriever", "experts"]}, "source.values: unknown source 'experts'. Did you mean 'expert'"),
        ({"values": [0, 3]}, "source.values: 3 is the number of no source: write a name (retriever, domain, expert)"),
        ({"values": [0.5, 1]}, "source.values: 0.5 is the number of no source"),
        ({"values": [True, 1]}, "source.values: expected the name of a source, found True"),
        ({"values": ["domain", 1]}, "source.values: 1 is listed twice"),
        ({"low": 0, "high": 2}, "source: sources are listed by name: {values: [retriever, domain, expert]}"),
        ({"values": ["retriever", "domain"], "knots": 2}, "source: sources are listed by name"),
        (["domain", "expert"], "source: expected the name of a source or {values: […]}, found ['domain', 'expert']"),
        ({"segment_1": "domain"}, "source: has no value for group 'segment_2'"),
    ],
)
def test_mistakes_in_a_choice_of_sources_are_named(entry: Any, expected: str) -> None:
    found = problems_of({"source": entry}, method="passthrough", sources=SOURCES)
    assert any(expected in problem for problem in found), found


def test_all_mistakes_are_reported_at_once() -> None:
    found = problems_of({"weight": {"retriever": "x", "domain": {"low": 2, "high": 1, "lag": True}}, "lambda": 3})
    assert len(found) == 4


def test_a_shorthand_for_two_does_not_fit_three() -> None:
    found = problems_of({"alpha": {"low": 0, "high": 1}}, sources=("retriever", "domain", "expert"))
    assert any("stands for the coefficients of 2 sources, and there are 3" in p for p in found)


def test_a_source_with_a_group_s_name_is_refused() -> None:
    found = problems_of({"weight": {"low": 0, "high": 1}}, sources=("retriever", "segment_1"))
    assert found == ["segment_1: is the name of a source and of a parameter group: rename the source"]

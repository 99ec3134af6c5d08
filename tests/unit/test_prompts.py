"""Prompts that are searched: how a study file lists them, what a point means, and what they leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution

from mergesearch.errors import StudyFileError
from mergesearch.evaluation.pipeline import RetrievalEvaluator, WeightedCollection
from mergesearch.evaluation.raced import RacedEvaluator
from mergesearch.evaluation.racing import RacingSettings
from mergesearch.planning import make_plan
from mergesearch.recipe import MergeRecipe
from mergesearch.resolving import load_study
from mergesearch.search.prefixes import useful_boundaries
from mergesearch.search.prompts import prompt_dimension
from mergesearch.search.registry import STRATEGIES
from mergesearch.storage.record import score_differences
from mergesearch.submitting import pack
from mergesearch.workers.evaluator import TrialEvaluator
from tests.search_toys import drive, make_space, make_strategy, quadratic, soup_space
from tests.tiny_studies import TinyStudy, copy_study, make_beir, make_study

QUERY = ["", "search query ", "this is a query on health "]
FILE = "- ''\n- 'search query '\n- 'this is a query on health '\n"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def tiny(plain: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(plain, tmp_path)


def searched(tiny: TinyStudy, query: Any = None, **prompts: Any) -> TinyStudy:
    return tiny.change("evaluation", "prompts", to={"query": {"values": QUERY} if query is None else query, **prompts})


def problems(tiny: TinyStudy) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        load_study(tiny.file)
    return [str(problem) for problem in caught.value.problems]


def test_a_list_is_a_choice_beside_the_coefficients_and_they_vary_slower(tiny: TinyStudy) -> None:
    study = load_study(searched(tiny, document={"values": ["text ", ""]}).file)
    names = [d.name for d in study.space.dimensions]
    assert names == ["prompt.document", "alpha.segment_1", "alpha.segment_2", "prompt.query"]
    assert study.space.size() == 2 * 3 * 3 * 3
    assert study.space.by_name["prompt.query"].distribution() == CategoricalDistribution((0.0, 1.0, 2.0))
    point = {"prompt.document": 1.0, "alpha.segment_1": 0.5, "alpha.segment_2": 0.5, "prompt.query": 2.0}
    assert study.recipe(point).prompts == {"made": {"query": QUERY[2], "document": ""}}
    assert study.space.label({"prompt.query": 1.0}) == 'prompt.query="search query "'
    assert '"search query "' in str(make_plan(study).tables())


def test_prompts_change_the_fingerprint_and_no_weight(tiny: TinyStudy) -> None:
    study = load_study(searched(tiny).file)
    alphas = {"alpha.segment_1": 0.5, "alpha.segment_2": 1.0}
    one, other = (study.recipe({**alphas, "prompt.query": i}) for i in (1.0, 2.0))
    assert one.fingerprint != other.fingerprint
    assert one.prefix_key(study.layout.places) == other.prefix_key(study.layout.places)
    assert MergeRecipe.from_dict(one.to_dict()) == one


def test_nothing_changes_where_no_prompt_is_searched(tiny: TinyStudy) -> None:
    """Recorded studies go on: neither recipes nor what decides scores say anything of prompts that they did not."""
    before = load_study(tiny.file)
    given = load_study(tiny.change("evaluation", "prompts", to={"query": "search query "}).file)
    point = next(before.space.grid())
    for study in (before, given):
        assert "prompts" not in study.recipe(point).to_dict()
        assert study.recipe(point).fingerprint == before.recipe(point).fingerprint
    collections = given.score_relevant()["evaluation"]["collections"]
    assert collections["made"]["prompts"] == {"query": "search query ", "document": None}
    assert given.score_relevant()["merge"] == before.score_relevant()["merge"]


def test_a_collection_may_choose_for_itself(tiny: TinyStudy) -> None:
    make_beir(tiny.folder / "other", seed=5)
    make_beir(tiny.folder / "third", seed=6)
    listed: list[dict[str, Any]] = [
        {"name": "made", "folder": "collection"},
        {"name": "other", "folder": "other", "prompts": {"query": {"values": ["a", "b"]}}},
        {"name": "third", "folder": "third", "prompts": {"query": "fixed"}},
    ]
    tiny.change("evaluation", "collections", to=listed)
    study = load_study(searched(tiny).file)
    assert [d.name for d in study.space.dimensions[-2:]] == ["prompt.query", "prompt.query.other"]
    point = {"alpha.segment_1": 0, "alpha.segment_2": 0, "prompt.query": 1, "prompt.query.other": 1}
    found = {"made": {"query": QUERY[1]}, "other": {"query": "b"}, "third": {"query": "fixed"}}
    assert study.recipe(point).prompts == found
    listed[0]["prompts"] = {"query": ""}
    tiny.change("evaluation", "collections", to=listed)
    (problem,) = problems(tiny)
    assert "every collection has a prompt of its own" in problem


def test_a_file_lists_the_same_as_values(tiny: TinyStudy, tmp_path: Path) -> None:
    listed = load_study(searched(tiny).file)
    (tmp_path / "prompts.yaml").write_text(FILE)
    study = load_study(searched(tiny, {"file": "prompts.yaml"}).file)
    assert study.score_relevant() == listed.score_relevant()
    for name in ("retriever", "domain"):
        tiny.change("sources", name, to=f"package:{name}")
    tiny.change("evaluation", "collections", to=[{"name": "made", "folder": "/data/made"}])
    from mergesearch.study_file import parse_study

    (tmp_path / "packed").mkdir()
    pack(parse_study(tiny.file), tmp_path / "packed")
    assert (tmp_path / "packed" / "prompts.yaml").read_text() == FILE


@pytest.mark.parametrize(
    ("query", "content", "expected"),
    [
        ({"values": []}, "", "evaluation.prompts.query: expected text or exactly one of `values`"),
        ({"values": ["a"], "file": "b"}, "", "evaluation.prompts.query: expected text or exactly one of `values`"),
        ({"values": ["a", "b", "a"]}, "", "evaluation.prompts.query: expected text or different texts: 'a' is listed"),
        ({"values": ["a", 1]}, "", "evaluation.prompts.query.values.1: expected text, found 1; put it in quotes"),
        ({"value": ["a"]}, "", "evaluation.prompts.query.value: unknown key 'value'. Did you mean 'values'?"),
        ({"file": "none.yaml"}, "", "cannot be read: No such file"),
        ({"file": "prompts.yaml"}, "query: [a]\n", "holds no list of texts"),
        ({"file": "prompts.yaml"}, "- a\n- [\n", "is not valid YAML"),
        ({"file": "prompts.yaml"}, "- a\n- a\n", "lists 'a' twice"),
    ],
)
def test_what_is_no_list_says_so(tiny: TinyStudy, query: Any, content: str, expected: str) -> None:
    (tiny.folder / "prompts.yaml").write_text(content)
    (problem,) = problems(searched(tiny, query))
    assert expected in problem
    assert problem.startswith(f"{tiny.file}:")


def test_other_texts_and_another_order_are_differences_by_name(tiny: TinyStudy) -> None:
    before = load_study(searched(tiny).file)
    for texts, expected in (
        (
            [QUERY[0], "another", QUERY[2]],
            {"evaluation.prompts: prompt.query: choices[1]": ('"search query "', '"another"')},
        ),
        (QUERY[:2], {"evaluation.prompts: prompt.query: choices[2]", "evaluation.prompts: prompt.query: values[2]"}),
        ([QUERY[1], QUERY[0], QUERY[2]], {f"evaluation.prompts: prompt.query: choices[{i}]" for i in (0, 1)}),
    ):
        now = load_study(searched(tiny, {"values": texts}).file)
        found = score_differences(before.score_relevant(), now.score_relevant(), now.score_defaults())
        assert (found if isinstance(expected, dict) else set(found)) == expected


def test_prompts_alone_may_be_searched(tiny: TinyStudy) -> None:
    tiny.change("merge", "coefficients", to={"alpha": 0.5})
    assert problems(tiny)
    assert [d.name for d in load_study(searched(tiny).file).space.dimensions] == ["prompt.query"]


def test_first_come_the_first_prompts_and_all_of_them_on_request(tiny: TinyStudy) -> None:
    point = {"alpha.segment_1": 1, "alpha.segment_2": 0, "prompt.query": 2}
    tiny.change("search", "enqueue", to=["sources", "uniform", "prompts", point])
    study = load_study(searched(tiny).file)
    shown = {a.name: (a.prompts["made"]["query"], (a.params or {}).get("prompt.query")) for a in study.anchors()}
    assert shown == {
        "retriever alone": ("", 0.0),
        "domain's layers": ("", 0.0),
        "uniform average": ("", 0.0),
        'retriever alone, prompt.query="search query "': (QUERY[1], 1.0),
        'retriever alone, prompt.query="this is a query on health "': (QUERY[2], 2.0),
        'alpha.segment_1=1, alpha.segment_2=0, prompt.query="this is a query on health "': (QUERY[2], 2.0),
    }
    for anchor in study.anchors():
        assert anchor.params is not None
        assert study.recipe(anchor.params) == study.recipe_of(anchor.coefficients, anchor.prompts)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_chooses_or_says_why_not(name: str) -> None:
    prompts = prompt_dimension("query", [f"prompt {i}" for i in range(4)])
    space = make_space(*soup_space("ab", {"low": 0, "high": 1}).dimensions, prompts)
    if name in ("embedding_surrogate", "greedy_soup"):
        with pytest.raises(StudyFileError, match=r"prompt\.query: .*another strategy \(grid, tpe\)"):
            make_strategy(name, space)
        return
    trials = drive(make_strategy(name, space), 14, quadratic(space))
    assert len({t.params["prompt.query"] for t in trials}) > 1
    assert all(t.params["prompt.query"] in (0.0, 1.0, 2.0, 3.0) for t in trials)


def test_a_grid_keeps_what_documents_come_to_while_the_query_prompt_changes(tiny: TinyStudy) -> None:
    study = load_study(searched(tiny.change("search", to={"strategy": "grid"})).file)
    assert useful_boundaries(study.strategy(), study.lowest_layers, study.layout.n_layers) == (1, 2)
    study = load_study(searched(tiny, "", document={"values": ["", "text "]}).file)
    assert useful_boundaries(study.strategy(), study.lowest_layers, study.layout.n_layers) == (1,)


@pytest.mark.parametrize("racing", [False, True])
def test_prompts_in_turn_give_the_scores_of_each_alone(tiny: TinyStudy, racing: bool) -> None:
    """With and without looks; and documents are planned once whatever stands before queries."""
    study = load_study(tiny.file)
    evaluator = TrialEvaluator(study.evaluator_spec())
    encoder, collection = evaluator.model, study.collections[0]

    def made(**prompts: Any) -> RetrievalEvaluator:
        weighted = [WeightedCollection(collection, **prompts)]
        return (
            RacedEvaluator(encoder, weighted, racing=RacingSettings())
            if racing
            else RetrievalEvaluator(encoder, weighted)
        )

    several = made(query_prompt="", choices={"query": QUERY})
    for query, document in ((QUERY[1], None), (QUERY[2], "text "), ("", None), (QUERY[1], "text ")):
        several.use_prompts({"made": {"query": query} | ({} if document is None else {"document": document})})
        found, expected = several.evaluate(), made(query_prompt=query, document_prompt=document).evaluate()
        assert found.tokens == expected.tokens
        assert np.array_equal(found.collections[0].scores, expected.collections[0].scores)
    several.use_prompts({})
    documents = several.collections[0].documents
    several.use_prompts({"made": {"query": QUERY[1]}})
    assert several.collections[0].documents.fingerprint == documents.fingerprint
    assert several.collections[0].documents.ids is documents.ids

"""Studies that search prompts: scores, workers, going on, and what is handed over with the chosen prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergesearch import evaluate_study, export_merge, load_study, open_store, run_study
from mergesearch.errors import ResumeError
from mergesearch.listener import Listener
from mergesearch.results.evaluate import evaluate_folder
from mergesearch.results.export import SCORE_TOLERANCE
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator
from tests.tiny_studies import TinyStudy, copy_study, make_beir, make_study, mergesearch

PROMPTS = ["", "search query ", "this is a query on health "]
SEARCHED = {"query": {"values": PROMPTS}, "document": "text "}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """Nine points: three merges of one coefficient, each behind three prompts."""
    made = make_study(tmp_path_factory.mktemp("study"))
    made.change("merge", "coefficients", to={"alpha": {"values": [0, 0.5, 1], "tie": "groups"}})
    made.change("search", to={"strategy": "grid"})
    return made.change("evaluation", "prompts", to=SEARCHED)


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy) -> Iterator[tuple[Study, StudyStore]]:
    study = load_study(tiny.file)
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Listener())
    with StudyStore.open(tiny.storage, study.name, None, exclusive=False) as store:
        yield study, store


def of_point(store: StudyStore, alpha: float, prompt: int) -> int:
    (number, *_) = [t.number for t in store.trials() if t.params == {"alpha": alpha, "prompt.query": prompt}]
    return number


def scores(store: StudyStore, number: int) -> list[np.ndarray]:
    result = store.result(number)
    assert result is not None
    return [c.scores for c in result.collections]


@pytest.mark.parametrize("prompt", [0, 2])
def test_a_prompt_that_is_picked_scores_what_it_scores_when_given(
    finished: tuple[Study, StudyStore], tiny: TinyStudy, tmp_path: Path, prompt: int
) -> None:
    """To the bit, with the hidden states of other prompts' trials at hand and without."""
    _, store = finished
    given = copy_study(tiny, tmp_path).change("evaluation", "prompts", "query", to=PROMPTS[prompt])
    study = load_study(given.change("study", to="given").file)
    with open_store(study, given.storage) as alone:
        run_study(study, alone, Listener())
        for t in alone.trials():
            (expected,) = scores(alone, t.number)
            (found,) = scores(store, of_point(store, t.params["alpha"], prompt))
            assert np.array_equal(found, expected)


def test_prompts_matter_here(finished: tuple[Study, StudyStore]) -> None:
    _, store = finished
    found = {tuple(scores(store, of_point(store, 0.5, prompt))[0]) for prompt in range(3)}
    assert len(found) == 3


def test_documents_are_not_run_again_behind_another_query_prompt(finished: tuple[Study, StudyStore]) -> None:
    """The grid goes on with the merge at hand: only the queries' tokens go through the layers."""
    study, store = finished
    evaluator = TrialEvaluator(study.evaluator_spec())
    layers, documents = study.layout.n_layers, evaluator.pipeline.collections[0].documents.n_tokens
    runs = [t.user_attrs["layer_tokens"] for t in store.trials() if "anchor" not in t.user_attrs]
    assert sum(run < layers * documents for run in runs) >= 4


def test_equal_recipes_with_equal_prompts_are_evaluated_once(finished: tuple[Study, StudyStore]) -> None:
    study, store = finished
    evaluated = [t.user_attrs["recipe"] for t in store.trials() if "duplicate_of" not in t.user_attrs]
    assert len(evaluated) == len(set(evaluated)) == 9
    recipe = study.recipe({"alpha": 0.5, "prompt.query": 1})
    again = TrialEvaluator(study.evaluator_spec()).evaluate(recipe)
    assert np.array_equal(again.collections[0].scores, scores(store, of_point(store, 0.5, 1))[0])


def test_other_candidates_are_refused_by_name(finished: tuple[Study, StudyStore], tiny: TinyStudy) -> None:
    before = tiny.file.read_text()
    try:
        tiny.change("evaluation", "prompts", "query", to={"values": [*PROMPTS[:2], "another "]})
        with pytest.raises(ResumeError, match=r"evaluation\.prompts: prompt\.query: choices\[2\].*health.*another"):
            open_store(load_study(tiny.file), tiny.storage)
    finally:
        tiny.file.write_text(before)


def test_an_export_holds_its_prompt_and_scores_with_it(finished: tuple[Study, StudyStore], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    study, store = finished
    found = export_merge(study, store, tmp_path / "merged", trial=of_point(store, 0.5, 2))
    assert abs(found.rescored - found.recorded) <= SCORE_TOLERANCE
    model = SentenceTransformer(str(found.folder), device="cpu", local_files_only=True)
    assert (model.prompts["query"], model.prompts["document"]) == (PROMPTS[2], "text ")
    texts = ["graph search", "merge"]
    assert np.allclose(model.encode_query(texts), model.encode([PROMPTS[2] + t for t in texts]), atol=1e-6)
    assert np.allclose(model.encode_document(texts), model.encode([f"text {t}" for t in texts]), atol=1e-6)
    card = (found.folder / "README.md").read_text()
    assert f'Before every query stands "{PROMPTS[2]}"' in card
    assert "On made the study gave" not in card
    # Scored as a folder on the study's collections it puts its own prompt before queries.
    (scored,) = evaluate_folder(found.folder, study=study, split="dev").models
    assert scored.result.value == pytest.approx(found.recorded, abs=SCORE_TOLERANCE)
    again = mergesearch("merge", found.folder / "mergesearch.json", "--out", tmp_path / "again", *moved(study))
    assert again.code == 0, again.err
    for name in ("config_sentence_transformers.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (found.folder / name).read_bytes()


def moved(study: Study) -> list[str]:
    return [part for name, folder in study.folders.items() for part in ("--source", f"{name}={folder}")]


def test_where_collections_differ_the_export_has_a_prompt_for_each(tiny: TinyStudy, tmp_path: Path) -> None:
    made = copy_study(tiny, tmp_path).change("study", to="two")
    make_beir(tmp_path / "other", seed=5)
    made.change(
        "evaluation",
        "collections",
        to=[
            {"name": "made", "folder": "collection"},
            {"name": "other", "folder": "other", "prompts": {"query": {"values": ["a ", "on "]}}},
        ],
    )
    point = {"alpha": 0.5, "prompt.query": 1, "prompt.query.other": 0}
    study = load_study(made.change("search", to={"strategy": "random", "trials": 2, "enqueue": [point]}).file)
    with open_store(study, made.storage) as store:
        run_study(study, store, Listener())
        found = export_merge(study, store, tmp_path / "merged", trial=0)
        (scored,) = evaluate_folder(found.folder, study=study, split="dev").models
        assert scored.result.value == pytest.approx(found.recorded, abs=SCORE_TOLERANCE)
    stated = json.loads((tmp_path / "merged" / "config_sentence_transformers.json").read_text())["prompts"]
    assert {k: stated[k] for k in ("query.made", "query.other", "document")} == {
        "query.made": PROMPTS[1],
        "query.other": "a ",
        "document": "text ",
    }
    assert 'pass `prompt_name="query.other"`' in (tmp_path / "merged" / "README.md").read_text()


def test_on_test_queries_sources_alone_have_the_chosen_prompt_too(finished: tuple[Study, StudyStore]) -> None:
    study, store = finished
    from mergesearch.results.choose import choose

    chosen = store.recipe(choose(study, store).number)
    labels = [m.label for m in evaluate_study(study, store).models]
    others = [label for label in labels if label.endswith("with the chosen prompts, alone")]
    assert len(others) == (0 if chosen.prompts == study.prompts_at() else 2)
    shown = mergesearch("best", study.parsed.path)
    assert f"made: before every query stands {json.dumps(chosen.prompts['made']['query'])}" in shown.out


def test_a_page_and_notes_tell_the_prompt(finished: tuple[Study, StudyStore], tmp_path: Path) -> None:
    study, _ = finished
    told: Any = mergesearch("report", study.parsed.path, "--out", tmp_path / "page.html")
    assert told.code == 0, told.err
    assert "before every query stands" in (tmp_path / "page.html").read_text()

"""A study on pseudo-queries: wherever one of its scores is shown, it is said what the score is on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import ModelCard

from mergesearch import load_study
from mergesearch.cli.panel import line, panel
from mergesearch.errors import StudyFileError
from mergesearch.results.notes import study_note, trial_notes
from mergesearch.results.view import read_view
from mergesearch.results.watch import Watch
from mergesearch.storage.store import StudyStore
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch, write_lines

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = "on pseudo-queries"


def ask(*arguments: object) -> str:
    answer = mergesearch(*arguments)
    assert answer.code == 0, answer.err
    return answer.out


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyStudy, TinyStudy]:
    """One whose test split is pseudo-queries as well, and one that judged queries test; both run."""
    pseudo = make_study(tmp_path_factory.mktemp("pseudo"))
    corpus = pseudo.folder / "collection" / "corpus.jsonl"
    documents = [json.loads(row) for row in corpus.read_text(encoding="utf-8").splitlines()]
    titled = [{**d, "title": f"{' '.join(d['text'].split()[:3])} number {i}"} for i, d in enumerate(documents)]
    write_lines(corpus, titled)
    pseudo.change("evaluation", "collections", to=[{"name": "made", "format": "pseudo", "documents": "collection"}])
    judged = copy_study(pseudo, tmp_path_factory.mktemp("judged")).change("study", to="judged")
    judged.change("evaluation", "collections", 0, "test", to={"format": "beir", "folder": "collection"})
    for tiny in (pseudo, judged):
        assert "pseudo-queries, which no user asked" in ask("run", tiny.file)
        ask("evaluate", tiny.file)
    return pseudo, judged


@pytest.fixture(scope="module")
def pseudo(studies: tuple[TinyStudy, TinyStudy]) -> TinyStudy:
    return studies[0]


@pytest.fixture(scope="module")
def judged(studies: tuple[TinyStudy, TinyStudy]) -> TinyStudy:
    return studies[1]


def test_commands_that_show_a_dev_score_say_what_it_is_on(pseudo: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = f"(a selection score {LABEL}"
    assert selection in ask("run", pseudo.file)  # which has nothing left to do
    assert selection in ask("best", pseudo.file)
    assert json.loads(ask("best", pseudo.file, "-f", "json"))["on_queries"] == f" {LABEL}"
    status = ask("status", pseudo.file)
    assert selection in status
    assert f"tiny: dev scores {LABEL}" in status
    assert LABEL in ask("studies", pseudo.storage)
    assert LABEL in ask("export", pseudo.file, "--out", pseudo.folder / "merged", "--force")
    with StudyStore.open(pseudo.storage, "tiny", None, exclusive=False) as store:
        now = Watch(store).read()
    assert selection in line(now)
    assert LABEL in repr([getattr(part, "plain", "") for part in panel(now).renderables])  # type: ignore[attr-defined]


def test_evaluate_labels_what_the_split_is(pseudo: TinyStudy, judged: TinyStudy) -> None:
    for split in ("dev", "test"):
        shown = ask("evaluate", pseudo.file, "--split", split)
        assert re.search(rf"made, {split} split, \d+ pseudo-queries", shown)
    assert json.loads(ask("evaluate", pseudo.file, "-f", "json"))["pseudo_queries"] == ["made"]
    assert "8 queries" in ask("evaluate", judged.file)
    assert json.loads(ask("evaluate", judged.file, "-f", "json"))["pseudo_queries"] == []


def test_the_model_card_labels_scores_and_tells_the_hub_judged_ones_only(pseudo: TinyStudy, judged: TinyStudy) -> None:
    cards = {}
    for tiny in (pseudo, judged):
        out = tiny.folder / "card"
        ask("export", tiny.file, "--out", out, "--force")
        cards[tiny] = ModelCard.load(out / "README.md")
        assert re.search(
            r"\| dev \| made \| this merge \| ndcg@10 \| [\d.]+ \| \d+ pseudo-queries \|", str(cards[tiny])
        )
        assert "no user asked these queries" in str(cards[tiny])
    assert re.search(r"\| test \| .* pseudo-queries \|", str(cards[pseudo]))
    assert re.search(r"\| test \| made \| this merge \| ndcg@10 \| [\d.]+ \| 8 \|", str(cards[judged]))
    assert cards[pseudo].data.eval_results is None
    assert len(cards[judged].data.eval_results or ()) == 1


def test_reports_notes_and_figures_label_scores(pseudo: TinyStudy, judged: TinyStudy) -> None:
    for tiny in (pseudo, judged):
        page = tiny.folder / "report.html"
        ask("report", tiny.file, "--out", page, "--examples", 0)
        text = page.read_text(encoding="utf-8")
        assert f"a selection score {LABEL}" in text
        assert f"The merge was chosen {LABEL}" in text
        assert f"ndcg@10 {LABEL} (dev" in text  # on axes
        assert ("made (pseudo-queries), test split" in text) == (tiny is pseudo)
        study = load_study(tiny.file)
        with StudyStore.open(tiny.storage, study.name, None, exclusive=False) as store:
            view = read_view(study, store)
        assert f"highest ndcg@10 {LABEL}" in study_note(view)
        assert all(LABEL in note for note in trial_notes(view).values())


def test_comparisons_label_scores(pseudo: TinyStudy, judged: TinyStudy) -> None:
    page = pseudo.folder / "compare.html"
    shown = ask("compare", pseudo.file, judged.file, "--out", page)
    assert shown.count(LABEL) >= 2  # the dev score of each
    assert "made (pseudo-queries)" in shown
    assert f"ndcg@10 {LABEL}" in page.read_text(encoding="utf-8")


def test_optuna_names_the_objective_so(pseudo: TinyStudy) -> None:
    import optuna

    assert optuna.load_study(study_name="tiny", storage=pseudo.storage).metric_names == [f"ndcg@10 {LABEL}"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.change("evaluation", "collections", 0, "queries_from", to="abstracts"), "queries_from: "),
        (lambda t: t.change("evaluation", "collections", 0, "split", to="train"), "no split 'train'"),
        (lambda t: t.change("evaluation", "collections", 0, "test", to={"format": "bier"}), "Did you mean 'beir'"),
        (lambda t: t.change("evaluation", "collections", 0, "test", to={"format": "beir"}), "folder: is required"),
    ],
)
def test_what_is_wrong_with_the_entry_is_said(
    pseudo: TinyStudy, tmp_path: Path, change: Callable[[TinyStudy], TinyStudy], told: str
) -> None:
    with pytest.raises(StudyFileError, match=re.escape(told)):
        load_study(change(copy_study(pseudo, tmp_path / "wrong")).file)

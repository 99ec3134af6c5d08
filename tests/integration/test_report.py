"""Reports of whole tiny studies, read by programs and by a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mergesearch import evaluate_study, load_study, open_store, run_study
from mergesearch.errors import StudyFileError
from mergesearch.evaluation.result import CollectionScores
from mergesearch.results.evaluate import Evaluation
from mergesearch.results.report.examples import encode_examples
from mergesearch.results.report.held_out import held_out
from mergesearch.results.report.write import ReportError, view_of, write_report
from mergesearch.results.view import read_view
from mergesearch.storage.store import StudyStore
from mergesearch.study_file import parse_study
from tests.report_pages import (
    check_alone,
    check_contrast,
    check_keyboard,
    check_print,
    check_structure,
    check_width,
)
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch

if TYPE_CHECKING:
    from tests.browser import OfflinePage

pytest_plugins = ["tests.browser"]

HOSTILE = (
    "<script>document.title='broken in'</script></script><img src=x onerror=alert(1)> \"quoted\" & 'so' \0\x1b[31m"
)
HOSTILE += " 🦊 \u202eright to left\u202c العربية </details></main><style>*{display:none}</style>"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """A finished grid on texts that mean harm, read on its test split."""
    made = make_study(tmp_path_factory.mktemp("hostile"))
    made.change("search", "strategy", to={"name": "grid"}).change("search", "trials", to=None)
    for name in ("corpus", "queries"):
        file = made.folder / "collection" / f"{name}.jsonl"
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        changed = [{**r, "text": f"{r['text']} {HOSTILE}"} for r in records]
        file.write_text("".join(f"{json.dumps(r)}\n" for r in changed), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def evaluation(tiny: TinyStudy) -> Evaluation:
    study = load_study(tiny.file)
    with open_store(study) as store:
        run_study(study, store)
        return evaluate_study(study, store)


@pytest.fixture(scope="module")
def page(tiny: TinyStudy, evaluation: Evaluation) -> Path:
    out = tiny.folder / "report.html"
    said = mergesearch("report", tiny.file, "--out", out, "--examples", 2)
    assert (said.code, said.err) == (0, "")
    assert "report: " in said.out
    return out


@pytest.fixture(scope="module")
def store(tiny: TinyStudy, page: Path) -> Iterator[StudyStore]:
    with StudyStore.open(tiny.storage, "tiny", None, exclusive=False) as store:
        yield store


def test_the_page_tests_what_evaluate_tested(store: StudyStore, tiny: TinyStudy, evaluation: Evaluation) -> None:
    (found,) = held_out(read_view(load_study(tiny.file), store))
    assert found.scores.mean == evaluation.models[-1].means["made"]["ndcg@10"]
    assert [(t.against, t.comparison, t.p_holm) for t in found.tests] == [
        (t.against, t.comparison, t.p_holm) for t in evaluation.tests
    ]
    assert {*found.same, *(t.against for t in found.tests)} == {m.label for m in evaluation.models[:-1]}


def test_examples_are_the_rankings_that_were_scored_and_are_encoded_once(store: StudyStore, tiny: TinyStudy) -> None:
    view = read_view(load_study(tiny.file), store)
    encoded: list[int] = []
    found = encode_examples(view, store, lambda done, _: encoded.append(done))
    assert encoded == []  # the page was made before
    assert found is not None
    assert view.chosen is not None
    assert view.chosen.result is not None
    after, recorded = found.after[0], view.chosen.result.collections[0]
    assert after.query_ids == recorded.query_ids
    assert after.scores == pytest.approx(recorded.scores, abs=1e-6)
    template = view.sources["retriever"].result
    assert template is not None
    assert found.before[0].scores == pytest.approx(template.collections[0].scores, abs=1e-6)
    for scores in (after, found.before[0]):
        assert _best_is_first(scores)


def _best_is_first(scores: CollectionScores) -> bool:
    assert scores.run is not None
    return all(hits == sorted(hits, key=lambda hit: -hit[1]) and len(hits) == 10 for hits in scores.run.values())


def test_a_page_is_replaced_and_nothing_else_is(tiny: TinyStudy, store: StudyStore, page: Path, tmp_path: Path) -> None:
    before = page.read_text(encoding="utf-8")
    written = write_report(parse_study(tiny.file), store, page, n_examples=2)
    after = page.read_text(encoding="utf-8")
    assert re.sub("Made by mergesearch on .*? UTC", "", before) == re.sub("Made by mergesearch on .*? UTC", "", after)
    assert written.answer in after
    mine = tmp_path / "thesis.html"
    mine.write_text("years of work", encoding="utf-8")
    with pytest.raises(ReportError, match="is no report"):
        write_report(parse_study(tiny.file), store, mine, n_examples=0)
    assert mine.read_text(encoding="utf-8") == "years of work"
    with pytest.raises(ReportError, match="no folder"):
        write_report(parse_study(tiny.file), store, tmp_path / "nowhere" / "report.html", n_examples=0)


@pytest.mark.parametrize(
    "gone", ["domain", pytest.param("collection", marks=pytest.mark.slow), "changed", "queries changed"]
)
def test_what_is_gone_is_said_and_the_rest_is_told(tiny: TinyStudy, page: Path, tmp_path: Path, gone: str) -> None:
    copied = copy_study(tiny, tmp_path / "copy")
    if gone == "changed":
        shutil.copytree(copied.folder / "retriever", copied.folder / "domain", dirs_exist_ok=True)
    elif gone == "queries changed":
        judged = copied.folder / "collection" / "qrels" / "dev.tsv"
        head, *lines = judged.read_text(encoding="utf-8").splitlines()
        kept = {line.split("\t")[0] for line in lines[:1]}
        judged.write_text("\n".join([head, *(n for n in lines if n.split("\t")[0] in kept)]) + "\n", encoding="utf-8")
    else:
        shutil.rmtree(copied.folder / gone)
    said = mergesearch("report", copied.file, "--out", tmp_path / "report.html")
    assert said.code == 0
    assert "Told from the database alone" in said.err
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Told from the database alone" in text
    assert str(copied.folder) not in re.search("Told from the database alone.*?</p>", text, re.DOTALL).group()  # type: ignore[union-attr]
    with (
        StudyStore.open(copied.storage, "tiny", None, exclusive=False) as store,
        StudyStore.open(tiny.storage, "tiny", None, exclusive=False) as whole,
    ):
        view, _ = view_of(parse_study(copied.file), store)
        before = read_view(load_study(tiny.file), whole)
        assert view.choice is not None
        assert before.choice is not None
        assert (view.choice.number, view.choice.verdict) == (before.choice.number, before.choice.verdict)
        assert {s: t.number for s, t in view.sources.items()} == {s: t.number for s, t in before.sources.items()}


def test_a_study_file_of_another_study_is_refused(tiny: TinyStudy, page: Path, tmp_path: Path) -> None:
    copied = copy_study(tiny, tmp_path / "copy")
    copied.change("merge", "groups", to={"segments": 1})
    shutil.rmtree(copied.folder / "domain")
    with StudyStore.open(copied.storage, "tiny", None, exclusive=False) as store, pytest.raises(StudyFileError):
        view_of(parse_study(copied.file), store)


def test_nothing_scored_is_a_report_too(tmp_path: Path) -> None:
    made = make_study(tmp_path)
    with open_store(load_study(made.file)):
        pass
    said = mergesearch("report", made.file, "--out", tmp_path / "report.html")
    assert said.code == 0
    assert "Nothing has been scored yet." in said.out


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_readable(offline_page: OfflinePage, page: Path, dark: bool) -> None:
    with offline_page(dark=dark) as opened:
        opened.goto(page.as_uri())
        assert opened.title() == "tiny: report of a merge search"
        check_alone(opened)
        check_structure(opened)
        check_contrast(opened)
        paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(18, 20, 24)" if dark else "rgb(247, 247, 245)")


def test_the_page_fits_a_phone_and_a_keyboard(offline_page: OfflinePage, page: Path) -> None:
    with offline_page(width=360, height=740) as opened:
        opened.goto(page.as_uri())
        check_width(opened)
        check_contrast(opened)
        assert opened.locator(".narrow svg").first.is_visible()
        assert opened.locator(".wide svg").first.is_hidden()
        check_keyboard(opened)
        opened.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        check_width(opened)


def test_the_page_prints_whole(offline_page: OfflinePage, page: Path) -> None:
    with offline_page(dark=True) as opened:
        opened.goto(page.as_uri())
        check_print(opened)


def test_texts_that_mean_harm_are_shown_as_texts(offline_page: OfflinePage, page: Path) -> None:
    with offline_page() as opened:
        opened.goto(page.as_uri())
        shown = opened.inner_text(".query .words >> nth=0")
        assert "<script>document.title='broken in'</script></script><img src=x" in shown
        assert "\ufffd\ufffd[31m 🦊" in shown
        assert opened.locator("main").count() == 1
        assert opened.locator("main footer").count() == 0
        assert opened.locator("style").count() == 1
        badges = opened.locator(".badge", has_text="relevant")
        assert badges.count() > 0

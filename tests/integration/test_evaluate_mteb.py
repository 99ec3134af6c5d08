"""A model folder on a retrieval task of MTEB, by mteb itself; the task's data are a few lines in this process."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mergesearch.errors import CollectionError, EvaluationError
from mergesearch.results.evaluate import evaluate_folder
from mergesearch.results.mteb_tasks import evaluate_mteb
from tests.tiny_models import make_tiny
from tests.tiny_mteb import TASK, make_task
from tests.tiny_studies import make_beir, mergesearch, write_lines

mteb = pytest.importorskip("mteb")

ROUNDING = 1e-5
"""MTEB writes scores with five decimals."""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_beir(tmp_path_factory.mktemp("mteb") / "collection", seed=3, n_queries=20, n_documents=60)
    file = folder / "corpus.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    write_lines(file, [{**r, "title": "the graph of paths" if i % 3 else ""} for i, r in enumerate(lines)])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose queries have a prompt: scores tell whether it was used."""
    folder = make_tiny("bert", tmp_path_factory.mktemp("models") / "retriever", n_layers=2)
    file = folder / "config_sentence_transformers.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["prompts"] = {"query": "search the tree: ", "document": ""}
    file.write_text(json.dumps(content), encoding="utf-8")
    (folder / "README.md").write_text("---\nlibrary_name: sentence-transformers\n---\n\n# A model\n")
    return folder


@pytest.fixture
def registered(collection: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The task, where `mteb.get_task` finds it."""
    monkeypatch.setitem(sys.modules["mteb.get_tasks"]._TASKS_REGISTRY, TASK, make_task(collection))
    return TASK


def test_mteb_scores_are_our_own_and_lie_in_mtebs_files(collection: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = evaluate_mteb(model, [make_task(collection)()], out, name="someone/tiny")
    ours = evaluate_folder(model, beir=collection).models[0].means["collection"]
    (scores,) = found.scores
    assert 0.05 < ours["ndcg@10"] < 0.95
    for metric in ("ndcg@10", "recall@100", "map@100"):
        assert scores.scores[metric.replace("@", "_at_")] == pytest.approx(ours[metric], abs=ROUNDING), metric

    cache = mteb.ResultCache(out)
    stored = cache.load_task_result(TASK, "someone/tiny", found.revision, raise_if_not_found=True)
    assert stored.get_score() == pytest.approx(ours["ndcg@10"], abs=ROUNDING)
    assert scores.file == out / "results" / "someone__tiny" / found.revision / f"{TASK}.json"
    meta = json.loads((scores.file.parent / "model_meta.json").read_text(encoding="utf-8"))
    assert (meta["name"], meta["revision"]) == ("someone/tiny", found.revision)


def test_a_task_that_was_done_is_kept_and_another_model_is_another_revision(
    collection: Path, model: Path, tmp_path: Path
) -> None:
    task = make_task(collection)
    first = evaluate_mteb(model, [task()], tmp_path / "out")
    written = first.scores[0].file.read_bytes()

    class Gone(task):  # type: ignore[misc, valid-type]
        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            raise ConnectionError("Couldn't reach 'local/tiny' on the Hub (OfflineModeIsEnabled)")

    again = evaluate_mteb(model, [Gone()], tmp_path / "out")  # reads nothing
    assert again.revision == first.revision
    assert again.scores[0].scores["ndcg_at_10"] == first.scores[0].scores["ndcg_at_10"]
    assert first.scores[0].file.read_bytes() == written

    other = make_tiny("bert", tmp_path / model.name, n_layers=2, seed=5)
    with pytest.raises(CollectionError, match=r"MTEB task MergesearchTinyRetrieval: .*cannot be\s+reached") as error:
        evaluate_mteb(other, [Gone()], tmp_path / "out")
    assert "mteb.get_task('MergesearchTinyRetrieval').load_data()" in str(error.value)


def test_a_task_of_the_hub_without_a_network_says_how_to_bring_its_data(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match=r"mteb/scifact.*OfflineModeIsEnabled"):
        evaluate_mteb(model, ["SciFact"], tmp_path / "out")


def test_the_command_writes_files_and_card_and_says_where(model: Path, registered: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", model, "--mteb", registered, "--out", out, "--name", "someone/tiny", "--card")
    answer = mergesearch(*arguments)
    assert answer.code == 0, answer.err
    (file,) = out.glob(f"results/someone__tiny/*/{TASK}.json")
    score = json.loads(file.read_text(encoding="utf-8"))["scores"]["test"][0]["ndcg_at_10"]
    assert re.search(rf"{TASK} +test +{score:.4f}", answer.out)
    assert not answer.err
    assert f"written in MTEB's layout: {file.parent}" in answer.out
    assert mergesearch(*arguments, "-f", "json").code == 0

    card = ModelCard.load(model / "README.md")
    (entry,) = card.data.eval_results  # once, though it was put in twice
    assert (entry.dataset_name, entry.dataset_split, entry.metric_type) == (f"MTEB {TASK}", "test", "ndcg_at_10")
    assert entry.metric_value == pytest.approx(score, abs=1e-5)
    assert "# A model" in card.text


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["SciFac"], r"unknown task of MTEB 'SciFac'. Did you mean 'SciFact'\?"),
        (["qqqqqqqq"], "unknown task of MTEB 'qqqqqqqq'.* `mteb available-tasks`"),
        (["STS12"], r"STS12 is a task of STS \(text\); only tasks of Retrieval"),
    ],
)
def test_what_cannot_be_evaluated_is_said(model: Path, tmp_path: Path, tasks: list[str], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        evaluate_mteb(model, tasks, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_none_and_options_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="ORGANISATION/MODEL"):
        evaluate_mteb(model, ["SciFact"], tmp_path, name="tiny")
    for arguments in (
        (model, "--mteb", "SciFact"),
        (model, "--out", tmp_path),
        (model, "--beir", tmp_path, "--card"),
        (model, "--mteb", "SciFact", "--out", tmp_path, "--split", "dev"),
        (model, "--mteb", "SciFact", "--out", tmp_path, "--beir", tmp_path),
        (tmp_path / "no.yaml", "--mteb", "SciFact", "--out", tmp_path),
    ):
        assert mergesearch("evaluate", *arguments).code == 2, arguments


def test_without_mteb_the_error_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(EvaluationError, match=r"pip install 'mergesearch\[mteb\]'"):
        evaluate_mteb(model, ["SciFact"], tmp_path / "out")


def test_only_mtebs_own_warning_is_silenced(collection: Path, model: Path, tmp_path: Path) -> None:
    class Warned(make_task(collection)):  # type: ignore[misc]
        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            warnings.warn("something else", UserWarning, stacklevel=1)
            super().load_data(num_proc, **kwargs)

    with pytest.warns(UserWarning, match="something else"):
        evaluate_mteb(model, [Warned()], tmp_path / "out")

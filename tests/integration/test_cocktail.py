"""A whole study with `cocktail`: losses are measured once, stored with the study, and part of every recipe."""

from __future__ import annotations

import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mergesearch.errors import ResumeError
from mergesearch.evaluation.examples import draw_examples
from mergesearch.evaluation.formats import load_collection
from mergesearch.resolving import load_study
from mergesearch.results.view import read_view
from mergesearch.session import open_store, run_study
from mergesearch.storage.store import StudyStore
from tests.tiny_adapters import make_adapter
from tests.tiny_models import make_tiny, make_variant
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch, write_lines
from tests.unit.test_losses import published_contrastive

if TYPE_CHECKING:
    from pathlib import Path

OTHERS = ("domain", "third", "fourth")
EXAMPLES = {"file": "examples.jsonl", "negatives": 7}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    study = make_study(tmp_path_factory.mktemp("study"))
    for seed, name in enumerate(OTHERS[1:], start=2):
        make_variant(study.folder / "retriever", study.folder / name, seed=seed, scale=0.1 * seed)
    judged = load_collection("beir", {"folder": "collection"}, name="made", split="dev", relative_to=study.folder)
    drawn = draw_examples(judged, n=5, negatives=7, seed=0)
    lines = [{"query": e.query, "pos": [e.positive], "neg": list(e.negatives)} for e in drawn]
    write_lines(study.folder / "examples.jsonl", lines)
    content = study.content()
    content["sources"] |= {name: name for name in OTHERS}
    content["merge"] |= {
        "method": "cocktail",
        "coefficients": {"temperature": {"low": 0.05, "high": 5, "tie": "groups"}, "alpha": {"values": [0, 0.5, 1]}},
        "examples": EXAMPLES,
    }
    content["evaluation"] |= {"pooling": "cls"}
    study.write(content)
    return study


@pytest.fixture
def tiny(made: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(made, tmp_path / "study")


@pytest.fixture(scope="module")
def run_once(made: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    study = copy_study(made, tmp_path_factory.mktemp("run"))
    assert mergesearch("run", study.file).code == 0
    return study


@pytest.fixture
def finished(run_once: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(run_once, tmp_path / "finished")


def stored(tiny: TinyStudy) -> dict[str, float]:
    with sqlite3.connect(tiny.folder / "study.db") as connection:
        return dict(connection.execute("SELECT source, loss FROM mergesearch_losses").fetchall())


def recipes(tiny: TinyStudy) -> list[Any]:
    with StudyStore.open(tiny.storage, "tiny", None, exclusive=False) as store:
        return [store.recipe(t.number) for t in store.trials()]


def test_from_run_to_export(tiny: TinyStudy) -> None:
    plan = mergesearch("plan", tiny.file)
    assert "contrastive losses of 3 sources (domain, third, fourth) on 5 examples" in plan.out
    assert not (tiny.folder / "study.db").exists()
    run = mergesearch("run", tiny.file)
    assert run.code == 0, run.err
    assert [line.split()[-1] for line in run.out.splitlines() if line.startswith("loss ")] == list(OTHERS)
    again = mergesearch("run", tiny.file)
    assert "loss " not in again.out
    for command in ("best", "status"):
        assert mergesearch(command, tiny.file).code == 0
    exported = mergesearch("export", tiny.file, "--out", tiny.folder / "merged")
    assert exported.code == 0, exported.err


def test_losses_and_weights_are_those_of_the_published_algorithm(finished: TinyStudy) -> None:
    """Of whole sources, embeddings included, though the study merges layers only."""
    study = load_study(finished.file)
    assert study.examples is not None
    expected = {name: published_contrastive(finished.folder / name, study.examples.retrieval) for name in OTHERS}
    assert stored(finished) == pytest.approx(expected, abs=1e-6, rel=0)
    for recipe in recipes(finished):
        for group in (g for g in recipe.groups if g.copy_from is None):
            factors = study.method.check(recipe)[group.name].factors
            assert factors is not None
            shares = torch.softmax(-torch.tensor(list(expected.values())) / group.coefficients["temperature"], -1)
            alpha = group.coefficients["alpha"]
            wanted = [alpha, *((1 - alpha) * shares).tolist()]
            assert list(factors[:-1]) == pytest.approx(wanted, abs=1e-6)


def test_a_resumed_study_goes_on_with_the_losses_that_are_stored(finished: TinyStudy) -> None:
    """Other numbers in the database than any measurement would give turn up in the recipes of new trials."""
    with sqlite3.connect(finished.folder / "study.db") as connection:
        connection.execute("UPDATE mergesearch_losses SET loss = 42.5 WHERE source = 'third'")
    finished.change("search", "trials", to=7)
    assert mergesearch("run", finished.file).code == 0
    found = [recipe.groups[1].coefficients["loss"]["third"] for recipe in recipes(finished)]
    assert len(set(found[:5])) == 1
    assert found[0] != 42.5
    assert found[5:] == [42.5, 42.5]


def test_only_what_is_missing_is_measured(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    assert study.examples is not None
    with open_store(study, tiny.storage) as store:
        store.record_loss("domain", study.content_hash("domain"), study.examples.fingerprint, 1.25)
        run_study(study, store)
        known = store.losses(study.examples.fingerprint)
    assert len(known) == 3
    assert stored(tiny)["domain"] == 1.25


def test_other_examples_are_refused_and_what_made_no_difference_is_not(finished: TinyStudy) -> None:
    file = finished.folder / "examples.jsonl"
    before = file.read_text(encoding="utf-8")
    for change in (
        lambda: file.write_text(before.rsplit("\n", 2)[0] + "\n", encoding="utf-8"),
        lambda: finished.change("merge", "examples", "batch_size", to=3),
        lambda: finished.change("merge", "examples", "negatives", to=3),
    ):
        change()
        refused = mergesearch("run", finished.file)
        assert refused.code == ResumeError.exit_code
        assert "merge.examples." in refused.err
        file.write_text(before, encoding="utf-8")
        finished.change("merge", "examples", to=EXAMPLES)
    file.rename(finished.folder / "moved.jsonl")
    finished.change("merge", "examples", to={**EXAMPLES, "file": "moved.jsonl"})
    assert mergesearch("run", finished.file).code == 0


def test_losses_may_be_given(tiny: TinyStudy) -> None:
    tiny.change("merge", "examples", to=None)
    tiny.change("merge", "coefficients", "loss", to={"domain": 1, "third": 2.5, "fourth": 2, "retriever": 9})
    assert mergesearch("run", tiny.file).code == 0
    assert stored(tiny) == {}
    assert {str(r.groups[1].coefficients["loss"]) for r in recipes(tiny)} == {
        str({"domain": 1.0, "third": 2.5, "fourth": 2.0})
    }
    tiny.change("merge", "coefficients", "loss", "third", to=2.0)
    assert "merge.coefficients.loss.third" in mergesearch("run", tiny.file).err


def test_with_the_base_only_nothing_is_measured(tiny: TinyStudy) -> None:
    tiny.change("sources", to={"retriever": "retriever", "domain": "domain"}).change("merge", "examples", to=None)
    tiny.change("merge", "coefficients", to={"alpha": {"values": [0.25, 0.5]}})
    assert mergesearch("run", tiny.file).code == 0
    assert stored(tiny) == {}


def test_without_a_target_every_source_is_measured(tiny: TinyStudy) -> None:
    tiny.change("merge", "options", to={"target": False})
    tiny.change("merge", "coefficients", "alpha", to=None)
    tiny.change("merge", "examples", to={"collection": {"folder": "collection", "split": "dev"}, "n": 3})
    assert mergesearch("run", tiny.file).code == 0
    assert stored(tiny).keys() == {"retriever", *OTHERS}


def test_language_models_are_judged_by_what_they_generate(tmp_path: Path) -> None:
    tiny = make_study(tmp_path / "study", kind="llama")
    for seed, name in enumerate(("retriever", "domain", "third")):
        make_tiny("llama", tmp_path / "study" / name, n_layers=2, head="causal", seed=seed)
    tiny.change("sources", "third", to="third").change("merge", "method", to="cocktail")
    tiny.change("merge", "coefficients", to={"temperature": {"values": [0.1, 1]}})
    write_lines(
        tiny.folder / "examples.jsonl",
        [{"input": f"{w} of", "output": "the model"} for w in ("search", "risk", "cell")],
    )
    tiny.change("merge", "examples", to={"loss": "language_model", "file": "examples.jsonl"})
    run = mergesearch("run", tiny.file)
    assert run.code == 0, run.err
    assert stored(tiny).keys() == {"domain", "third"}
    shutil.rmtree(tiny.folder / "third")
    make_tiny("llama", tiny.folder / "third", n_layers=2)
    refused = mergesearch("run", tiny.change("study", to="another").file)
    assert refused.code == 2
    assert "lack the language-model head" in refused.err
    shutil.rmtree(tiny.folder / "third")
    make_tiny("llama", tiny.folder / "third", n_layers=2, head="causal", words=["entirely", "other"])
    refused = mergesearch("validate", tiny.change("merge", "other_vocabulary", to="template").file)
    assert "another vocabulary, whose losses per token are of other tokens" in refused.err
    make_adapter(tiny.folder / "retriever", tiny.folder / "adapter", modules=["q_proj"])
    tiny.change("sources", "third", to={"model": "adapter", "adapter_of": "retriever"})
    assert "no language-model head of its own" in mergesearch("validate", tiny.file).err


def test_an_adapter_is_judged_on_its_base(tiny: TinyStudy) -> None:
    """The contrastive loss is that of base and adapter together, and not of the base, whose folder it shares."""
    make_adapter(tiny.folder / "domain", tiny.folder / "adapter", modules=["query", "value"])
    tiny.change("sources", "fourth", to={"model": "adapter", "adapter_of": "domain"})
    run = mergesearch("run", tiny.file)
    assert run.code == 0, run.err
    found = stored(tiny)
    assert found.keys() == set(OTHERS)
    assert abs(found["fourth"] - found["domain"]) > 1e-3


BAD: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("examples",), None, "name `examples:`"),
    (("examples", "file"), "nowhere.jsonl", "nowhere.jsonl: there is no such file"),
    (("examples", "file"), "study.yaml", "invalid JSON"),
    (("examples", "file"), None, "exactly one of `file` and `collection`"),
    (("examples", "collection"), {"folder": "collection"}, "exactly one of `file` and `collection`"),
    (("examples",), {"collection": {"folder": "collection", "split": "test"}}, "may not be test queries"),
    (("examples",), {"collection": {"folder": "collection", "split": "held-out"}}, "held-out"),
    (("examples",), {"collection": {"folder": "collection", "queries": 5}}, "unknown key 'queries'"),
    (("examples",), {"collection": {"format": "bier", "folder": "collection"}}, "Did you mean 'beir'"),
    (("examples",), {"collection": {"folder": "collection"}, "loss": "language_model"}, "no outputs to generate"),
    (("examples", "loss"), "language_model", 'expected {"input": text'),
    (("examples", "negatives"), 0, "greater than or equal to 1"),
    (("examples", "temperature"), 0, "greater than 0"),
    (("method",), "linear", "linear measures nothing of these sources"),
    (("coefficients", "loss"), {"domain": 1, "third": 1, "fourth": 1}, "`loss` is given: remove `examples:`"),
    (("coefficients", "loss"), {"domain": 1, "third": 1, "forth": 1}, "Did you mean 'fourth'"),
    (("coefficients", "loss"), {"domain": 1, "third": 1}, "no value for source 'fourth'"),
    (("coefficients", "loss"), 3, "one number per source"),
    (("coefficients", "loss"), {"domain": {"low": 0, "high": 1}}, "measured and not searched"),
    (("coefficients", "temperature"), {"low": 0, "high": 1}, "0 is outside of what the method allows"),
    (("coefficients", "alpha"), {"low": 0, "high": 1.5}, "1.5 is outside of what the method allows"),
]


@pytest.mark.parametrize(("path", "value", "found"), BAD, ids=[f"{'.'.join(map(str, p))}-{f[:20]}" for p, _, f in BAD])
def test_bad_entries_are_named_before_anything_is_measured(
    tiny: TinyStudy, path: tuple[str | int, ...], value: Any, found: str
) -> None:
    answer = mergesearch("validate", tiny.change("merge", *path, to=value).file)
    assert answer.code == 2
    assert found in answer.err
    assert "study.yaml:" in answer.err


def test_the_target_alone_is_a_source_whatever_its_temperature(finished: TinyStudy) -> None:
    """No coefficients stand for it, as with weights, but with a share of 1 a merge is the target."""
    study = load_study(finished.file)
    with StudyStore.open(finished.storage, "tiny", None, exclusive=False) as store:
        view = read_view(study, store)
        assert view.choice is not None
        (name,) = view.sources
        trial = view.sources[name]
        assert (name, trial.number) == ("retriever", view.choice.source_number)
        assert trial.recipe is not None
        assert {g.coefficients["alpha"] for g in trial.recipe.groups if g.copy_from is None} == {1.0}


def test_a_study_that_starts_from_another_has_its_losses_too(
    finished: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StudyStore.open(finished.storage, "tiny", None, exclusive=False) as store:
        merges = {t.user_attrs["recipe"] for t in store.trials()}
    finished.change("study", to="layers").change("merge", "groups", to={"per_layer": True})
    finished.change("search", "start_from", to="tiny").change("search", "trials", to=1)
    monkeypatch.setattr("mergesearch.measuring.measure", lambda *_: pytest.fail("a loss is known"))
    answer = mergesearch("run", finished.file)
    assert answer.code == 0, answer.err
    (said,) = [line for line in answer.out.splitlines() if line.startswith("start from")]
    assert said == f"start from tiny: all {len(merges)} merges, with their scores"

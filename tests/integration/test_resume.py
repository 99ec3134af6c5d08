"""Stopping a study and going on with it: nothing is lost, what may change does, what changes scores is refused."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergesearch.cli.progress import StudyProgress
from mergesearch.errors import ResumeError
from mergesearch.listener import Summary
from mergesearch.resolving import load_study
from mergesearch.search import registry
from mergesearch.session import open_store, run_study, study_record
from mergesearch.storage.store import StudyStore
from tests.commands import Command, read_table, run_command
from tests.tiny_studies import TinyStudy, copy_study, make_beir, make_study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study")).change(
        "merge", "coefficients", "alpha", to={"low": 0, "high": 1}
    )


@pytest.fixture
def tiny(made: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(made, tmp_path / "study")


def run(tiny: TinyStudy) -> Summary:
    """`mergesearch run`, in this process."""
    study = load_study(tiny.file)
    with open_store(study, tiny.storage) as store, StudyProgress(store, quiet=True) as progress:
        return run_study(study, store, progress, progress.batch)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_loses_nothing(tiny: TinyStudy, tmp_path: Path, number: signal.Signals) -> None:
    tiny.change("search", to={"strategy": "tpe", "minutes": 600})  # no machine is done before the signal
    command = Command(["run", tiny.file], tmp_path / "log")
    command.wait_until(lambda: command.trials_shown >= 3)
    assert command.signal(number) == 130, command.output
    assert "nothing is lost" in command.output
    assert str(tiny.file) in command.output.split("Go on with:")[1]
    before = [row for row in read_table(tiny.storage) if row[1] == "COMPLETE"]
    assert len(before) >= 3
    n_trials = len(before) + 5
    run(tiny.change("search", to={"strategy": "tpe", "trials": n_trials}))
    after = read_table(tiny.storage)
    assert after[: len(before)] == before
    assert len(after) >= n_trials
    assert {state for _, state, *_ in after} == {"COMPLETE"}


def test_a_larger_budget_continues(tiny: TinyStudy) -> None:
    assert run(tiny).evaluated == 5
    first = read_table(tiny.storage)
    assert run(tiny).evaluated == 0
    assert read_table(tiny.storage) == first
    tiny.change("search", "trials", to=7)
    assert run(tiny).evaluated == 2
    assert read_table(tiny.storage)[:5] == first
    assert len(read_table(tiny.storage)) == 7


def test_another_strategy_continues_and_is_recorded(tiny: TinyStudy) -> None:
    run(tiny)
    tiny.change("search", "strategy", to={"name": "tpe", "n_startup_trials": 2}).change("search", "trials", to=8)
    assert run(tiny).evaluated == 3
    with StudyStore.open(tiny.storage, "tiny", None, exclusive=False) as store:
        changed = [detail["changed"] for _, event, detail in store.history() if event == "resumed with changes"]
        strategies = [t.user_attrs["proposal"]["strategy"] for t in store.trials() if "proposal" in t.user_attrs]
    assert len(changed) == 1
    assert changed[0]["search.strategy.name"] == ['"random"', '"tpe"']
    assert changed[0]["search.trials"] == ["5", "8"]
    assert strategies == ["random"] * 2 + ["tpe"] * 3


def test_what_changes_scores_is_refused_with_every_difference(tiny: TinyStudy) -> None:
    run(tiny)
    before = read_table(tiny.storage)
    qrels = tiny.folder / "collection" / "qrels" / "dev.tsv"
    qrels.write_text(qrels.read_text().rsplit("\n", 2)[0] + "\n")
    tiny.change("seed", to=4).change("evaluation", "max_length", "document", to=16)
    tiny.change("merge", "groups", "segments", to=1)
    with pytest.raises(ResumeError) as caught:
        run(tiny)
    message = str(caught.value)
    for path in ("seed: 3 → 4", "evaluation.max_length.document", "evaluation.collections.made", "merge.groups"):
        assert path in message
    assert "merge.coefficients: alpha.segment_2: " in message
    assert "merge.space" not in message
    assert "another name" in message
    assert read_table(tiny.storage) == before


def test_differences_have_the_names_of_the_study_file(tiny: TinyStudy) -> None:
    run(tiny)
    tiny.change("merge", "coefficients", "alpha", to={"low": 0, "high": 0.5})
    with pytest.raises(ResumeError) as caught:
        run(tiny)
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
    names = ("merge.coefficients: alpha.segment_1: high", "merge.coefficients: alpha.segment_2: high")
    assert lines == [f"{name}: 1.0 → 0.5" for name in names]


@pytest.mark.parametrize("spelled_out_first", [True, False])
def test_an_option_at_its_default_makes_no_other_study(tiny: TinyStudy, spelled_out_first: bool) -> None:
    """Whoever records it, and whatever an earlier version recorded of it."""
    study = load_study(tiny.file)
    plain, record = study.score_relevant(), study_record(study)
    assert plain["merge"]["options"] == {}
    assert plain["evaluation"]["normalize"] is None
    options = {name: option.default for name, option in study.method.options.items()}
    assert options
    written = {**plain, "merge": {**plain["merge"], "options": options}}
    lacking = {**plain, "evaluation": {k: v for k, v in plain["evaluation"].items() if k not in ("normalize", "dtype")}}
    for other in (written, lacking):
        stored, now = (other, plain) if spelled_out_first else (plain, other)
        name = f"{tiny.folder.name}{len(str(other))}"
        StudyStore.open(tiny.storage, name, replace(record, score_relevant=stored), exclusive=True).close()
        StudyStore.open(tiny.storage, name, replace(record, score_relevant=now), exclusive=True).close()
    changed = {**plain, "merge": {**plain["merge"], "options": {**options, "arithmetic": "other"}}}
    with pytest.raises(ResumeError, match=r"merge\.options\.arithmetic"):
        StudyStore.open(tiny.storage, name, replace(record, score_relevant=changed), exclusive=True)


def test_another_order_of_collections_is_refused(tiny: TinyStudy) -> None:
    """What is kept per query, scores and embeddings, is kept in the order of the collections."""
    make_beir(tiny.folder / "second", seed=5)
    collections = [{"name": "made", "folder": "collection"}, {"name": "second", "folder": "second"}]
    run(tiny.change("evaluation", "collections", to=collections).change("search", "trials", to=2))
    with pytest.raises(ResumeError, match=r"evaluation\.order\[0\]: \"made\" → \"second\""):
        run(tiny.change("evaluation", "collections", to=collections[::-1]))


STRATEGIES: list[dict[str, Any]] = [
    {"name": "random"},
    {"name": "tpe", "n_startup_trials": 4},
    {"name": "gp", "n_startup_trials": 4},
    {"name": "embedding_surrogate", "candidates": 64, "patience": 50},
    {"name": "cmaes", "population_size": 4},
    {"name": "evolution", "population_size": 4},
    {"name": "grid", "points": 3, "order": "shuffled"},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["name"])
def test_the_same_file_and_seed_give_the_same_trials_in_another_process(
    tiny: TinyStudy, tmp_path: Path, strategy: dict[str, Any]
) -> None:
    tiny.change("search", to={"strategy": strategy, "trials": 9})
    run(tiny)
    url = f"sqlite:///{tmp_path}/another.db"
    run_command(["run", tiny.file, "--storage", url], tmp_path / "log")
    table = read_table(tiny.storage)
    assert read_table(url) == table
    # A strategy may come back to a known merge; that costs a trial's number and no evaluation.
    assert len({recipe for *_, recipe in table}) == 9


def test_every_strategy_is_tried() -> None:
    # A greedy soup searches weights of several sources: tests/integration/test_method_studies.py has one.
    assert {s["name"] for s in STRATEGIES} == set(registry.STRATEGIES) - {"greedy_soup"}


def test_another_seed_gives_other_trials(tiny: TinyStudy, tmp_path: Path) -> None:
    run(tiny)
    other = replace(copy_study(tiny, tmp_path / "other"))
    (other.folder / "study.db").unlink()
    run(other.change("seed", to=99))
    params = [[p for _, _, p, _, _ in read_table(t.storage)] for t in (tiny, other)]
    assert params[0][:3] == params[1][:3]  # what is enqueued
    assert params[0][3:] != params[1][3:]

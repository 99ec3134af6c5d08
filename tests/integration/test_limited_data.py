"""`mergesearch protocol limited-data`: what is run, what follows from records, what is read, going on after a kill."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergesearch.errors import MergesearchError
from mergesearch.protocols.limited_data import LimitedData, LimitedDataProtocol, Outcome
from mergesearch.protocols.lora_rival import RivalSettings
from mergesearch.protocols.samples import ADVISED, HIGHEST, chosen, sample, sampled_study
from mergesearch.resolving import load_study, resolve
from mergesearch.session import open_store, run_study
from mergesearch.storage.reader import Reading
from mergesearch.storage.store import StudyStore
from mergesearch.study_file import parse_study
from mergesearch.training.adapters import AdapterSettings
from mergesearch.training.expert import NONE, ExpertSettings
from tests.commands import Command
from tests.tiny_studies import TinyStudy, copy_study, make_beir, make_study, mergesearch

EXPERT = ExpertSettings(
    adapter=AdapterSettings("lora", rank=2, alpha=4, dropout=0.0, targets="all"),
    mine=NONE,
    negatives=1,
    epochs=2,
    batch_size=4,
    max_length=16,
    learning_rate=5e-3,
)
SETTINGS = LimitedData(queries=6, repeats=2, rules=(HIGHEST, ADVISED), rival=RivalSettings(EXPERT, mined=4))
OPTIONS = {
    "--sample": 6,
    "--repeats": 2,
    "--mined": 3,
    "--negatives": 1,
    "--passes": 2,
    "--rank": 2,
    "--batch-size": 4,
    "--max-length": 16,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """A grid of nine points on eighteen dev queries, and beside it a strategy that learns."""
    folder = tmp_path_factory.mktemp("limited")
    study = make_study(folder / "study")
    make_beir(study.folder / "more", n_queries=18, n_documents=40)
    study.change("evaluation", "collections", 0, "folder", to="more")
    study.change("evaluation", "collections", 0, "pool", to={"negatives": 2})
    return study.change("search", to={"strategy": "grid"})


@pytest.fixture(scope="module")
def finished(made: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyStudy, Outcome]:
    """A comparison that nothing disturbed; only to be read."""
    study = copy_study(made, tmp_path_factory.mktemp("finished") / "study")
    return study, protocol(study).run(Said())


@pytest.fixture
def tiny(made: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(made, tmp_path / "study")


def beside(tiny: TinyStudy) -> Path:
    """The same with a strategy that learns."""
    content = tiny.content() | {"study": "learning", "search": {"strategy": "tpe", "trials": 4}}
    file = tiny.folder / "learning.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


class Said:
    """An `announce` that remembers, and stops where it is told to."""

    def __init__(self, stop_at: str = "") -> None:
        self.lines: list[str] = []
        self._stop_at = stop_at

    def __call__(self, what: str) -> Any:
        self.lines.append(what)
        if self._stop_at and self._stop_at in what:
            raise KeyboardInterrupt
        return self

    def __enter__(self) -> Any:
        return lambda done, total: None

    def __exit__(self, *_: object) -> None:
        pass


def protocol(tiny: TinyStudy, *others: Path, settings: LimitedData = SETTINGS) -> LimitedDataProtocol:
    parsed = [parse_study(file) for file in (tiny.file, *others)]
    return LimitedDataProtocol(parsed, tiny.folder / "runs", settings)


def readings(tiny: TinyStudy) -> list[Reading]:
    with StudyStore.open(tiny.storage, "tiny", None, exclusive=False) as store:
        return store.test_readings()


def states(storage: str, study: str) -> list[str]:
    with StudyStore.open(storage, study, None, exclusive=False) as store:
        return [t.state.name for t in store.trials()]


def test_the_whole_comparison(tiny: TinyStudy) -> None:
    """Nothing but the nine points is evaluated for the grid; the other strategy and the rival run for each sample."""
    made = protocol(tiny, beside(tiny))
    said = Said()
    outcome = made.run(said)
    assert states(tiny.storage, "tiny") == ["COMPLETE"] * 9
    samples = f"sqlite:///{tiny.folder}/runs/samples.db"
    for number in (1, 2):
        assert len(states(samples, f"learning.6-queries.{number}")) == 4
    trainings = [line for line in said.lines if "over all" in line]
    assert len(list((tiny.folder / "runs" / "lora").glob("*/adapter"))) == 3
    assert len(trainings) == 3
    scores = outcome.scores["made"]
    assert list(scores) == [
        "retriever alone",
        "LoRA",
        *(f"{s}, {r}" for s in ("tiny", "learning") for r in SETTINGS.rules),
    ]
    assert {s.shape for s in scores.values()} == {(3, 18)}
    # A second call has nothing left to do, and says the same.
    again = Said()
    n_readings = len(readings(tiny))
    assert made.run(again).to_dict() == outcome.to_dict()
    assert [line.partition(":")[0] for line in again.lines] == ["test"]
    assert len(readings(tiny)) == n_readings
    assert json.loads((tiny.folder / "runs" / "result.json").read_text()) == json.loads(json.dumps(outcome.to_dict()))


def test_the_test_split_is_read_once_for_each_model_and_recorded(finished: tuple[TinyStudy, Outcome]) -> None:
    study, outcome = finished
    read = readings(study)
    assert all(r.command.startswith("protocol limited-data") and r.split == "test" for r in read)
    assert len({r.fingerprint for r in read}) == len(read) == outcome.read
    recorded = {r.fingerprint: r.scores.scores for r in read}
    shown = {row.tobytes() for scores in outcome.scores["made"].values() for row in scores}
    assert shown == {scores.tobytes() for scores in recorded.values()}


@pytest.mark.parametrize("rule", [HIGHEST, ADVISED])
def test_the_choice_on_a_sample_is_that_of_a_study_with_no_other_queries(rule: str, tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    with open_store(study) as store:
        run_study(study, store)
        n = len(store.trials())
        expected, found = {}, {}
        for number in (1, 2, 3):
            few = resolve(sampled_study(study, 6, number).parsed)
            assert few.collections[0].query_ids == sample(study, 6, number)["made"].query_ids
            assert few.collections[0].doc_ids == study.collections[0].doc_ids
            with open_store(few, f"sqlite:///{tiny.folder}/few.db") as own:
                run_study(few, own)
                expected[number] = chosen(few, own, rule)
            found[number] = chosen(study, store, rule, sample(study, 6, number))
        assert len(store.trials()) == n
    for number, choice in expected.items():
        mine = found[number]
        assert (mine.label, mine.best_label, mine.verdict) == (choice.label, choice.best_label, choice.verdict)
        assert mine.value == pytest.approx(choice.value, abs=1e-6)
        assert mine.optimism == pytest.approx(choice.optimism, abs=1e-6)
    assert len({c.value for c in found.values()}) > 1


def test_the_highest_is_no_source_alone(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    with open_store(study) as store:
        run_study(study, store)
        alone = {study.recipe_of(c).fingerprint for c in study.sources_alone().values()}
        merges = {n: result.value for n, (recipe, result) in store.scored().items() if recipe.fingerprint not in alone}
        assert len(merges) < len(store.scored())
        assert chosen(study, store, HIGHEST).value == max(merges.values())


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("up to 2 passes", marks=pytest.mark.slow),
        "scoring each pass",
        pytest.param("sample 2", marks=pytest.mark.slow),
        pytest.param("test:", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_comparison_goes_on(where: str, tiny: TinyStudy, finished: tuple[TinyStudy, Outcome]) -> None:
    with pytest.raises(KeyboardInterrupt):
        protocol(tiny).run(Said(stop_at=where))
    outcome = protocol(tiny).run(Said())
    _, expected = finished
    for model, scores in expected.scores["made"].items():
        assert np.array_equal(outcome.scores["made"][model], scores), model
    assert outcome.picked == expected.picked


@pytest.mark.slow
def test_killed_and_started_again_it_comes_to_the_same(tiny: TinyStudy, tmp_path: Path) -> None:
    """In the midst of a training, and again before the test split is read; then against one that nobody killed."""
    undisturbed = copy_study(tiny, tmp_path / "undisturbed")
    for stop_at in ("LoRA, sample 1 of 2: up to", "LoRA, sample 2 of 2: scoring"):
        command = Command(arguments(tiny), tmp_path / "log")
        command.wait_until(lambda: stop_at in command.output)  # noqa: B023 - asked at once
        assert command.signal(signal.SIGKILL) == -signal.SIGKILL
        assert "paired by test query" not in command.output
    answer = mergesearch(*arguments(tiny), "-f", "json")
    assert answer.code == 0, answer.err
    expected = mergesearch(*arguments(undisturbed), "-f", "json")
    assert json.loads(answer.out) == json.loads(expected.out)


def arguments(tiny: TinyStudy) -> list[str]:
    given = [str(word) for option in OPTIONS.items() for word in option]
    return ["protocol", "limited-data", str(tiny.file), "--work", str(tiny.folder / "runs"), *given]


def test_the_plan_comes_first_and_the_tables_last(tiny: TinyStudy) -> None:
    plan = mergesearch(*arguments(tiny), "--plan")
    assert plan.code == 0, plan.err
    assert not (tiny.folder / "runs").exists()
    assert "tiny: trials on all dev queries" in plan.out
    answer = mergesearch(*arguments(tiny), "--rule", "highest", "--rule", "advised")
    assert answer.code == 0, answer.err
    assert answer.out.startswith(plan.out.split("test: models")[0])
    table = answer.out.partition("made: ndcg@10 on 18 test queries")[2]
    for row in (
        "retriever alone",
        "LoRA",
        "tiny, highest",
        "tiny, advised",
        "LoRA − retriever alone",
        "tiny, highest − LoRA",
    ):
        assert f"\n{row}" in table
    assert "test read once for each of" in table


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("search", "racing"), True, "leaves trials without scores"),
        (("evaluation", "collections", 0, "queries"), 6, "has 6 dev queries, of which samples of 6"),
        (("evaluation", "collections", 0, "may_lose"), 0.01, "have no say in this comparison"),
        (("evaluation", "collections", 0, "subsample"), {"queries": 12, "seed": 1}, "take it out"),
    ],
)
def test_what_cannot_be_compared_is_refused(path: tuple[str | int, ...], to: Any, said: str, tiny: TinyStudy) -> None:
    answer = mergesearch(*arguments(tiny.change(*path, to=to)))
    assert answer.code == 2
    assert said in answer.err


def test_studies_that_differ_in_what_they_are_scored_on_are_refused(tiny: TinyStudy) -> None:
    other = beside(tiny)
    other.write_text(other.read_text(encoding="utf-8").replace('"seed": 3', '"seed": 4'), encoding="utf-8")
    with pytest.raises(MergesearchError, match=r"learning\.yaml: template, seed or `evaluation`"):
        protocol(tiny, other)
    with pytest.raises(MergesearchError, match=r"found 4, 2 and highest, advised"):
        protocol(tiny, settings=replace(SETTINGS, queries=4))

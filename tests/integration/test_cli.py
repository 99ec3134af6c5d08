"""Every command through the program's entry point, on a study that is really run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mergesearch.cli import cli
from mergesearch.results.choose import luck_in
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch

PROGRAM = Path(sys.executable).with_name("mergesearch")
NOISE = ("Writing model shards", "Loading weights", "A new study created", "Warning", "Traceback")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """A study that has been run."""
    study = make_study(tmp_path_factory.mktemp("done"))
    assert mergesearch("run", study.file).code == 0
    return study


@pytest.fixture
def tiny(done: TinyStudy, tmp_path: Path) -> TinyStudy:
    """The same study with its database, free to be changed."""
    return copy_study(done, tmp_path)


@pytest.fixture
def fresh(tiny: TinyStudy) -> TinyStudy:
    """The same study, not run yet."""
    (tiny.folder / "study.db").unlink()
    return tiny


def quiet(text: str) -> bool:
    return not any(noise in text for noise in NOISE)


def test_help_never_imports_the_heavy_libraries() -> None:
    script = """
import sys
from mergesearch.cli import main
sys.argv = ["mergesearch", "--help"]
try:
    main()
except SystemExit as ended:
    assert ended.code == 0
heavy = {"torch", "transformers", "optuna", "ray", "sqlalchemy", "pydantic", "rich", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for name in cli.commands:
        assert re.search(rf"^  {name}  +[A-Z].*\.$", finished.stdout, re.MULTILINE), f"{name} is cut short"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_examples(name: str) -> None:
    answer = mergesearch(name, "--help")
    assert answer.code == 0
    assert f"mergesearch {name}" in answer.out.partition("Examples:")[2]
    assert "\\b" not in answer.out


def test_the_installed_program_ends_with_the_code_of_the_error(tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    shown = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False, env=environment)
    assert shown.returncode == 0
    missing = subprocess.run(
        [PROGRAM, "validate", tmp_path / "no.yaml"], capture_output=True, text=True, check=False, env=environment
    )
    assert missing.returncode == 2
    assert missing.stderr == f"error: there is no study file {tmp_path}/no.yaml\n"
    assert missing.stdout == ""


@pytest.mark.parametrize("arguments", [["valdate"], ["run"], ["plan", "x.yaml", "--frmat", "json"]])
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    assert mergesearch(*arguments).code == 2


def test_validate_sums_up(tiny: TinyStudy) -> None:
    answer = mergesearch("validate", tiny.file)
    assert answer.code == 0
    assert "2 sources, 2 merged groups, 2 coefficients to search, 8 dev queries, 30 documents" in answer.out
    (tiny.folder / "domain" / "model.safetensors").unlink()
    assert mergesearch("validate", "--file-only", tiny.file).code == 0
    assert mergesearch("validate", tiny.file).code == 2


def test_validate_shows_what_a_collection_warns_of(tiny: TinyStudy) -> None:
    qrels = tiny.folder / "collection" / "qrels" / "dev.tsv"
    lines = [
        line.removesuffix("1") + "0" if line.startswith("dev0\t") else line for line in qrels.read_text().split("\n")
    ]
    qrels.write_text("\n".join(lines))
    answer = mergesearch("validate", tiny.file)
    assert answer.code == 0
    assert "note: made: " in answer.out


def test_plan_as_table_and_json(tiny: TinyStudy) -> None:
    answer = mergesearch("plan", tiny.file)
    assert answer.code == 0
    for part in (
        "retriever",
        "segment_1",
        "alpha.segment_2",
        "batches",
        "sources: mapped (",
        "strategy: random; scored by ndcg@10, every trial whole",
        "search space: 9 points; trials: 5",
    ):
        assert part in answer.out
    assert "libraries" not in answer.out  # which are this process's own
    plan = json.loads(mergesearch("plan", "-f", "json", tiny.file).out)
    assert plan["enqueued"] == ["retriever alone", "domain's layers", "uniform average"]
    assert plan["memory"]["workers"] == 1


def test_run_tells_every_trial_and_nothing_else(fresh: TinyStudy) -> None:
    answer = mergesearch("run", fresh.file)
    assert answer.code == 0
    assert quiet(answer.out + answer.err)
    trials = [line for line in answer.out.splitlines() if line.startswith("trial ")]
    assert len(trials) == 5
    assert answer.out.count("sources: mapped (") == 1
    assert "all 5 trials are done: 5 evaluated" in answer.out
    assert "chosen: trial " in answer.out


def test_run_again_has_nothing_to_do_and_a_larger_budget_goes_on(tiny: TinyStudy) -> None:
    assert "nothing to do" in mergesearch("run", tiny.file).out
    more = mergesearch("run", tiny.file, "--trials", 7, "--quiet", "--residency", "device")
    assert "all 7 trials are done: 2 evaluated" in more.out
    assert not [line for line in more.out.splitlines() if line.startswith("trial ")]


def test_run_refuses_local_workers_by_the_dozen(tiny: TinyStudy) -> None:
    answer = mergesearch("run", tiny.file, "--workers", "local", "--count", 12)
    assert answer.code == 2
    assert "local is one worker" in answer.err


def test_a_study_that_would_score_otherwise_is_refused(tiny: TinyStudy) -> None:
    answer = mergesearch("run", tiny.change("evaluation", "metric", to="mrr@10").file)
    assert answer.code == 4
    assert "ndcg@10" in answer.err
    assert "mrr@10" in answer.err


def test_an_interrupted_run_goes_on(fresh: TinyStudy) -> None:
    """SIGTERM in the middle of a study, through a real process."""
    fresh.change("search", to={"strategy": "random", "minutes": 600})  # no machine is done before the signal
    fresh.change("merge", "coefficients", "alpha", to={"low": 0, "high": 1})
    with subprocess.Popen(
        [PROGRAM, "run", fresh.file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        assert it.stdout is not None
        for line in it.stdout:
            if line.startswith("trial   4"):
                it.send_signal(signal.SIGTERM)
                break
        _, err = it.communicate()
    assert it.returncode == 130
    assert "interrupted; nothing is lost. Go on with: mergesearch run" in err
    assert "Traceback" not in err
    status = json.loads(mergesearch("status", "-f", "json", fresh.file).out)
    complete = sum(t["state"] == "complete" for t in status["trials"])
    assert complete >= 5
    again = mergesearch("run", fresh.file, "--trials", len(status["trials"]))
    assert again.code == 0
    assert (
        json.loads(mergesearch("status", "-f", "json", fresh.file).out)["trials"][:complete]
        == (status["trials"][:complete])
    )


def test_status_as_table_and_json(tiny: TinyStudy) -> None:
    answer = mergesearch("status", tiny.file)
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[1].split()[:2] == ["trial", "state"]
    assert [line.split()[0] for line in lines[2:7]] == ["0", "1", "2", "3", "4"]
    status = json.loads(mergesearch("status", "-f", "json", tiny.file).out)
    assert [t["number"] for t in status["trials"]] == [0, 1, 2, 3, 4]
    assert status["trials"][status["best"]]["value"] == max(t["value"] for t in status["trials"])


def test_studies_of_a_database(tiny: TinyStudy) -> None:
    listed = json.loads(mergesearch("studies", "-f", "json", tiny.storage).out)
    status = json.loads(mergesearch("status", "-f", "json", tiny.file).out)
    assert [(s["name"], s["complete"], s["failed"], s["unfinished"]) for s in listed] == [("tiny", 5, 0, 0)]
    assert listed[0]["best_value"] == status["trials"][status["best"]]["value"]
    table = mergesearch("studies", tiny.storage).out.splitlines()
    assert [line.split()[0] for line in table] == ["study", "tiny"]
    assert mergesearch("studies", "--storage", tiny.storage).out.splitlines() == table
    assert mergesearch("studies", tiny.storage, "--storage", tiny.storage).code == 2
    assert mergesearch("studies", "sqlite:///nowhere.db").code == 4


def test_what_is_missing_is_named_by_what_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MERGESEARCH_STORAGE", "MERGESEARCH_STORAGE_FILE", "OPTUNA_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    assert "neither a study file nor a model folder" in mergesearch("evaluate", tmp_path / "away").err
    assert "name a study file, or a database" in mergesearch("dashboard").err


def test_a_run_that_goes_on_says_so(tiny: TinyStudy) -> None:
    again = mergesearch("run", tiny.file)
    assert "going on: 5 trials evaluated before" in again.out
    assert "going on" not in mergesearch("run", "--quiet", tiny.file).out


@pytest.mark.parametrize("command", ["status", "best", "plan", "methods"])
@pytest.mark.parametrize("width", [None, 100])
def test_tables_are_never_cut(
    tiny: TinyStudy, command: str, width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in a pipe nor in a terminal of 100 columns."""
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    answer = mergesearch(command, *([] if command == "methods" else [tiny.file]))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", answer.out)
    assert "…" not in plain.replace(" … ", "")
    lines = plain.splitlines()[:-3]
    if command == "best":  # the choice is told in sentences, which a terminal wraps
        lines = lines[next(i for i, line in enumerate(lines) if line.startswith("group ")) :]
    if width is not None:
        assert max(map(len, lines)) <= width
    for whole in {"methods": ["linear", "task_arithmetic"], "plan": ["retriever"]}.get(command, []):
        assert whole in plain


def test_best_as_table_and_json(tiny: TinyStudy) -> None:
    answer = mergesearch("best", tiny.file)
    assert answer.code == 0
    best = json.loads(mergesearch("best", "-f", "json", tiny.file).out)
    told = f"dev score {luck_in(best['value'], best['optimism'])}"
    assert told in answer.out
    assert best["verdict"] in ("merge", "source")
    assert ("so the source is recommended" in answer.out) == (best["verdict"] == "source")
    assert best["expected"] == best["value"] - best["optimism"]
    assert len(best["gain_interval"]) == 2
    assert "weight[retriever] = " in answer.out
    status = mergesearch("status", tiny.file)
    assert luck_in(best["best_value"], best["best_optimism"]) in status.out
    assert best["recipe"]["template"] == "retriever"
    assert len(best["fingerprint"]) == 64


def test_what_has_no_score_yet_is_code_3(fresh: TinyStudy) -> None:
    answer = mergesearch("status", fresh.file)
    assert answer.code == 4
    assert "mergesearch run" in answer.err
    fresh.change("search", "minutes", to=1e-9).change("search", "enqueue", to=[])
    assert mergesearch("run", fresh.file).code == 3
    assert mergesearch("best", fresh.file).code == 3
    assert mergesearch("export", fresh.file, "--out", fresh.folder / "merged").code == 3


def test_export_then_evaluate_the_folder(tiny: TinyStudy) -> None:
    merged = tiny.folder / "merged"
    answer = mergesearch("export", tiny.file, "--out", merged)
    assert answer.code == 0
    assert quiet(answer.out + answer.err)
    assert re.search(r"(0\.\d{4}) recorded, \1 re-scored", answer.out)
    again = mergesearch("export", tiny.file, "--out", merged)
    assert again.code == 6
    assert "--force" in again.err
    assert mergesearch("export", tiny.file, "--out", merged, "--trial", 2, "--force").code == 0
    unknown = mergesearch("export", tiny.file, "--out", tiny.folder / "other", "--trial", 99)
    assert unknown.code == 6
    assert "trial 99 has no score" in unknown.err

    scored = mergesearch("evaluate", merged, "--on", tiny.file, "-f", "json")
    assert scored.code == 0
    assert json.loads(scored.out)["split"] == "test"
    beir = mergesearch("evaluate", merged, "--beir", tiny.folder / "collection", "-f", "json")
    assert (
        json.loads(beir.out)["models"][0]["scores"]["collection"]
        == (json.loads(scored.out)["models"][0]["scores"]["made"])
    )
    assert mergesearch("evaluate", merged).code == 2


def test_evaluate_a_study(tiny: TinyStudy) -> None:
    answer = mergesearch("evaluate", tiny.file)
    assert answer.code == 0
    assert quiet(answer.out + answer.err)
    for row in ("retriever alone", "domain alone", "uniform average", "chosen (trial "):
        assert row in answer.out
    assert "has now been read 2 times" in mergesearch("evaluate", tiny.file).out
    assert mergesearch("evaluate", tiny.file, "--split", "train").code == 2


def test_methods_lists_every_plug_in() -> None:
    from mergesearch.merging.registry import METHODS
    from mergesearch.search.registry import STRATEGIES

    listed = json.loads(mergesearch("methods", "-f", "json").out)
    assert {m["name"] for m in listed["methods"]} == set(METHODS)
    assert {s["name"] for s in listed["strategies"]} == set(STRATEGIES)
    page = mergesearch("methods", "-f", "markdown").out
    assert all(f"| [`{name}`](https://" in page for name in METHODS)


def test_dashboard_needs_a_database_that_is_there(fresh: TinyStudy) -> None:
    assert mergesearch("dashboard").code == 2
    answer = mergesearch("dashboard", fresh.file)
    assert answer.code == 4
    assert "there is no study database" in answer.err


def test_an_interrupt_that_python_drops_is_sent_again() -> None:
    """Such as one that arrives while a destructor runs."""
    script = """
import signal, sys, time
from mergesearch import cli

class Destroyed:
    def __del__(self):
        raise KeyboardInterrupt

def slow(*arguments):
    signal.setitimer = set_timer
    set_timer(*arguments)
    time.sleep({delay})

set_timer, signal.setitimer = signal.setitimer, slow
sys.unraisablehook = cli._ask_again
try:
    Destroyed()
    time.sleep(3600)
except KeyboardInterrupt:
    print("heard")
"""
    for delay in (0, 0.1):  # the machine may be slower than the timer
        program = script.replace("{delay}", str(delay))
        finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert finished.stdout == "heard\n", finished.stderr


def test_notes_are_said_once(fresh: TinyStudy) -> None:
    few = "dev queries are few"
    assert few in mergesearch("run", fresh.file).out
    assert few not in mergesearch("run", fresh.file, "--trials", 6).out
    assert few in mergesearch("validate", fresh.file).out


def test_optunas_tools_call_the_value_by_its_metric(tiny: TinyStudy) -> None:
    import optuna

    study = optuna.load_study(study_name="tiny", storage=tiny.storage)
    assert study.metric_names == ["ndcg@10"]
    study._storage.remove_session()
    engine = study._storage._backend.engine  # type: ignore[attr-defined]
    with engine.begin() as connection:  # as a database of an earlier version
        connection.exec_driver_sql("DELETE FROM study_system_attributes WHERE key = 'study:metric_names'")
    assert study.metric_names is None
    assert mergesearch("run", tiny.file).code == 0
    assert study.metric_names == ["ndcg@10"]
    study._storage.remove_session()
    engine.dispose()
    command = ["best-trial", "--storage", tiny.storage, "--study-name", "tiny", "-f", "json"]
    found = subprocess.run([PROGRAM.with_name("optuna"), *command], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["value"] == {"ndcg@10": study.best_value}
    engine.dispose()


def test_the_program_leaves_the_process_that_called_it_as_it_was() -> None:
    before = sys.unraisablehook, signal.getsignal(signal.SIGTERM)
    for arguments in (["--help"], ["validate", "nowhere.yaml"]):
        mergesearch(*arguments)
        assert sys.unraisablehook is before[0]
        assert signal.getsignal(signal.SIGTERM) is before[1]


def test_a_strategys_options_are_checked_before_anything_is_loaded(fresh: TinyStudy) -> None:
    strategy = {"name": "embedding_surrogate", "objective": "worst", "candidates": 1}
    fresh.change("search", to={"strategy": strategy, "trials": 5})
    for command in ("validate", "plan", "run"):
        answer = mergesearch(command, fresh.file)
        assert answer.code == 2
        assert f"{fresh.line_of('objective:')}: objective: input should be 'lower_bound'" in answer.err
        assert f"{fresh.line_of('candidates:')}: candidates: " in answer.err
    assert not (fresh.folder / "study.db").exists()

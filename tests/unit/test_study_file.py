"""The schema of study files: what is accepted, and what is said about everything else, with its line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mergesearch.errors import StudyFileError
from mergesearch.study_checks import check_file
from mergesearch.study_file import parse_study, parse_study_text, storage_url
from mergesearch.study_schema import memory_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mergesearch.study_file import ParsedStudy

GOOD = """\
study: mine
sources:
  retriever: org/retriever
  domain: {model: ./domain}
merge:
  template: retriever
  groups: {segments: 2}
  coefficients:
    alpha: {low: 0, high: 1}
search:
  strategy: tpe
  trials: 10
evaluation:
  collections:
    - name: docs
      folder: data
"""


def parse(text: str) -> ParsedStudy:
    return parse_study_text(text, Path("folder/mine.yaml"))


def lines(text: str) -> Sequence[str]:
    """What is wrong with a study file, one problem per line, without any model at hand and without the folder."""
    with pytest.raises(StudyFileError) as caught:
        check_file(parse(text))
    found = [str(p) for p in caught.value.problems]
    assert all(line.startswith("folder/mine.yaml") for line in found)
    return [line.removeprefix("folder/") for line in found]


def spoilt(old: str, new: str) -> Sequence[str]:
    assert old in GOOD
    return lines(GOOD.replace(old, new, 1))


def test_a_sound_file_passes_and_shorthands_are_written_out() -> None:
    parsed = parse(GOOD)
    check_file(parsed)
    assert parsed.content.sources["retriever"].model == "org/retriever"
    assert parsed.content.sources["domain"].model == "./domain"
    assert parsed.content.search.strategy.name == "tpe"
    assert parsed.folder == Path("folder")


@pytest.mark.parametrize(
    ("written", "query", "document"),
    [("64", 64, 64), ("{query: 32, document: 128}", 32, 128), ("{document: 128}", None, 128)],
)
def test_a_maximum_length_is_one_number_or_one_for_each_kind(
    written: str, query: int | None, document: int | None
) -> None:
    parsed = parse(GOOD.replace("evaluation:\n", f"evaluation:\n  max_length: {written}\n"))
    assert (parsed.content.evaluation.max_length.query, parsed.content.evaluation.max_length.document) == (
        query,
        document,
    )


def test_every_problem_is_reported_at_once_in_the_order_of_lines() -> None:
    found = lines("sed: 3\n" + GOOD.replace("trials: 10", "trials: 0").replace("name: docs", "nam: docs"))
    assert [line.partition(": ")[0] for line in found] == ["mine.yaml:1", "mine.yaml:13", "mine.yaml:16"]
    assert found[0].endswith(
        "unknown key 'sed'. Did you mean 'seed'? "
        "Known: artifacts, evaluation, merge, search, seed, sources, storage, study, workers."
    )
    assert found[1].endswith("search.trials: expected a number greater than or equal to 1, found 0")
    assert found[2].endswith("evaluation.collections.0.name: is required")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("study: mine", "study: 2024", "mine.yaml:1: study: expected text, found 2024; put it in quotes"),
        ("study: mine", "study: my study", "mine.yaml:1: study: expected letters, digits"),
        (
            "{model: ./domain}",
            "{model: ./domain, revison: x}",
            "mine.yaml:4: sources.domain.revison: unknown key 'revison'. Did you mean 'revision'?",
        ),
        ("  domain: {model: ./domain}", "  domain: 3", "mine.yaml:4: sources.domain: expected a mapping, found 3"),
        ("segments: 2", "segments: true", "mine.yaml:7: merge.groups.segments: expected a whole number, found True"),
        ("    alpha: {low: 0, high: 1}\n", "", "mine.yaml:8: merge.coefficients: expected a mapping, found nothing"),
        (
            "  trials: 10",
            "  trials: 10\n  enqueue: [source]",
            "mine.yaml:13: search.enqueue.0: expected 'sources', 'uniform', 'without' or 'prompts' or a mapping, found",
        ),
        (
            "  trials: 10",
            "  trials: 10\n  enqueue: [{alpha: x}]",
            "mine.yaml:13: search.enqueue.0.alpha: expected a number, found 'x'",
        ),
        (
            "  groups:",
            "  options: {normalize: [1]}\n  groups:",
            "mine.yaml:7: merge.options.normalize: expected true or false or a number or text, found a list",
        ),
        ("evaluation:", "evaluation:\n  dtype: fp32", "mine.yaml:14: evaluation.dtype: expected 'float32',"),
        ("evaluation:", "evaluation:\n  max_length: 4", "mine.yaml:14: evaluation.max_length: expected a number"),
    ],
)
def test_each_problem_names_its_line_and_what_was_expected(old: str, new: str, expected: str) -> None:
    (found,) = spoilt(old, new)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("template: retriever", "template: retreiver", "mine.yaml:6: unknown source 'retreiver'. Did you mean"),
        ("  template:", "  method: liner\n  template:", "mine.yaml:6: unknown merge method 'liner'. Did you mean"),
        ("  template:", "  base: domain\n  template:", "mine.yaml:6: linear has no base"),
        (
            "  template:",
            "  options: {arithmetic: exact}\n  template:",
            "mine.yaml:6: arithmetic is one of float32, mergekit, found 'exact'",
        ),
        ("  domain: {model", "  low: {model", "mine.yaml:4: 'low' cannot name a source"),
        ("strategy: tpe", "strategy: tpo", "mine.yaml:11: unknown strategy 'tpo'. Did you mean 'tpe'?"),
        ("strategy: tpe", "strategy: {name: tpe, n_startup: 3}", "mine.yaml:11: unknown key 'n_startup'. Did you mean"),
        ("  trials: 10\n", "", "mine.yaml:10: tpe needs a budget: `trials:`, `minutes:` or `gpu_hours:`"),
        ("{segments: 2}", "{segments: 2, per_layer: true}", "mine.yaml:7: say exactly one of `segments`"),
        (
            "{segments: 2}\n  coefficients:\n    alpha",
            "{per_layer: true}\n  coefficients:\n    alhpa",
            "mine.yaml:9: merge.coefficients.alhpa: unknown coefficient of linear 'alhpa'. Did you mean 'alpha'?",
        ),
        ("evaluation:", "evaluation:\n  metric: ndcg10", "mine.yaml:14: "),
        ("evaluation:", "evaluation:\n  search: fais", "mine.yaml:14: unknown search backend 'fais'. Did you mean"),
        (
            "      folder: data",
            "      folder: data\n      querys: 5",
            "mine.yaml:17: unknown key 'querys'. Did you mean",
        ),
        ("      folder: data", "      format: bier", "mine.yaml:16: unknown collection format 'bier'. Did you mean"),
        ("      folder: data\n", "", "mine.yaml:15: folder: is required"),
        (
            "      folder: data",
            "      folder: data\n      test: {foldr: x}",
            "mine.yaml:17: unknown key 'foldr'. Did you mean 'folder'?",
        ),
        (
            "    - name: docs",
            "    - {name: docs, folder: one}\n    - name: docs",
            "mine.yaml:16: two collections are called 'docs'",
        ),
    ],
)
def test_names_and_options_are_checked_against_the_plug_ins(old: str, new: str, expected: str) -> None:
    (found,) = spoilt(old, new)
    assert found.startswith(expected)


WEIGHTS = """\
    weight:
      retriever: 1.0
      domain:
        segment_1: {low: 0, high: 1}
        segment_2: {low: 1, high: 0}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("", "", 13, "merge.coefficients.weight.domain.segment_2: low 1 is above high 0"),
        ("{low: 1, high: 0}", "{low: 0, hihg: 1}", 13, "hihg"),
        ("segment_2: {low: 1, high: 0}", "segment_3: 1", 13, "unknown group 'segment_3'. Did you mean"),
        ("      domain:", "      domian:", 11, "unknown source or group 'domian'. Did you mean"),
        ("    weight:", "    wieght:", 9, "merge.coefficients.wieght: unknown coefficient of linear 'wieght'. Did you"),
        ("{low: 1, high: 0}", "high", 13, "merge.coefficients.weight.domain.segment_2: expected a number"),
    ],
)
def test_a_problem_deep_in_the_coefficients_names_its_own_line(old: str, new: str, line: int, expected: str) -> None:
    text = GOOD.replace("    alpha: {low: 0, high: 1}\n", WEIGHTS.replace(old, new, 1) if old else WEIGHTS)
    found = [f for f in lines(text) if expected in f]
    assert len(found) == 1
    assert found[0].startswith(f"mine.yaml:{line}: ")


def test_coefficients_are_checked_beside_other_problems_and_none_is_said_twice() -> None:
    text = GOOD.replace("alpha: {low: 0", "alpha: {low: -1").replace("strategy: tpe", "strategy: tpo")
    found = lines(text)
    assert len(found) == len(set(found)) == 2
    assert "merge.coefficients.alpha.low: -1 is outside of what the method allows, 0 to 1" in found[0]


@pytest.mark.parametrize("named", [True, False])
def test_a_group_that_not_every_model_has_may_be_given_or_not(named: bool) -> None:
    """BERT has no norm after its layers; the file alone cannot know what the model has."""
    norm = "      final_norm: 0.5\n" if named else ""
    coefficients = f"    alpha:\n      segment_1: {{low: 0, high: 1}}\n      segment_2: 0.5\n{norm}"
    text = GOOD.replace("    alpha: {low: 0, high: 1}\n", coefficients)
    check_file(parse(text.replace("{segments: 2}", "{segments: 2, final_norm: own}")))


@pytest.mark.parametrize(("written", "n_bytes"), [("2GB", 2 << 30), ("1.5 KB", 1536), ("500MB", 500 << 20), ("7B", 7)])
def test_memory_is_written_with_its_unit(written: str, n_bytes: int) -> None:
    assert memory_bytes(parse(f"{GOOD}workers: {{prefix_cache: {written}}}\n").content.workers.prefix_cache) == n_bytes


@pytest.mark.parametrize("written", ["2", "lots", "2 GiB", "-1GB", "true", "'2'"])
def test_memory_without_one_is_refused(written: str) -> None:
    (found,) = lines(f"{GOOD}workers: {{prefix_cache: {written}}}\n")
    assert "workers.prefix_cache: expected" in found
    assert "'auto', 'off' or memory such as '2GB' or '500MB'" in found or "text" in found


def test_workers_are_a_number_or_as_many_as_there_is_room_for() -> None:
    assert parse(f"{GOOD}workers: {{kind: ray, count: 3}}\n").content.workers.count == 3
    assert parse(f"{GOOD}workers: {{kind: ray, count: auto, gpus: 2}}\n").content.workers.count == "auto"
    for wrong in ("0", "many", "1.5", "true"):
        (found,) = lines(f"{GOOD}workers: {{kind: ray, count: {wrong}}}\n")
        assert "workers.count: expected" in found
        assert "'auto'" in found


def test_yaml_that_is_not_sound_is_located() -> None:
    assert lines("study: [1\nsources: 2\n")[0].startswith("mine.yaml:2: not valid YAML")
    assert 'duplicate key "study"' in lines("study: a\nstudy: b\n")[0]
    assert "expected a mapping" in lines("- a\n- b\n")[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"there is no study file .*missing\.yaml"):
        parse_study(tmp_path / "missing.yaml")
    with pytest.raises(StudyFileError, match="is a folder"):
        parse_study(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("study: Prüfung\n".encode("latin-1"))
    with pytest.raises(StudyFileError, match="byte 9 is not UTF-8"):
        parse_study(tmp_path / "latin.yaml")


def test_which_database_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MERGESEARCH_STORAGE_FILE", raising=False)
    monkeypatch.delenv("MERGESEARCH_STORAGE", raising=False)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    named = parse(GOOD + "storage: sqlite:///named.db\n").content
    assert storage_url(parse(GOOD).content) == "sqlite:///mine.db"
    assert storage_url(named) == "sqlite:///named.db"
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///optuna.db")
    assert storage_url(named) == "sqlite:///optuna.db"
    (tmp_path / "url").write_text("sqlite:///secret.db\n")
    monkeypatch.setenv("MERGESEARCH_STORAGE_FILE", str(tmp_path / "url"))
    assert storage_url(named) == "sqlite:///secret.db"
    monkeypatch.setenv("MERGESEARCH_STORAGE", "sqlite:///ours.db")
    assert storage_url(named) == "sqlite:///ours.db"
    assert storage_url(named, "sqlite:///option.db") == "sqlite:///option.db"


def test_a_strategys_options_beside_the_strategy_are_shown_their_place() -> None:
    found = spoilt("  strategy: tpe", "  strategy: embedding_surrogate\n  objective: mean\n  exploraton: 1")
    assert "search.objective: is an option of embedding_surrogate: write it under `strategy`, as in" in found[0]
    assert "{name: embedding_surrogate, objective: …}" in found[0]
    assert found[0].startswith("mine.yaml:12:")
    assert "search.exploraton: unknown key" in found[1]
    (of_another,) = spoilt("  strategy: tpe", "  strategy: {name: tpe}\n  sigma0: 0.3")
    assert "is an option of cmaes" in of_another


def test_options_of_a_strategy_are_as_typed_as_the_file() -> None:
    wrong = "{name: embedding_surrogate, candidates: true, exploration: .inf, objective: best, patience: 0}"
    found = spoilt("  strategy: tpe", f"  strategy: {wrong}")
    assert len(found) == 4
    assert all("mine.yaml:11" in line for line in found)

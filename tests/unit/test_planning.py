"""The plan says what a trial really encodes, and memory is refused before it is needed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from mergesearch import memory_planning, planning, token_counts
from mergesearch.errors import MemoryPlanError, StudyFileError
from mergesearch.memory_planning import check_memory, memory_plan, worker_memory
from mergesearch.planning import make_plan
from mergesearch.resolving import load_study
from mergesearch.token_counts import count_tokens
from mergesearch.workers.evaluator import TrialEvaluator
from mergesearch.workers.residency import choose_residency
from tests.tiny_studies import TinyStudy, copy_study, make_study

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def tiny(whole: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(whole, tmp_path)


def agree(tiny: TinyStudy) -> int:
    """The planned tokens of a trial, once they are those that a trial encodes."""
    study = load_study(tiny.file)
    plan = make_plan(study)
    result = TrialEvaluator(study.evaluator_spec()).evaluate(study.recipe_of(study.anchors()[0].coefficients))
    planned = sum(plan.tokens_per_trial.values())
    assert plan.tokens_exact
    assert planned == result.tokens
    return planned


def test_planned_tokens_are_those_that_a_trial_encodes(tiny: TinyStudy) -> None:
    whole = agree(tiny)
    assert agree(tiny.change("evaluation", "max_length", to=8)) < whole
    tiny.change("evaluation", "max_length", to=None).change("evaluation", "prompts", to={"query": "search this: "})
    assert agree(tiny) > whole
    assert agree(tiny.change("evaluation", "collections", 0, "queries", to=3)) < whole
    assert agree(tiny.change("evaluation", "collections", 0, "pool", to={"negatives": 1})) < whole


@pytest.mark.parametrize("kind", ["xlm-roberta", "mistral", "t5"])
def test_the_templates_own_prompts_and_special_tokens_count(kind: str, tmp_path: Path) -> None:
    assert agree(make_study(tmp_path, kind=kind)) > 0


def test_lower_casing_and_stated_lengths_count(tiny: TinyStudy) -> None:
    stated = tiny.folder / "retriever" / "sentence_bert_config.json"
    stated.write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}), encoding="utf-8")
    agree(tiny)
    stated.unlink()
    agree(tiny)


def test_an_appended_end_token_counts(tmp_path: Path) -> None:
    tiny = make_study(tmp_path, kind="mistral")
    file = tiny.folder / "retriever" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    ends = tokenizer["post_processor"]["single"]
    tokenizer["post_processor"]["single"] = [e for e in ends if e.get("SpecialToken", {}).get("id") != "</s>"]
    for name in ("retriever", "domain"):
        (tiny.folder / name / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    without = agree(tiny.change("evaluation", "append_eos", to=False))
    n_texts = 30 + 8
    assert agree(tiny.change("evaluation", "append_eos", to=True)) == without + n_texts


def test_the_budget_of_gpu_hours_is_shown(tiny: TinyStudy) -> None:
    assert "GPU-hours" not in make_plan(load_study(tiny.file)).summary()
    tiny.change("search", "gpu_hours", to=2.5)
    plan = make_plan(load_study(tiny.file))
    assert plan.to_dict()["gpu_hours"] == 2.5
    assert "ends after 2.5 GPU-hours of its workers" in plan.summary()


def test_a_large_corpus_is_sampled_and_the_plan_says_so(tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(tiny.file)
    (exact,) = count_tokens(study).values()
    monkeypatch.setattr(token_counts, "SAMPLE_TEXTS", 10)
    (sampled,) = count_tokens(study).values()
    assert exact.exact
    assert not sampled.exact
    assert sampled.tokens == pytest.approx(exact.tokens, rel=0.4)
    assert "tokens per trial: about " in make_plan(study).summary()


def test_memory_counts_what_headers_say(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    memory = memory_plan(study)
    merged = {p for g in study.groups if g.merged for p in g.places}
    numbers = {p.name: p for p in study.layout.parameters.values()}
    elements = dict.fromkeys(numbers, 1)
    for name, parameter in numbers.items():
        for size in parameter.shape:
            elements[name] *= size
    assert memory.model == 4 * sum(elements.values())
    sources = 2 * 4 * sum(e for n, e in elements.items() if numbers[n].place in merged)
    assert (memory.residency, memory.mapped, memory.sources) == ("mapped", sources, 0)
    texts = [t for c in study.collections for t in (*c.query_texts, *c.doc_texts)]
    assert memory.study == sum(map(sys.getsizeof, texts)) >= sum(len(t.encode()) for t in texts)
    assert memory.texts == memory.study + 4 * sum(c.tokens for c in count_tokens(study).values())
    assert memory.embeddings == len(study.collections[0].doc_texts) * study.layout.hidden_size * 4
    assert memory.needed == memory.study + sum(getattr(memory, part) for part in memory.PARTS)
    free = {"available": memory.available, "host": memory.host}
    assert memory == replace(memory_plan(study, tokens=0), texts=memory.texts, **free)
    assert memory.fits
    two = memory_plan(load_study(tiny.change("workers", to={"kind": "ray", "count": 2, "device": "cpu"}).file))
    assert two.needed - two.study == 2 * (memory.needed - memory.study + two.libraries)


def test_every_worker_counts_its_own_copy_of_the_sources(tiny: TinyStudy) -> None:
    mapped = memory_plan(load_study(tiny.change("workers", to={"kind": "ray", "count": 3, "device": "cpu"}).file))
    own = memory_plan(load_study(tiny.change("workers", "residency", to="device").file))
    assert (own.residency, own.sources, own.mapped) == ("device", mapped.mapped, 0)
    assert own.needed == mapped.needed + 3 * mapped.mapped


def test_what_a_worker_needs_elsewhere_is_what_the_plan_says_of_one_here(tiny: TinyStudy) -> None:
    workers = {"kind": "ray", "count": 3, "device": "cpu", "prefix_cache": "off"}
    study = load_study(tiny.change("workers", to=workers).file)
    plan = memory_plan(study)
    assert 3 * worker_memory(study) == plan.needed - plan.study
    own = load_study(tiny.change("workers", "residency", to="device").file)
    assert worker_memory(own) == worker_memory(study) + plan.mapped
    roomy = load_study(tiny.change("workers", "residency", to=None).change("workers", "prefix_cache", to="auto").file)
    assert worker_memory(roomy) == worker_memory(study)  # it takes what is left
    on_gpus = load_study(tiny.change("workers", to={"kind": "ray", "count": "auto", "device": "cuda"}).file)
    assert worker_memory(on_gpus) == plan.libraries + plan.model + plan.texts  # though there is none here


GPU, HOST = 1 << 33, 1 << 34


@pytest.mark.parametrize(
    ("asked", "spare_on_device", "host", "expected"),
    [
        ("auto", 0, HOST, "device"),
        ("auto", -1, HOST, "pinned"),
        ("auto", -1, 1000, "mapped"),
        ("mapped", 0, HOST, "mapped"),
        ("pinned", 0, HOST, "pinned"),
        ("device", -1, HOST, "too little"),
        ("pinned", 0, 1000, "too little"),
        ("auto", -GPU, HOST, "too little"),
    ],
)
def test_sources_go_where_they_fit(
    asked: str, spare_on_device: int, host: int, expected: str, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"cuda": GPU, "cpu": HOST}
    monkeypatch.setattr(memory_planning, "free_memory", free.__getitem__)
    workers = {"kind": "ray", "count": 2, "device": "cuda", "residency": "device"}
    on_device = memory_plan(load_study(tiny.change("workers", to=workers).file))
    free |= {"cuda": max(0, on_device.needed + spare_on_device), "cpu": host}
    study = load_study(tiny.change("workers", "residency", to=asked).file)
    memory = memory_plan(study)
    if expected == "too little":
        advice = {"device": "residency: auto", "pinned": "residency: mapped", "auto": "a larger device"}[asked]
        with pytest.raises(MemoryPlanError, match=advice):
            check_memory(study)
        return
    assert check_memory(study) == memory
    assert memory.describe().startswith(f"sources: {expected} (")
    held = {"device": memory.sources, "pinned": memory.on_host, "mapped": memory.mapped}
    assert [name for name, n_bytes in held.items() if n_bytes] == [expected]
    if expected == "pinned":  # by both workers, in powers of two
        assert 2 * on_device.sources <= memory.on_host <= 4 * on_device.sources


def test_mapped_sources_larger_than_memory_are_allowed_and_said_to_be_slow(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(tiny.file)
    plan = memory_plan(study)
    assert "read anew" not in plan.describe()
    monkeypatch.setattr(memory_planning, "free_memory", lambda _: plan.mapped - 1)
    assert "read anew for every trial" in memory_plan(study).describe()


def test_page_locked_memory_is_for_cuda(tiny: TinyStudy) -> None:
    tiny.change("workers", "residency", to="pinned")
    with pytest.raises(StudyFileError, match=r"study\.yaml:\d+: pinned is for CUDA devices, and `device` is cpu"):
        load_study(tiny.file)
    with pytest.raises(MemoryPlanError, match=r"the device is 'cpu'\. Take `auto`, or `mapped`"):
        choose_residency("pinned", "cpu", [1], room=2, host=2)


@pytest.mark.parametrize(("device", "measured"), [("cuda", None), ("cuda:1", 1), ("mps", "system"), ("cpu", "system")])
def test_memory_is_measured_where_the_study_runs(
    device: str, measured: int | str | None, tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus: dict[int | str | None, int] = {None: 1 << 40, 1: 1 << 41}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (gpus[d.index], 1 << 42))
    ray = {"kind": "ray", "count": 2, "device": device}
    memory = memory_plan(load_study(tiny.change("workers", to=ray).file))
    if measured == "system":
        assert memory.available not in gpus.values()
        assert memory.workers == 2
        assert memory.texts > memory.study > 0
    else:
        assert memory.available == gpus[measured]
        assert (memory.workers, memory.texts, memory.study, memory.libraries) == (1, 0, 0, 0)


def test_limits_on_the_process_count(tmp_path: Path) -> None:
    """Of nested control groups the tightest; what is only cached is free."""
    free = memory_planning.free_memory("cpu", root=tmp_path)
    assert free > 1 << 20

    def limit(group: Path, limit: str, current: int, stat: str = "anon 5") -> None:
        group.mkdir(exist_ok=True)
        for name, text in {"max": limit, "current": str(current), "stat": stat}.items():
            (group / f"memory.{name}").write_text(text + "\n", encoding="utf-8")

    def measure(cgroup: str) -> int:
        return memory_planning.free_memory("cpu", cgroup=cgroup, root=tmp_path)

    limit(tmp_path / "outer", "5000", 3000)
    limit(tmp_path / "outer" / "inner", "max", 1000)
    assert measure("/") > 1 << 20
    assert measure("/outer/inner") == measure("/outer") == measure("/outer/gone") == 2000
    limit(tmp_path / "outer" / "inner", "1500", 1000, "anon 600\nactive_file 100\ninactive_file 300")
    assert measure("/outer/inner") == 900
    limit(tmp_path, "100", 200)  # a container sees its own group as the root
    assert measure("/outer/inner") == measure("/elsewhere") == measure("/") == 0


def test_too_little_memory_is_refused_by_run_and_shown_by_plan(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(tiny.file)
    short = replace(memory_plan(study), available=1 << 20)
    for module in (memory_planning, planning):
        monkeypatch.setattr(module, "memory_plan", lambda _, **__: short)
    with pytest.raises(MemoryPlanError, match=r"MiB are needed, 1\.0 MiB are available\. Use fewer workers"):
        check_memory(study)
    tables = {title: rows for title, _, rows in make_plan(study).tables()}
    assert any("TOO LITTLE" in str(row[0]) for row in tables["memory"])


def test_a_plan_is_plain_json(tiny: TinyStudy) -> None:
    plan = make_plan(load_study(tiny.file)).to_dict()
    assert json.loads(json.dumps(plan)) == plan
    assert plan["space"] == {"alpha.segment_1": "0, 0.5, 1", "alpha.segment_2": "0, 0.5, 1"}
    assert (plan["trials"], plan["grid_points"]) == (5, 9)


def test_a_plan_says_how_is_searched_and_what_may_end_early(tiny: TinyStudy) -> None:
    strategy = {"name": "embedding_surrogate", "patience": 3}
    tiny.change("search", to={"strategy": strategy, "trials": 7, "racing": {"looks": [0.25, 0.5]}})
    summary = make_plan(load_study(tiny.file)).summary()
    assert "strategy: embedding_surrogate (objective lower_bound, patience 3); scored by" in summary
    assert "scored by ndcg@10, raced: trials may be stopped after 25%, 50% of the queries" in summary
    assert "trials: at most 7" in summary
    timed = make_plan(load_study(tiny.change("search", to={"strategy": "random", "trials": 7, "minutes": 1.0}).file))
    assert "trials: at most 7" in timed.summary()
    plain = make_plan(load_study(tiny.change("search", to={"strategy": "random", "trials": 7}).file))
    assert "trials: 7;" in plain.summary()


def test_memory_counts_the_embeddings_that_predictions_are_made_from(tiny: TinyStudy) -> None:
    without = memory_plan(load_study(tiny.change("workers", "prefix_cache", to="off").file))
    study = load_study(tiny.change("search", to={"strategy": "embedding_surrogate", "trials": 7}).file)
    with_banks = memory_plan(study)
    (collection,) = study.collections
    rows = len(collection.query_ids) + len(collection.doc_ids)
    assert without.banks == 0
    assert with_banks.banks >= 2 * 7 * rows * study.layout.hidden_size * 2  # in float16, held and stacked
    assert with_banks.needed == without.needed + with_banks.banks
    assert any(row[0] == "banks" for _, _, rows in make_plan(study).tables() for row in rows)


def test_memory_of_several_gpus_is_that_of_the_fullest(tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [1 << 40, 1 << 39, 1 << 41]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (gpus[d.index or 0], 1 << 42))
    one = memory_plan(load_study(tiny.change("workers", to={"device": "cuda", "residency": "device"}).file))
    study = load_study(tiny.change("workers", "gpus", to=2).file)
    two = memory_plan(study)
    assert (one.gpus, two.gpus) == (1, 2)
    assert (one.available, two.available) == (1 << 40, 1 << 39)
    assert one.model / 2 <= two.model < one.model
    assert two.sources / two.model == pytest.approx(one.sources / one.model, rel=1e-3)
    assert (two.workspace, two.batches, two.prefixes) == (one.workspace, one.batches, 0)
    with pytest.raises(MemoryPlanError, match="asks for more CUDA GPUs than the 3"):
        memory_plan(load_study(tiny.change("workers", "gpus", to=4).file))

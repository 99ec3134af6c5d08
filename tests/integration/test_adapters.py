"""Studies with PEFT adapters among their sources, from the file to the export."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergesearch import evaluate_folder, evaluate_study, export_merge, load_study, open_store, run_study
from mergesearch.errors import ExportError, StudyFileError
from mergesearch.listener import Listener
from mergesearch.memory_planning import memory_plan
from mergesearch.results.export import RECIPE_FILE
from mergesearch.workers.opening import open_merger
from tests.tiny_adapters import ALPHA, RANK, make_adapter, write_config
from tests.tiny_studies import TinyStudy, copy_study, make_study

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.study import Study

MODULES = ["query", "value", "output.dense"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """RE-AdaptIR: `retriever` is the base, `domain` was tuned from it, `psi` adapts it."""
    tiny = make_study(tmp_path_factory.mktemp("study"))
    make_adapter(
        tiny.folder / "retriever", tiny.folder / "adapter", modules=MODULES, base_model_name_or_path="retriever"
    )
    psi = {"model": "adapter", "adapter_of": "base"}
    tiny.change("sources", to={"base": "retriever", "domain": "domain", "psi": psi})
    tiny.change("merge", "method", to="re_adapt").change("merge", "base", to="base")
    tiny.change("merge", "template", to="domain").change("merge", "coefficients", to={"alpha": {"values": [0, 0.5, 1]}})
    tiny.change("merge", "groups", to={"segments": 1})
    return tiny.change("search", to={"strategy": "grid"})


@pytest.fixture
def tiny(made: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(made, tmp_path)


def adapted(folder: Path) -> dict[str, torch.Tensor]:
    """What the adapter makes of its base, worked out in float64."""
    tensors = {name: t.double() for name, t in load_file(folder / "retriever" / "model.safetensors").items()}
    parts = load_file(folder / "adapter" / "adapter_model.safetensors")
    for key, a in parts.items():
        if key.endswith("lora_A.weight"):
            b = parts[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            tensors[name] = tensors[name] + ALPHA / RANK * b.double() @ a.double()
    return tensors


def problems(tiny: TinyStudy) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        load_study(tiny.file)
    return [str(p) for p in caught.value.problems]


def test_re_adapt_adds_both_task_vectors(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    encoder, merger = open_merger(study.evaluator_spec())
    merger.apply(study.recipe_of({"segment_1": {"alpha": 0.5, "beta": 1.25}}))
    base, domain = (load_file(tiny.folder / n / "model.safetensors") for n in ("retriever", "domain"))
    for name, changed in adapted(tiny.folder).items():
        theta, delta = base[name].double(), domain[name].double() - base[name].double()
        merged = name.startswith("encoder.")
        expected = theta + 0.5 * (changed - theta) + 1.25 * delta if merged else domain[name].double()
        torch.testing.assert_close(encoder.parameters[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_memory_of_what_the_adapter_changes_is_planned(tiny: TinyStudy) -> None:
    memory = memory_plan(load_study(tiny.file))
    before, after = load_file(tiny.folder / "retriever" / "model.safetensors"), adapted(tiny.folder)
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name].double())]
    assert memory.residency == "mapped"
    assert memory.sources == sum(4 * after[name].numel() for name in changed)


def test_found_by_the_base_that_it_names(tiny: TinyStudy) -> None:
    named = load_study(tiny.file)
    by_itself = load_study(tiny.change("sources", "psi", to="adapter").file)
    assert by_itself.checkpoints["psi"].content_hash == named.checkpoints["psi"].content_hash
    assert by_itself.evaluator_spec() == named.evaluator_spec()
    shutil.move(tiny.folder / "retriever", tiny.folder / "moved")
    tiny.change("sources", "base", to="moved")
    write_config(tiny.folder / "adapter", {"peft_type": "LORA", "base_model_name_or_path": str(tiny.folder / "gone")})
    (problem,) = problems(tiny)
    assert problem.startswith(tiny.line_of("psi:"))
    assert "gone' (says adapter_config.json) was not found" in problem
    assert "adapter_of: SOURCE" in problem


def test_scored_alone_and_exported(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Listener())
        assert {t.user_attrs.get("anchor") for t in store.trials()} >= {"domain alone", "psi's layers"}
        found = evaluate_study(study, store)
        exported = export_merge(study, store, tiny.folder / "merged")
        with pytest.raises(ExportError, match="is or holds a source"):
            export_merge(study, store, _with_recipe_file(tiny.folder / "adapter"), force=True)
    whole = shutil.copytree(tiny.folder / "retriever", tiny.folder / "whole")
    save_file({n: t.float() for n, t in adapted(tiny.folder).items()}, whole / "model.safetensors")
    (expected,) = evaluate_folder(whole, study=study).models
    alone = next(m for m in found.models if m.label == "psi alone")
    np.testing.assert_allclose(alone.result.collections[0].scores, expected.result.collections[0].scores, atol=1e-9)
    sources = json.loads((exported.folder / RECIPE_FILE).read_text(encoding="utf-8"))["recipe"]["sources"]
    assert [s["location"] for s in sources] == ["retriever", "domain", "adapter"]
    assert sources[2]["content_hash"] == study.checkpoints["psi"].content_hash != sources[0]["content_hash"]


def _with_recipe_file(folder: Path) -> Path:
    (folder / RECIPE_FILE).touch()
    return folder


def test_an_adapter_that_changed_is_another_source(tiny: TinyStudy) -> None:
    def relevant(study: Study) -> object:
        return study.score_relevant()["sources"]

    before = relevant(load_study(tiny.file))
    shutil.rmtree(tiny.folder / "adapter")
    make_adapter(tiny.folder / "retriever", tiny.folder / "adapter", modules=MODULES, seed=1)
    after = relevant(load_study(tiny.file))
    assert [n for n in before if before[n] != after[n]] == ["psi"]  # type: ignore[attr-defined, index]


def test_wrong_roles_are_reported_together(tiny: TinyStudy) -> None:
    tiny.change("sources", "other", to={"model": "adapter", "adapter_of": "psi"})
    tiny.change("sources", "plain", to={"model": "domain", "adapter_of": "base"})
    tiny.change("sources", "itself", to={"model": "adapter", "adapter_of": "itself"})
    tiny.change("merge", "template", to="psi").change("merge", "method", to="task_arithmetic")
    tiny.change("merge", "coefficients", to={"weight": {"values": [0, 1]}})
    found = problems(tiny)
    assert [p.partition(": ")[0] for p in found] == [
        tiny.line_of(text) for text in ("other:", "plain:", "itself:", "template:")
    ]
    assert "'psi' is an adapter itself; name the model" in found[0]
    assert "holds no adapter (no adapter_config.json)" in found[1]
    assert "'itself' is an adapter itself" in found[2]
    assert "'psi' is a PEFT adapter and no whole model" in found[3]
    tiny.change("sources", "psi", "adapter_of", to="bsae")
    assert any("unknown source 'bsae'. Did you mean 'base'?" in p for p in problems(tiny))

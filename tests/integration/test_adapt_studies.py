"""The study files of RE-AdaptIR with the paper's models, on tiny models of the same layouts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from ruamel.yaml import YAML

from mergesearch import load_study
from mergesearch.cli import cli
from mergesearch.sources.adapter import open_source
from mergesearch.training.adapters import AdapterSettings
from mergesearch.training.knowledge import KnowledgeSettings, train_knowledge_adapter
from mergesearch.workers.opening import open_merger
from tests.tiny_models import make_tiny
from tests.tiny_studies import TinyStudy, make_beir

if TYPE_CHECKING:
    import click

ROOT = Path(__file__).resolve().parents[2]
PAPER = {"re-adapt-e5-mistral": "mistral", "re-adapt-repllama": "llama"}


@pytest.mark.parametrize("name", ["re-adapt-e5-mistral", pytest.param("re-adapt-repllama", marks=pytest.mark.slow)])
def test_a_study_of_the_paper_merges_models_of_its_layouts(name: str, tmp_path: Path) -> None:
    kind = PAPER[name]
    make_tiny(kind, tmp_path / "base", n_layers=2, head="causal", sentence_transformers=False)
    make_beir(tmp_path / "collection")

    def adapter(out: str, seed: int) -> None:
        settings = KnowledgeSettings(AdapterSettings(rank=2, alpha=4), steps=2, seed=seed, learning_rate=0.01)
        where = tmp_path / "collection"
        train_knowledge_adapter(str(tmp_path / "base"), [where], tmp_path / out, settings, device="cpu")

    adapter("psi", 0)
    if kind == "llama":
        adapter("retriever", 1)
    else:
        make_tiny(kind, tmp_path / "retriever", n_layers=2, seed=1)
    content: dict[str, Any] = YAML(typ="safe").load(ROOT / "studies" / f"{name}.yaml")
    sources = content["sources"]
    sources["base"], sources["knowledge"]["model"] = "base", "psi"
    sources["retriever"] = {**sources["retriever"], "model": "retriever"} if kind == "llama" else "retriever"
    content["evaluation"]["collections"] = [{"name": "made", "folder": "collection"}]
    content["evaluation"]["max_length"] = 32
    content["workers"] = {"device": "cpu", "threads": 1}
    tiny = TinyStudy(tmp_path)
    tiny.write({**content, "storage": tiny.storage})

    study = load_study(tiny.file)
    assert study.planned_trials is not None
    encoder, merger = open_merger(study.evaluator_spec())
    merger.apply(study.recipe_of({"segment_1": {"alpha": 0.5, "beta": 1.0}}))
    base, psi = open_source("base", tmp_path / "base"), open_source("psi", tmp_path / "base", tmp_path / "psi")
    retriever = study.checkpoints["retriever"]
    for module in ("self_attn.q_proj", "mlp.down_proj", "mlp.gate_proj"):
        weight = f"layers.1.{module}.weight"
        theta, adapted = base.read(f"model.{weight}"), psi.read(f"model.{weight}")
        delta = retriever.read(f"model.{weight}" if kind == "llama" else weight) - theta
        expected = theta + 0.5 * (adapted - theta) + delta
        merged = encoder.parameters[weight]
        assert torch.allclose(merged.float(), expected, atol=0.01, rtol=0.01), weight  # bfloat16
        assert torch.equal(adapted, theta) == ("gate" in module)


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_command_of_an_opening_comment_is_one(file: Path, tmp_path: Path) -> None:
    """Where it says that data lie, something does."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#     mergesearch "):
            name, *arguments = shlex.split(line.removeprefix("#     mergesearch "), comments=True)
            given = zip(["", *arguments], arguments, strict=False)
            arguments = [str(tmp_path) if option in ("--pairs", "--documents") else a for option, a in given]
            command: click.Command = cli.commands[name]
            command.make_context(name, arguments)

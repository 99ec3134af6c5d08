"""Knowledge adapters: what they change, what reads them, and that a killed training goes on as if nothing had been."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, MistralConfig

from mergesearch.cli import cli
from mergesearch.errors import CollectionError, MemoryPlanError, MergesearchError, SourceError
from mergesearch.sources.adapter import open_source
from mergesearch.sources.layout import build_skeleton
from mergesearch.training import memory
from mergesearch.training.adapters import AdapterSettings, adapter_parameters
from mergesearch.training.harness import RECORD_FILE
from mergesearch.training.knowledge import Adapted, KnowledgeSettings, train_knowledge_adapter
from mergesearch.training.resumable import work_folder
from tests.processes import kill_when
from tests.tiny_models import WORDS, file_hashes, make_tiny

pytest_plugins = ["tests.training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = {
    "bert": "mlm",
    "modernbert": "auto",
    "distilbert": "auto",
    "mpnet": "auto",
    "mistral": "causal",
    "qwen3": "auto",
}
QUICK = ("bert", "qwen3")
SHAPE = AdapterSettings(rank=4, alpha=8)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("documents") / "documents.txt"
    file.write_text("".join(f"the {a} of {b} model graph\n" for a in WORDS[8:20] for b in WORDS[32:36]))
    return file


def adapt(model: Path, documents: Path, out: Path, **options: Any) -> Adapted:
    """A short training; options of `KnowledgeSettings` and of the call."""
    calls = {name: options.pop(name) for name in ("progress", "save_every_s", "restart") if name in options}
    settings = {"adapter": SHAPE, "steps": 6, "max_length": 16, "learning_rate": 5e-3, **options}
    return train_knowledge_adapter(str(model), [documents], out, KnowledgeSettings(**settings), device="cpu", **calls)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        *(pytest.param(kind, "dora", marks=[] if kind in QUICK else pytest.mark.slow) for kind in HEADS),
        ("bert", "lora"),
        ("mistral", "rslora"),
    ],
)
def test_an_adapter_is_a_source_and_peft_merges_it_alike(
    kind: str, adapter: Any, documents: Path, tmp_path: Path
) -> None:
    base = make_tiny(kind, tmp_path / kind, n_layers=2, head=HEADS[kind])
    before = file_hashes(base)
    made = adapt(base, documents, tmp_path / "out", adapter=AdapterSettings(adapter, rank=4, alpha=8))
    assert file_hashes(base) == before
    assert made.objective == ("next_token" if kind in ("mistral", "qwen3") else "masked")
    source = open_source("psi", base, made.folder)
    merged = PeftModel.from_pretrained(AutoModel.from_pretrained(base), made.folder).merge_and_unload().state_dict()
    changed = {raw: source.read(raw) for raw in source.made}
    prefix = {"bert": "bert.", "mistral": "model."}.get(kind, "")
    encoder = {name: tensor for name, tensor in merged.items() if f"{prefix}{name}" in changed}
    assert len(encoder) == len(changed) > 0
    for name, tensor in encoder.items():
        assert torch.allclose(changed[f"{prefix}{name}"], tensor, atol=1e-5), name
        assert not torch.equal(changed[f"{prefix}{name}"], source.base.read(f"{prefix}{name}"))  # type: ignore[attr-defined]


def test_by_default_it_goes_where_the_paper_puts_it(tmp_path: Path, documents: Path) -> None:
    mistral = make_tiny("mistral", tmp_path / "mistral", n_layers=1, head="causal")
    made = adapt(mistral, documents, tmp_path / "out", adapter=AdapterSettings(), steps=1)
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert [config[k] for k in ("r", "lora_alpha", "lora_dropout", "use_dora")] == [32, 64, 0.05, True]
    modules = {name.split(".")[-3] for name in load_file(made.folder / "adapter_model.safetensors") if "lora_A" in name}
    assert modules == {"q_proj", "k_proj", "v_proj", "up_proj", "down_proj"}
    everywhere = adapt(mistral, documents, tmp_path / "all", adapter=AdapterSettings(targets="all"), steps=1)
    modules = {n.split(".")[-3] for n in load_file(everywhere.folder / "adapter_model.safetensors") if "lora_A" in n}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("kind", ["bert", pytest.param("mistral", marks=pytest.mark.slow)])
def test_the_loss_falls(kind: str, documents: Path, tmp_path: Path) -> None:
    base = make_tiny(kind, tmp_path / kind, n_layers=2, head=HEADS[kind])
    record = adapt(base, documents, tmp_path / "out", steps=20, learning_rate=3e-2)
    assert record.losses[1] < record.losses[0] - 0.3


def _train_and_hang(base: Path, documents: Path, out: Path, at: int) -> None:
    torch.set_num_threads(1)
    hang = lambda done, _: threading.Event().wait() if done == at else None  # noqa: E731
    adapt(base, documents, out, save_every_s=0, progress=hang)


def interrupted(base: Path, documents: Path, out: Path, **options: Any) -> None:
    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(base, documents, out, save_every_s=0, progress=stop, **options)


def test_a_killed_training_goes_on_to_the_same_bits(bert: Path, documents: Path, tmp_path: Path) -> None:
    """Dropout, masks, order, optimizer, schedule and logged losses are all as if nothing had been."""
    undisturbed = adapt(bert, documents, tmp_path / "undisturbed")
    out = tmp_path / "out"
    checkpoints = work_folder(out) / "checkpoints"
    kill_when(checkpoints / "checkpoint-4" / "whole", _train_and_hang, bert, documents, out, 5)
    assert not out.exists()
    # As if it had been killed while it was writing, too.
    (checkpoints / "checkpoint-5").mkdir(exist_ok=True)
    (checkpoints / "checkpoint-5" / "whole").unlink(missing_ok=True)
    seen: list[tuple[int, int]] = []
    adapt(bert, documents, out, progress=lambda *step: seen.append(step))
    assert seen == [(4, 6), (5, 6), (6, 6)]
    assert file_hashes(out) == file_hashes(undisturbed.folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "undisturbed"]


def test_checkpoints_that_were_never_finished_push_no_whole_one_out(
    bert: Path, documents: Path, tmp_path: Path
) -> None:
    """A process that is killed while it writes leaves one, with more steps than the next process begins with."""
    undisturbed = adapt(bert, documents, tmp_path / "undisturbed")
    interrupted(bert, documents, tmp_path / "out")
    for step in (90, 91):
        unfinished = work_folder(tmp_path / "out") / "checkpoints" / f"checkpoint-{step}"
        unfinished.mkdir()
        os.utime(unfinished, (2e9, 2e9))  # trainers go by time or by steps: it is the last by both
    adapt(bert, documents, tmp_path / "out", save_every_s=0)
    assert file_hashes(tmp_path / "out") == file_hashes(undisturbed.folder)


def test_an_interrupted_decoder_goes_on_to_the_same_bits(documents: Path, tmp_path: Path) -> None:
    base = make_tiny("mistral", tmp_path / "base", n_layers=1, head="causal")
    undisturbed = adapt(base, documents, tmp_path / "undisturbed", accumulate=2, steps=4)
    interrupted(base, documents, tmp_path / "out", accumulate=2, steps=4)
    adapt(base, documents, tmp_path / "out", accumulate=2, steps=4)
    assert file_hashes(tmp_path / "out") == file_hashes(undisturbed.folder)


def test_checkpoints_hold_what_is_trained_and_nothing_else(bert: Path, documents: Path, tmp_path: Path) -> None:
    interrupted(bert, documents, tmp_path / "out")
    folder = work_folder(tmp_path / "out") / "checkpoints" / "checkpoint-2"
    names = set(load_file(folder / "trained.safetensors"))
    assert names
    assert all("lora_" in name or name.startswith("cls.predictions") for name in names)


def test_other_settings_are_refused_and_named(bert: Path, documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(bert, documents, out)
    with pytest.raises(MergesearchError, match=r"begun with other settings \(adapter\.rank: 4, now 5\).*--restart"):
        adapt(bert, documents, out, adapter=AdapterSettings(rank=5, alpha=8))
    more = tmp_path / "more.txt"
    more.write_text(documents.read_text() + "one more graph\n")
    with pytest.raises(MergesearchError, match="documents_sha256"):
        adapt(bert, more, out)
    made = adapt(bert, documents, out, seed=1, restart=True)
    assert not made.before
    assert adapt(bert, documents, out, seed=1).before
    with pytest.raises(MergesearchError, match=r"exists and was made with other settings \(seed: 1, now 2\)"):
        adapt(bert, documents, out, seed=2)


def test_documents_that_could_not_be_read_may_be_mended(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text('{"text": "a graph of words"}\n{"txt": 1}\n')
    with pytest.raises(CollectionError, match=r"documents\.jsonl:2"):
        adapt(bert, file, tmp_path / "out")
    file.write_text('{"text": "a graph of words"}\n')
    assert adapt(bert, file, tmp_path / "out", steps=2).documents == 1


def test_two_processes_do_not_train_the_same_adapter(bert: Path, documents: Path, tmp_path: Path) -> None:
    with (tmp_path / ".out.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MergesearchError, match="another process is training"):
            adapt(bert, documents, tmp_path / "out")


def test_what_is_there_is_not_overwritten(bert: Path, documents: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(MergesearchError, match="new folder"):
        adapt(bert, documents, tmp_path)
    with pytest.raises(MergesearchError, match="is a file"):
        adapt(bert, documents, tmp_path / "note.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_training_that_diverges_leaves_no_adapter(bert: Path, documents: Path, tmp_path: Path) -> None:
    with pytest.raises(MergesearchError, match=r"diverged|NaN or infinite"):
        adapt(bert, documents, tmp_path / "out", learning_rate=1e38)
    assert not (tmp_path / "out").exists()


def test_low_precision_and_recomputed_activations(bert: Path, documents: Path, tmp_path: Path) -> None:
    """bfloat16 computes on frozen weights; the adapter is float32. Recomputing changes no bit of it on a CPU."""
    low = adapt(bert, documents, tmp_path / "low", dtype="bfloat16")
    assert {t.dtype for t in load_file(low.folder / "adapter_model.safetensors").values()} == {torch.float32}
    plain = adapt(bert, documents, tmp_path / "plain")
    again = adapt(bert, documents, tmp_path / "again", checkpointing=True)
    stored = [load_file(made.folder / "adapter_model.safetensors") for made in (plain, again, low)]
    for name, tensor in stored[0].items():
        assert torch.allclose(tensor, stored[1][name], atol=1e-6), name
    assert any(not torch.equal(tensor, stored[2][name]) for name, tensor in stored[0].items())


def test_the_record_says_where_it_came_from(bert: Path, documents: Path, tmp_path: Path) -> None:
    made = adapt(bert, documents, tmp_path / "out", batch_size=2, accumulate=2, steps=4)
    record = json.loads((made.folder / RECORD_FILE).read_text())
    assert record["asked"]["documents_sha256"] == [hashlib.sha256(documents.read_bytes()).hexdigest()]
    assert (record["documents"], record["examples"], record["steps"]) == (48, 16, 4)
    assert len(record["losses"]) == 4
    assert json.loads((made.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(bert)


@pytest.mark.parametrize(
    ("kind", "head", "objective", "said"),
    [
        ("t5", "auto", "auto", "'t5' has no masked-language-model head"),
        ("mistral", "auto", "auto", "no next-token head"),
        ("mistral", "causal", "masked", "'mistral' has no masked"),
        ("bert", "auto", "next_token", "attends to both sides"),
        ("gemma3_text", "auto", "auto", "attends to both sides"),
    ],
)
def test_models_that_cannot_learn_so_are_refused(
    kind: str, head: str, objective: str, said: str, documents: Path, tmp_path: Path
) -> None:
    base = make_tiny(kind, tmp_path / kind, n_layers=1, head=head)
    with pytest.raises(SourceError, match=said):
        adapt(base, documents, tmp_path / "out", objective=objective)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_an_adapter_is_refused(bert: Path, documents: Path, tmp_path: Path) -> None:
    made = adapt(bert, documents, tmp_path / "out", steps=1)
    with pytest.raises(SourceError, match="is an adapter; give the model"):
        adapt(made.folder, documents, tmp_path / "other")


def test_what_cannot_be_is_refused_before_anything_is_done(bert: Path, documents: Path, tmp_path: Path) -> None:
    with pytest.raises(MergesearchError, match="epochs = -1, learning_rate = 0"):
        adapt(bert, documents, tmp_path / "out", epochs=-1, learning_rate=0)
    with pytest.raises(MergesearchError, match="more than the model's 66 positions"):
        adapt(bert, documents, tmp_path / "out", max_length=67)
    with pytest.raises(SourceError, match=r"no linear layer fits the targets 'q_proj'.*: dense, key, query, value"):
        adapt(bert, documents, tmp_path / "out", adapter=AdapterSettings(targets="q_proj"))
    with pytest.raises(CollectionError, match="no such file"):
        adapt(bert, tmp_path / "none.txt", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_the_device_does_not_hold_is_refused(
    bert: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 1 << 10)
    with pytest.raises(MemoryPlanError, match=r"training needs about .*--batch-size"):
        adapt(bert, documents, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command(bert: Path, documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["adapt", str(bert), "--documents", str(documents), "--out", str(out), "--device", "cpu"]
    arguments += ["--rank", "2", "--steps", "2", "--max-length", "16", "--batch-size", "2"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "dora adapter, masked, 4 examples of 48 documents in 2 steps" in done.output
    again = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "there already" in again.output


def test_the_paper_fits_the_papers_gpu() -> None:
    """Mistral-7B with the defaults, on 80 GB; recomputed activations take less."""
    config = MistralConfig()
    encoder = build_skeleton(config)
    trained = adapter_parameters(encoder, AdapterSettings())
    # q, k, v (1,024 wide) and up, down in 32 layers: A and B of rank 32, and a magnitude for every output.
    widths = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 14336), (14336, 4096)]
    assert trained == 32 * sum(32 * (i + o) + o for i, o in widths)
    shape = {"trained": trained, "dtype": torch.bfloat16, "tokens": 4 * 1024, "head": True}
    plain = memory.training_memory(encoder, config, **shape)
    assert plain.weights == pytest.approx(2 * 7.11e9, rel=0.01)
    assert plain.needed < 80e9
    again = memory.training_memory(encoder, config, **shape, checkpointing=True)
    assert again.activations < plain.activations / 5

"""Training recipes: what they change, what they leave, and that a seed decides."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, T5EncoderModel

from mergesearch.errors import CollectionError, MergesearchError, SourceError
from mergesearch.training import train_contrastive, train_masked_lm
from mergesearch.training.harness import RECORD_FILE
from tests.tiny_models import WORDS, make_tiny

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["tests.training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")

# A word in the query always goes with another word in the document: something to learn.
PAIRS = [(f"search {a} return", f"the {b} of {a} model graph") for a in WORDS[8:32] for b in WORDS[32:36]]
TEXTS = [document for _, document in PAIRS]
CONTRASTIVE_KINDS = ("bert", "xlm-roberta", "distilbert", "modernbert", "t5", "qwen3")
MASKED_LM_KINDS = ("bert", "xlm-roberta", "mpnet", "distilbert", "modernbert")


def contrastive(folder: Path, out: Path, **options: Any) -> Path:
    settings = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "max_length": 16}
    return train_contrastive(folder, PAIRS, out, **{**settings, **options})


def masked_lm(folder: Path, out: Path, **options: Any) -> Path:
    settings = {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, "max_length": 16}
    return train_masked_lm(folder, TEXTS, out, **{**settings, **options})


RECIPES = pytest.mark.parametrize("recipe", [contrastive, masked_lm])


def weights_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def check_shape_and_loading(template: Path, out: Path) -> None:
    """Same names and shapes, every other file byte for byte, and both libraries load the trained weights."""
    before, after = load_file(template / "model.safetensors"), load_file(out / "model.safetensors")
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    assert all(t.dtype == torch.float32 for t in after.values())
    for file in template.rglob("*"):
        if file.is_file() and file.name != "model.safetensors":
            assert (out / file.relative_to(template)).read_bytes() == file.read_bytes(), file.name
    cls = T5EncoderModel if "t5" in template.name else AutoModel
    plain, info = cls.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inner = SentenceTransformer(str(out), device="cpu")[0].auto_model
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, inner.state_dict()[name]), name


@pytest.mark.parametrize("kind", CONTRASTIVE_KINDS)
def test_contrastive_training_keeps_every_layout(kind: str, tmp_path: Path) -> None:
    template = make_tiny(kind, tmp_path / kind, n_layers=2)
    out = contrastive(template, tmp_path / "out")
    check_shape_and_loading(template, out)
    changed = changed_names(template, out)
    assert changed
    assert not [name for name in changed if "embed_tokens" in name or "word_embeddings" in name or "shared" in name]


@pytest.mark.parametrize("kind", MASKED_LM_KINDS)
def test_masked_lm_training_keeps_every_layout_and_its_pooler(kind: str, tmp_path: Path) -> None:
    template = make_tiny(kind, tmp_path / kind, n_layers=2)
    out = masked_lm(template, tmp_path / "out")
    check_shape_and_loading(template, out)
    changed = changed_names(template, out)
    assert any("layer" in name for name in changed)
    assert not [name for name in changed if "pooler" in name]


def changed_names(template: Path, out: Path) -> list[str]:
    before, after = load_file(template / "model.safetensors"), load_file(out / "model.safetensors")
    return [name for name in before if not torch.equal(before[name], after[name])]


@RECIPES
def test_word_embeddings_are_trained_only_when_asked(recipe: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    assert name not in changed_names(bert, recipe(bert, tmp_path / "frozen"))
    assert name in changed_names(bert, recipe(bert, tmp_path / "trained", train_embeddings=True))


@RECIPES
def test_training_lowers_its_loss(recipe: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    def loss(out: Path) -> float:
        return float(json.loads((out / RECORD_FILE).read_text())["training_loss"])

    one = loss(recipe(bert, tmp_path / "one", steps=1, train_embeddings=True))
    many = loss(recipe(bert, tmp_path / "many", steps=40, learning_rate=5e-3, train_embeddings=True))
    assert many < one - 0.1


def test_contrastive_training_brings_pairs_together(bert: Path, tmp_path: Path) -> None:
    def rank_one_share(folder: Path) -> float:
        model = SentenceTransformer(str(folder), device="cpu")
        queries, documents = (model.encode([p[i] for p in PAIRS[::4]], convert_to_tensor=True) for i in (0, 1))
        best = (queries @ documents.T).argmax(dim=1)
        return (best == torch.arange(len(best))).float().mean().item()

    out = contrastive(bert, tmp_path / "out", steps=60, batch_size=16, learning_rate=5e-3)
    assert rank_one_share(out) > rank_one_share(bert) + 0.2


def test_a_seed_decides_also_in_another_process(bert: Path, tmp_path: Path) -> None:
    here = {recipe.__name__: recipe(bert, tmp_path / recipe.__name__, seed=3) for recipe in (contrastive, masked_lm)}
    program = (
        "import sys; from pathlib import Path; import torch;"
        f"torch.set_num_threads({torch.get_num_threads()});"
        "import tests.unit.test_training as t;"
        "[getattr(t, name)(Path(sys.argv[1]), Path(sys.argv[2], name), seed=3) for name in sys.argv[3:]]"
    )
    there = tmp_path / "there"
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    root = Path(__file__).resolve().parents[2]
    arguments = [sys.executable, "-c", program, str(bert), str(there), *here]
    subprocess.run(arguments, check=True, env=environment, cwd=root)
    for name, folder in here.items():
        assert weights_digest(there / name) == weights_digest(folder), name


@RECIPES
def test_another_seed_gives_other_weights(recipe: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    one, other = (recipe(bert, tmp_path / str(seed), seed=seed) for seed in (3, 4))
    assert weights_digest(one) != weights_digest(other)


@RECIPES
def test_nothing_else_is_touched(
    recipe: Callable[..., Path],
    bert: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No files beside the result, nothing printed, and the caller's random numbers go on as they were."""
    monkeypatch.chdir(tmp_path)
    before = weights_digest(bert)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    recipe(bert, tmp_path / "out")
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert weights_digest(bert) == before
    assert capfd.readouterr() == ("", "")


@RECIPES
def test_progress_counts_every_step(recipe: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    recipe(bert, tmp_path / "out", steps=3, progress=lambda *step: seen.append(step))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_checkpoint_with_a_head_and_low_precision_gives_a_plain_fp32_encoder(tmp_path: Path) -> None:
    template = make_tiny("bert", tmp_path / "bert", n_layers=2, head="mlm", dtype=torch.bfloat16)
    out = masked_lm(template, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert config["dtype"] == "float32"
    tensors = load_file(out / "model.safetensors")
    assert not [name for name in tensors if name.startswith(("bert.", "cls."))]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert SentenceTransformer(str(out), device="cpu")[0].auto_model.dtype == torch.float32


def test_masked_lm_needs_no_sentence_transformers_files(tmp_path: Path) -> None:
    template = make_tiny("bert", tmp_path / "bert", n_layers=2, sentence_transformers=False)
    out = masked_lm(template, tmp_path / "out")
    assert not (out / "modules.json").exists()
    AutoModel.from_pretrained(out)


def test_sharded_templates_lose_their_old_shards(tmp_path: Path) -> None:
    template = make_tiny("bert", tmp_path / "bert", n_layers=2, max_shard_size="20KB")
    assert len(list(template.glob("*.safetensors"))) > 1
    (template / "README.md").write_text("About the template.")
    out = contrastive(template, tmp_path / "out")
    assert [p.name for p in out.glob("model*")] == ["model.safetensors"]
    assert not (out / "README.md").exists()


@RECIPES
def test_an_existing_folder_is_not_overwritten(recipe: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(MergesearchError, match="new folder"):
        recipe(bert, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


@RECIPES
def test_a_training_that_diverges_leaves_nothing(recipe: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    with pytest.raises(MergesearchError, match=r"diverged|NaN or infinite"):
        recipe(bert, tmp_path / "out", steps=4, learning_rate=1e38)
    assert not list(tmp_path.iterdir())


@RECIPES
def test_a_missing_extra_is_named(
    recipe: Callable[..., Path], bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "accelerate" else name)
    with pytest.raises(MergesearchError, match=r'needs accelerate.*pip install "mergesearch\[training\]"'):
        recipe(bert, tmp_path / "out")


@RECIPES
def test_all_impossible_settings_are_named(recipe: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    with pytest.raises(MergesearchError, match=r"steps = 0, learning_rate = -1"):
        recipe(bert, tmp_path / "out", steps=0, learning_rate=-1)


@RECIPES
def test_too_little_data_is_refused(recipe: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="one batch of 1000"):
        recipe(bert, tmp_path / "out", batch_size=1000)


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    mistral = make_tiny("mistral", tmp_path / "mistral", n_layers=1)
    with pytest.raises(SourceError, match=r"(?s)'mistral' has no masked-language-model head.*no mask token"):
        masked_lm(mistral, tmp_path / "out")
    bare = make_tiny("bert", tmp_path / "bare", n_layers=1, sentence_transformers=False)
    with pytest.raises(SourceError, match="pooled"):
        contrastive(bare, tmp_path / "out")
    with pytest.raises(SourceError, match=r"no config\.json"):
        masked_lm(tmp_path, tmp_path / "out")

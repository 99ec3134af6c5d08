"""Retrievers of a few hundred kilobytes with random weights, made offline in the layouts that people merge.

Every folder is complete: config, safetensors, a tokenizer that knows every letter, and the files of
sentence-transformers (modules, pooling, normalisation, prompts, max length). Equal arguments give equal
files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HIDDEN = 32
MAX_LENGTH = 64

WORDS = """
    the of and to in a is for with on as by that from at are be or an this search model merge weight layer
    query document text graph node edge matrix vector value array function return number path tree sort
    cell protein health food cancer risk study diet effect treatment patient blood heart vitamin science
""".split()  # noqa: SIM905 (a list literal would be sixty lines)
"""Whole words that every tiny tokenizer has beside single characters."""

_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()[]{}<>-_+*/=%&#@$|\\~^`"


@dataclass(frozen=True)
class Kind:
    """One layout: how it is configured, tokenised and pooled."""

    model_type: str
    tokenizer: str
    specials: tuple[str, ...]
    """Special tokens in the order of their ids, from 0."""
    template: str
    pooling: str
    config: dict[str, Any]
    normalize: bool = True
    similarity: str = "cosine"
    prompts: dict[str, str] = field(default_factory=dict)
    padding_side: str = "right"


_BERT = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_LENGTH + 2,
}
_DECODER = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
_ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_INSTRUCT = {"query": "Instruct: search\nQuery: ", "document": ""}

KINDS: dict[str, Kind] = {
    "bert": Kind("bert", "wordpiece", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS] $A [SEP]", "mean", _BERT),
    "roberta": Kind("roberta", "bpe", _ROBERTA_SPECIALS, "<s> $A </s>", "cls", {**_BERT, "type_vocab_size": 1}),
    "xlm-roberta": Kind(
        "xlm-roberta",
        "unigram",
        _ROBERTA_SPECIALS,
        "<s> $A </s>",
        "mean",
        {**_BERT, "type_vocab_size": 1},
        prompts={"query": "query: ", "document": "passage: "},
    ),
    "mpnet": Kind("mpnet", "wordpiece", ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), "<s> $A </s>", "mean", _BERT),
    "distilbert": Kind(
        "distilbert",
        "wordpiece",
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "[CLS] $A [SEP]",
        "mean",
        {"dim": HIDDEN, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": MAX_LENGTH + 2},
        normalize=False,
        similarity="dot",
    ),
    "modernbert": Kind(
        "modernbert",
        "bpe",
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "[CLS] $A [SEP]",
        "cls",
        {
            "hidden_size": HIDDEN,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
            "global_attn_every_n_layers": 2,
            "local_attention": 16,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    ),
    "t5": Kind(
        "t5",
        "unigram",
        ("<pad>", "</s>", "<unk>"),
        "$A </s>",
        "mean",
        {"d_model": HIDDEN, "d_kv": 8, "num_heads": 4, "d_ff": 48, "decoder_start_token_id": 0},
    ),
    "mistral": Kind(
        "mistral",
        "bpe",
        ("<unk>", "<s>", "</s>"),
        "<s> $A </s>",
        "lasttoken",
        {**_DECODER, "sliding_window": None},
        prompts=_INSTRUCT,
    ),
    "llama": Kind("llama", "bpe", ("<unk>", "<s>", "</s>"), "<s> $A </s>", "lasttoken", _DECODER, prompts=_INSTRUCT),
    "qwen3": Kind(
        "qwen3",
        "bpe",
        ("<|endoftext|>", "<|im_start|>"),
        "$A <|endoftext|>",
        "lasttoken",
        {**_DECODER, "tie_word_embeddings": True},
        prompts=_INSTRUCT,
        padding_side="left",
    ),
    "gemma3_text": Kind(
        "gemma3_text",
        "bpe",
        ("<pad>", "<eos>", "<bos>", "<unk>"),
        "<bos> $A <eos>",
        "mean",
        {**_DECODER, "sliding_window": 32, "query_pre_attn_scalar": 8, "use_bidirectional_attention": True},
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
}
"""Every layout by its name; the name is also the config's `model_type`."""

_DEPTH = {"distilbert": "n_layers", "t5": "num_layers"}

_HEADS = {
    "auto": "AutoModel",
    "causal": "AutoModelForCausalLM",
    "mlm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
}


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that lie in a folder itself, by name."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def make_tiny(
    kind: str,
    folder: Path,
    *,
    seed: int = 0,
    n_layers: int = 4,
    head: str = "auto",
    tokenizer: bool = True,
    sentence_transformers: bool = True,
    words: Sequence[str] = tuple(WORDS),
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | int = "5GB",
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a model of layout `kind` (a key of `KINDS`) with random weights to `folder`, and return `folder`.

    Args:
        kind: the layout.
        folder: is made if missing.
        seed: of the weights; the tokenizer does not depend on it.
        n_layers: transformer blocks.
        head: "auto" (the bare encoder; for T5 its encoder alone), "causal", "mlm", "seq2seq" or
            "classification".
        tokenizer: write tokenizer files.
        sentence_transformers: write modules.json, pooling, normalisation, prompts and max length.
        words: what the tokenizer knows beside characters; others give another vocabulary.
        dtype: of the stored weights.
        max_shard_size: small values give sharded files with an index.
        config: overrides of config entries.
    """
    shape = KINDS[kind]
    made = make_tokenizer(kind, words)
    settings = {
        **_special_ids(made),
        **shape.config,
        "vocab_size": len(made),
        _DEPTH.get(kind, "num_hidden_layers"): n_layers,
        **(config or {}),
    }
    model_config = AutoConfig.for_model(shape.model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if (kind, head) == ("t5", "auto"):
            model = transformers.T5EncoderModel(model_config)
        else:
            model = getattr(transformers, _HEADS[head]).from_config(model_config)
        _randomise(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        made.save_pretrained(folder)
    if sentence_transformers:
        write_sentence_transformers_files(kind, folder)
    return folder


def tiny_models(root: Path, n_layers: int) -> Callable[[str], Path]:
    """By layout, the folder of a model of so many layers in `root`; each is made when it is first asked for."""
    return cache(lambda kind: make_tiny(kind, root / kind, n_layers=n_layers))


def make_variant(origin: Path, folder: Path, *, seed: int, scale: float = 0.1) -> Path:
    """Copy `origin` (one safetensors file) to `folder` with Gaussian noise on every weight: a relative."""
    shutil.copytree(origin, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + (torch.randn(tensor.shape, generator=generator) * scale).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in load_file(origin / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_tokenizer(kind: str, words: Sequence[str] = tuple(WORDS)) -> PreTrainedTokenizerFast:
    """A tokenizer of the layout's type, with single characters, `words` and the layout's special tokens."""
    shape = KINDS[kind]
    pieces = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}[shape.tokenizer]
    made = pieces(shape.specials, words)
    used = [token for token in shape.specials if token in shape.template]
    made.post_processor = processors.TemplateProcessing(
        single=shape.template,
        pair=f"{shape.template} {shape.template.replace('$A', '$B')}",
        special_tokens=[(token, made.token_to_id(token)) for token in used],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=MAX_LENGTH,
        padding_side=shape.padding_side,
        clean_up_tokenization_spaces=False,
        **_special_names(shape),
    )


def write_sentence_transformers_files(kind: str, folder: Path) -> None:
    """The module files as sentence-transformers wrote them before 5.4, which newer ones still read."""
    shape = KINDS[kind]
    modules = ["Transformer", "Pooling"] + (["Normalize"] if shape.normalize else [])
    listing = []
    for index, module in enumerate(modules):
        path = "" if index == 0 else f"{index}_{module}"
        entry = {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{module}",
        }
        listing.append(entry)
        (folder / path).mkdir(parents=True, exist_ok=True)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    pooling: dict[str, Any] = {"word_embedding_dimension": HIDDEN, "include_prompt": True}
    pooling |= {f"pooling_mode_{key}": mode == shape.pooling for mode, key in modes.items()}
    _write_json(folder / "modules.json", listing)
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": False})
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "3.0.0", "transformers": "4.41.0", "pytorch": "2.3.0"},
            "prompts": shape.prompts,
            "default_prompt_name": None,
            "similarity_fn_name": shape.similarity,
        },
    )


def _randomise(model: torch.nn.Module) -> None:
    """Every parameter gets noise, so that merging shows in biases and norms too and embeddings spread out."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.1))


def _special_names(shape: Kind) -> dict[str, str]:
    by_role = {
        "pad_token": ("[PAD]", "<pad>", "<|endoftext|>", "</s>"),
        "unk_token": ("[UNK]", "<unk>"),
        "cls_token": ("[CLS]",),
        "sep_token": ("[SEP]",),
        "mask_token": ("[MASK]", "<mask>"),
        "bos_token": ("<s>", "<bos>"),
        "eos_token": ("</s>", "<eos>", "<|endoftext|>"),
    }
    names = {}
    for role, candidates in by_role.items():
        found = [token for token in candidates if token in shape.specials]
        if found:
            names[role] = found[0]
    return names


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The config entries that must agree with the tokenizer; padding shifts RoBERTa's positions."""
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos", "cls", "sep")}
    return {name: number for name, number in ids.items() if number is not None}


def _wordpiece(specials: Sequence[str], words: Sequence[str]) -> Tokenizer:
    lower = [c for c in _CHARACTERS if not c.isupper()]
    pieces = [
        *specials,
        *lower,
        *(f"##{c}" for c in lower),
        *words,
        *(f"##{w}" for w in ("ing", "ed", "s", "tion")),
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    return made


def _bpe(specials: Sequence[str], words: Sequence[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = [*specials, *alphabet], []
    for word in words:
        left = "Ġ"
        for character in word:
            merges.append((left, character))
            left += character
            pieces.append(left)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(merges))))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    return made


def _unigram(specials: Sequence[str], words: Sequence[str]) -> Tokenizer:
    scored = [(token, 0.0) for token in specials]
    scored += [(f"▁{word}", -3.0) for word in dict.fromkeys(words) if len(word) > 1]
    scored += [("▁", -4.0), *((c, -8.0) for c in _CHARACTERS)]
    made = Tokenizer(models.Unigram(scored, unk_id=list(specials).index("<unk>"), byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return made


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

"""Retrievers and re-rankers of a few hundred kilobytes with random weights, in the layouts that people merge.

Every folder is complete: config, safetensors, a tokenizer that knows every letter, and for retrievers the files of
sentence-transformers (modules, pooling, normalisation, prompts, max length). Equal arguments give equal files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from tests.tiny_tokenizers import WORDS, bpe, unigram, wordpiece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HIDDEN = 32
MAX_LENGTH = 64


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
    pair: str = ""
    """Of texts A and B; by default the template twice."""
    head: str = "auto"
    """A key of `_HEADS`."""
    types: bool = False
    """Whether the tokenizer returns token types."""
    max_length: int = MAX_LENGTH


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

PAIR_LENGTH = 160
"""What encoders that score pairs read; decoders read longer prompts."""
_PROMPT_LENGTH = 1024
_CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


def _reranker(
    kind: str, template: str, rest: str, head: str = "classification", length: int = PAIR_LENGTH, **changes: Any
) -> Kind:
    """A layout of `KINDS` that scores pairs: what follows the first text, and other changes."""
    shape = KINDS[kind]
    config = {**shape.config, **({"num_labels": 1} if head == "classification" else {}), **changes.pop("config", {})}
    if "max_position_embeddings" in config:
        config["max_position_embeddings"] = length + 2
    pair = f"{template} {rest}"
    return replace(shape, template=template, pair=pair, head=head, max_length=length, config=config, **changes)


RERANKERS: dict[str, Kind] = {
    "bert": _reranker("bert", "[CLS] $A [SEP]", "$B:1 [SEP]:1", types=True),
    "roberta": _reranker("roberta", "<s> $A </s>", "</s> $B </s>"),
    "xlm-roberta": _reranker("xlm-roberta", "<s> $A </s>", "</s> $B </s>"),
    "modernbert": _reranker("modernbert", "[CLS] $A [SEP]", "$B [SEP]"),
    "distilbert": _reranker("distilbert", "[CLS] $A [SEP]", "$B [SEP]"),
    "t5": _reranker("t5", "$A </s>", "$B </s>", "seq2seq"),
    "mt5": _reranker(
        "t5",
        "$A </s>",
        "$B </s>",
        "seq2seq",
        model_type="mt5",
        config={"feed_forward_proj": "gated-gelu"},
    ),
    "llama": _reranker("llama", "<s> $A", "<s> $B", length=_PROMPT_LENGTH, specials=("<unk>", "<s>", "</s>", "<pad>")),
    "qwen3": _reranker("qwen3", "$A", "$B", "causal", _PROMPT_LENGTH, specials=_CHAT, tokenizer="bare bpe"),
}
"""Layouts of re-rankers by name: their pairs, and the head that they score with unless another is asked for."""

_ANSWERS = ("true", "false", "yes", "no", "relevant", "Query", "Document", "Relevant", "Instruct")

_DEPTH = {"distilbert": "n_layers", "t5": "num_layers", "mt5": "num_layers"}

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
    shape = replace(KINDS[kind], head=head)
    made = _tokenizer(shape, words)
    _random_model(shape, made, seed, n_layers, config or {}).to(dtype).save_pretrained(
        folder, max_shard_size=max_shard_size
    )
    if tokenizer:
        made.save_pretrained(folder)
    if sentence_transformers:
        write_sentence_transformers_files(kind, folder)
    return folder


def tiny_reranker(
    kind: str,
    folder: Path,
    *,
    seed: int = 0,
    n_layers: int = 4,
    head: str | None = None,
    words: Sequence[str] = (*WORDS, *_ANSWERS),
    dtype: torch.dtype = torch.float32,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a re-ranker of layout `kind` (a key of `RERANKERS`) with random weights to `folder`, and return `folder`.

    It is a model of transformers with its tokenizer, which makes pairs as the layout's models do; no file of
    sentence-transformers. Classification heads have one label unless `config` says `num_labels`.

    Args:
        kind: the layout.
        folder: is made if missing.
        seed: of the weights; config and tokenizer do not depend on it.
        n_layers: transformer blocks, of encoder-decoders in each half unless `config` says `num_decoder_layers`.
        head: as in `make_tiny`, so that a base ("auto") or a domain model ("mlm") of the same layout can be made too;
            None for the layout's own.
        words: what the tokenizer knows beside characters.
        dtype: of the stored weights.
        config: overrides of config entries.
    """
    shape = RERANKERS[kind]
    shape = replace(shape, head=head or shape.head)
    made = _tokenizer(shape, words)
    _random_model(shape, made, seed, n_layers, config or {}).to(dtype).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def _random_model(
    shape: Kind, tokenizer: PreTrainedTokenizerFast, seed: int, n_layers: int, config: dict[str, Any]
) -> transformers.PreTrainedModel:
    settings = {
        **_special_ids(tokenizer),
        **shape.config,
        "vocab_size": len(tokenizer),
        _DEPTH.get(shape.model_type, "num_hidden_layers"): n_layers,
        **config,
    }
    model_config = AutoConfig.for_model(shape.model_type, **settings)
    encoders = {"t5": transformers.T5EncoderModel, "mt5": transformers.MT5EncoderModel}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if shape.head == "auto" and shape.model_type in encoders:
            model = encoders[shape.model_type](model_config)
        else:
            model = getattr(transformers, _HEADS[shape.head]).from_config(model_config)
        _randomise(model)
        if shape.model_type == "mt5" and shape.head == "seq2seq":  # with output embeddings of its own, as mT5 has
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


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
    return _tokenizer(KINDS[kind], words)


def _tokenizer(shape: Kind, words: Sequence[str]) -> PreTrainedTokenizerFast:
    pieces = {"wordpiece": wordpiece, "bpe": bpe, "bare bpe": partial(bpe, bare=("yes", "no")), "unigram": unigram}
    made = pieces[shape.tokenizer](shape.specials, words)
    used = [token for token in shape.specials if token in shape.template]
    made.post_processor = processors.TemplateProcessing(
        single=shape.template,
        pair=shape.pair or f"{shape.template} {shape.template.replace('$A', '$B')}",
        special_tokens=[(token, made.token_to_id(token)) for token in used],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=shape.max_length,
        padding_side=shape.padding_side,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", *(["token_type_ids"] if shape.types else []), "attention_mask"],
        extra_special_tokens=[token for token in shape.specials if token in _CHAT[1:]],
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
        "eos_token": ("</s>", "<eos>", "<|im_end|>", "<|endoftext|>"),
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


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

"""Matching the names of a checkpoint to the names of the encoder, and sources to each other."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mergesearch.errors import Problem, SourceError, unknown
from mergesearch.sources.config import config_differences, load_config
from mergesearch.sources.layout import EMBEDDINGS, HEAD, POOLER, Head, Layout, Parameter
from mergesearch.sources.vocabulary import (
    OtherVocabulary,
    SharedTokens,
    Vocabulary,
    match_tokens,
    read_vocabulary,
    same_tokenizer_file,
    vocabulary_difference,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from transformers import PretrainedConfig

    from mergesearch.sources.checkpoint import Checkpoint

EARLY_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""How names end today, and in early BERT checkpoints."""
_LISTED = 5
_NO_HEAD: dict[Head, str] = {
    "sequence_classification": " These are the head that scores pairs: take a template that was trained to re-rank, or "
    "train one with `mergesearch train-reranker`.",
    "seq2seq_lm": " Re-ranking needs the whole encoder-decoder: take a template that was saved with decoder and head.",
    "causal_lm": " Re-ranking needs the language-model head: take a template that was saved with it.",
}
_LEAVE_HEADS = (
    " Only sources of merged heads need a fitting one: write `groups.head: template`, or take a source with the "
    "template's head."
)
UNREADABLE = (
    "has no tokenizer that can be read, so its tokens cannot be matched: put its tokenizer files into the folder."
)


def align(checkpoint: Checkpoint, layout: Layout) -> dict[str, str]:
    """Canonical name to raw name, for every parameter of the layout that the checkpoint has.

    A checkpoint saved with a head (CausalLM, MaskedLM, classification) puts one prefix before all names of
    the encoder: the prefix under which most names match is taken. A tied parameter may be stored under any of
    its names, and norms may carry the names of early BERT checkpoints (gamma, beta). Shapes are not compared.
    A head stands beside the encoder: before its names is what is above the encoder, mostly nothing.
    """
    spellings = _spellings(layout)
    starts = [_prefix(checkpoint, layout)]
    while layout.head is not None and starts[-1]:
        starts.append(_above(starts[-1]))
    aligned = {}
    for name in layout.parameters:
        spelled = (start + s for start in starts for s in spellings[name])
        stored = next((raw for raw in spelled if raw in checkpoint.tensors), None)
        if stored is not None:
            aligned[name] = stored
    return aligned


def align_within(checkpoint: Checkpoint, layout: Layout, places: Collection[str]) -> dict[str, str]:
    """Like `align`, for the parameters of some places: what is read from a source."""
    return {n: raw for n, raw in align(checkpoint, layout).items() if layout.parameters[n].place in places}


def check_sources(
    checkpoints: Mapping[str, Checkpoint],
    *,
    template: str,
    layout: Layout,
    merged_places: Mapping[str, Collection[str]],
    other_vocabulary: OtherVocabulary = "refuse",
    trust_remote_code: Collection[str] = (),
) -> dict[str, dict[str, str]]:
    """Compare every source with the template, on headers and configs alone.

    Args:
        checkpoints: all sources by name, the template and the base among them.
        template: the source that gives architecture, tokenizer and every parameter that is not merged.
        layout: of the template.
        merged_places: per source the places that will be read from it; only these must exist and fit. A
            source with none is not compared. Of the template everything must exist, apart from a bare encoder's
            pooler that is not merged: many are saved without one, and mean or CLS pooling never runs it.
        other_vocabulary: what becomes of sources with another tokenizer. `template` accepts them where the
            embeddings are not merged, `shared_tokens` wherever tokenizers can be read and have tokens in common.
        trust_remote_code: the sources whose configs may run code of their own.

    Returns:
        Per source, canonical name to raw name of every tensor that will be read from it; for the template all
        that it has.

    Raises:
        SourceError: every mismatch of every source.
    """
    strangers = [name for name in (template, *merged_places) if name not in checkpoints]
    if strangers:
        raise SourceError([unknown("source", name, checkpoints) for name in strangers])
    reference = load_config(checkpoints[template].folder, trust_remote_code=template in trust_remote_code)
    template_vocabulary = read_vocabulary(checkpoints[template].folder)
    matched = layout.word_embeddings if other_vocabulary == "shared_tokens" else None
    problems: list[Problem] = []
    aligned: dict[str, dict[str, str]] = {}
    for name, checkpoint in checkpoints.items():
        places = set(merged_places.get(name, ()))
        here: list[str] = []
        if name == template:
            if matched and EMBEDDINGS in places and template_vocabulary is None:
                here.append(UNREADABLE)
            unused = {POOLER} if layout.head is None else set()
            here += _misfits(checkpoint, layout, places | (set(layout.places) - unused), is_template=True)
            aligned[name] = align(checkpoint, layout)
        else:
            if places:
                here += _config_problems(checkpoint, reference, name in trust_remote_code)
                here += _misfits(checkpoint, layout, places, matched=matched)
                here += _vocabulary_problems(
                    checkpoint,
                    checkpoints[template],
                    template_vocabulary,
                    layout,
                    embeddings_merged=EMBEDDINGS in places,
                    other_vocabulary=other_vocabulary,
                )
            aligned[name] = align_within(checkpoint, layout, places)
        problems += [Problem(message, f"source {name!r}") for message in here]
    if problems:
        raise SourceError(problems, "The sources do not fit each other:")
    return aligned


def share_tokens(checkpoints: Mapping[str, Checkpoint], *, template: str, layout: Layout) -> SharedTokens | None:
    """The rows of the word embeddings that all sources can lend, for `other_vocabulary: shared_tokens`.

    Args:
        checkpoints: all sources that embeddings are read from; their tokenizers lie beside them.
        template: the source whose rows are overwritten.
        layout: of the template.

    Returns:
        None where all have the same tokens in the same rows, so that nothing need be matched.

    Raises:
        SourceError: no token is common to all of them.
    """
    tables = {name: align(c, layout)[layout.word_embeddings] for name, c in checkpoints.items()}
    n_rows = {name: checkpoints[name].tensors[raw].shape[0] for name, raw in tables.items()}
    vocabularies = {name: read_vocabulary(c.folder) or {} for name, c in checkpoints.items()}
    if len(set(n_rows.values())) == 1 and all(v == vocabularies[template] for v in vocabularies.values()):
        return None
    shared = SharedTokens(layout.word_embeddings, match_tokens(vocabularies, n_rows, template))
    if not len(shared):
        raise SourceError(
            [f"no token is common to all of {', '.join(checkpoints)}: take `other_vocabulary: template`."]
        )
    return shared


def _spellings(layout: Layout) -> dict[str, list[str]]:
    """Every name without prefix that a parameter may be stored under, the canonical one first."""
    spellings = {name: [name] for name in layout.parameters}
    for alias, name in layout.tied.items():
        spellings[name].append(alias)
    for name, spelled in spellings.items():
        for new, old in EARLY_NAMES.items():
            if name.endswith(new):
                spelled.append(name.removesuffix(new) + old)
    return spellings


def _prefix(checkpoint: Checkpoint, layout: Layout) -> str:
    """What stands before canonical names in this checkpoint, such as "", "bert." or "model."."""
    known = {spelled for spelled_all in _spellings(layout).values() for spelled in spelled_all}
    votes: Counter[str] = Counter()
    for raw in checkpoint.tensors:
        parts = raw.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in known:
                votes[".".join([*parts[:i], ""])] += 1
    return max(votes, key=lambda prefix: (votes[prefix], -len(prefix)), default="")


def _above(prefix: str) -> str:
    """`a.` for `a.b.`, nothing for `b.`."""
    return "".join(prefix[:-1].rpartition(".")[:2])


def _n_layers(checkpoint: Checkpoint, layout: Layout, layers_path: str) -> int:
    start = f"{_prefix(checkpoint, layout)}{layers_path}."
    numbers = (raw.removeprefix(start).partition(".")[0] for raw in checkpoint.tensors if raw.startswith(start))
    return len({number for number in numbers if number.isdigit()})


def _misfits(
    checkpoint: Checkpoint,
    layout: Layout,
    places: Collection[str],
    *,
    matched: str | None = None,
    is_template: bool = False,
) -> list[str]:
    """Layer counts, then tensors at `places` that are missing or of another shape; `matched` may have other rows."""
    aligned = align(checkpoint, layout)
    if not aligned:
        some = ", ".join(list(checkpoint.tensors)[:3])
        return [f"none of its tensors ({some}, …) belongs to a {layout.model_type!r} encoder."]
    wanted = [p for p in layout.parameters.values() if p.place in places]
    missing = [p for p in wanted if p.name not in aligned]
    problems = []
    for stack, path, n_layers in (
        ("layer", layout.layers_path, layout.n_layers),
        ("decoder", layout.decoder_path, layout.n_decoder_layers),
    ):
        found = _n_layers(checkpoint, layout, path)
        inside = f"{stack}."
        if found != n_layers and any(p.place.startswith(inside) for p in wanted) and (found or stack == "layer"):
            what = "layers" if stack == "layer" else "decoder layers"
            problems.append(f"has {found} {what}, the template has {n_layers}.")
            missing = [p for p in missing if not p.name.startswith(f"{path}.")]
    problems += _missing(missing, layout, is_template)
    shapes = [
        f"tensor {aligned[p.name]!r} is {list(stored)}, the template's is {list(p.shape)}."
        + (_LEAVE_HEADS if p.place == HEAD and not is_template else "")
        for p in wanted
        if p.name in aligned
        and (stored := checkpoint.tensors[aligned[p.name]].shape) != p.shape
        and not (p.name == matched and stored[1:] == p.shape[1:])
    ]
    integers = [
        f"tensor {aligned[p.name]!r} is {dtype}, expected floating point."
        for p in wanted
        if p.name in aligned and not (dtype := checkpoint.tensors[aligned[p.name]].dtype).is_floating_point
    ]
    changed = {*checkpoint.made, *checkpoint.left_out}
    ties = [
        f"is an adapter that changes {alias}, which is the template's {name} as well: merge it into its base with peft."
        for alias, name in layout.tied.items()
        if layout.head is not None and layout.parameters[name].place in places and alias in changed
    ]
    return problems + shapes + integers + ties


def _missing(missing: Sequence[Parameter], layout: Layout, is_template: bool) -> list[str]:
    """Tensors that are not there, and what to do where they are a head or a decoder."""
    by_advice: dict[str, list[str]] = {}
    for p in missing:
        advice = "" if layout.head is None else _advice(p.place, layout.head, is_template)
        by_advice.setdefault(advice, []).append(p.name)
    return [
        f"lacks {len(names)} tensors that are needed: {_some(names)}.{advice}" for advice, names in by_advice.items()
    ]


def _advice(place: str, head: Head, is_template: bool) -> str:
    decodes = place.startswith("decoder.")
    if is_template and (decodes or place in {HEAD, POOLER}):
        return _NO_HEAD[head]
    if decodes:
        return (
            " Only sources of merged decoders need one: write `groups.decoder: template`, or take a source that was "
            "saved whole."
        )
    return _LEAVE_HEADS if place == HEAD else ""


def _config_problems(checkpoint: Checkpoint, reference: PretrainedConfig, trust_remote_code: bool) -> list[str]:
    try:
        config = load_config(checkpoint.folder, trust_remote_code=trust_remote_code)
    except SourceError as error:
        return [str(error)]
    return config_differences(reference, config)


def _vocabulary_problems(
    checkpoint: Checkpoint,
    template: Checkpoint,
    template_vocabulary: Vocabulary | None,
    layout: Layout,
    *,
    embeddings_merged: bool,
    other_vocabulary: OtherVocabulary,
) -> list[str]:
    """Another tokenizer, or, where a tokenizer is missing, another number of token embeddings."""
    if other_vocabulary == "template" and not embeddings_merged:
        return []
    if same_tokenizer_file(checkpoint.folder, template.folder):
        return []
    other = read_vocabulary(checkpoint.folder)
    if other_vocabulary == "shared_tokens" and embeddings_merged:
        if other is None:
            return [UNREADABLE]
        disjoint = template_vocabulary is not None and template_vocabulary.keys().isdisjoint(other)
        return ["its tokenizer has no token in common with the template's."] if disjoint else []
    hint = (
        " Write `merge.other_vocabulary: shared_tokens` to merge the embeddings of the tokens that all sources have, "
        "or `template`, with `groups.embeddings: template`, to merge layers only."
        if embeddings_merged
        else " Write `merge.other_vocabulary: template` to merge the layers all the same: they will meet tokens that "
        "they were not trained with."
    )
    if other is not None and template_vocabulary is not None:
        difference = vocabulary_difference(template_vocabulary, other)
        return [difference + hint] if difference else []
    rows = checkpoint.config.get("vocab_size")
    if embeddings_merged or rows is None or rows == layout.vocab_size:
        return []  # rows of merged embeddings are compared with the shapes
    return [f"config 'vocab_size' is {rows:,}, the template's is {layout.vocab_size:,}.{hint}"]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more

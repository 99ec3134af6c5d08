"""Matching the names of a checkpoint to the names of the encoder, and sources to each other."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mergesearch.errors import Problem, SourceError, unknown
from mergesearch.sources.config import config_differences, load_config
from mergesearch.sources.layout import EMBEDDINGS, POOLER, Layout
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
    from collections.abc import Collection, Mapping

    from transformers import PretrainedConfig

    from mergesearch.sources.checkpoint import Checkpoint

EARLY_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""How names end today, and in early BERT checkpoints."""
_LISTED = 5
UNREADABLE = (
    "has no tokenizer that can be read, so its tokens cannot be matched: put its tokenizer files into the folder."
)


def align(checkpoint: Checkpoint, layout: Layout) -> dict[str, str]:
    """Canonical name to raw name, for every parameter of the layout that the checkpoint has.

    A checkpoint saved with a head (CausalLM, MaskedLM, classification) puts one prefix before all names of
    the encoder: the prefix under which most names match is taken. A tied parameter may be stored under any of
    its names, and norms may carry the names of early BERT checkpoints (gamma, beta). Shapes are not compared.
    """
    spellings = _spellings(layout)
    prefix = _prefix(checkpoint, layout)
    aligned = {}
    for name in layout.parameters:
        stored = next((prefix + s for s in spellings[name] if prefix + s in checkpoint.tensors), None)
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
            source with none is not compared. Of the template everything must exist, apart from a pooler that
            is not merged: many encoders are saved without one, and mean or CLS pooling never runs it.
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
            here += _misfits(checkpoint, layout, places | (set(layout.places) - {POOLER}))
            aligned[name] = align(checkpoint, layout)
        else:
            if places:
                here += _config_problems(checkpoint, reference, name in trust_remote_code)
                here += _misfits(checkpoint, layout, places, matched)
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


def _n_layers(checkpoint: Checkpoint, layout: Layout) -> int:
    start = f"{_prefix(checkpoint, layout)}{layout.layers_path}."
    numbers = (raw.removeprefix(start).partition(".")[0] for raw in checkpoint.tensors if raw.startswith(start))
    return len({number for number in numbers if number.isdigit()})


def _misfits(checkpoint: Checkpoint, layout: Layout, places: Collection[str], matched: str | None = None) -> list[str]:
    """Layer count, then tensors at `places` that are missing or of another shape; `matched` may have other rows."""
    aligned = align(checkpoint, layout)
    if not aligned:
        some = ", ".join(list(checkpoint.tensors)[:3])
        return [f"none of its tensors ({some}, …) belongs to a {layout.model_type!r} encoder."]
    problems = []
    n_layers = _n_layers(checkpoint, layout)
    other_depth = n_layers != layout.n_layers and any(place.startswith("layer.") for place in places)
    if other_depth:
        problems.append(f"has {n_layers} layers, the template has {layout.n_layers}.")
    wanted = [p for p in layout.parameters.values() if p.place in places]
    missing = [p.name for p in wanted if p.name not in aligned]
    if other_depth:
        missing = [name for name in missing if not name.startswith(f"{layout.layers_path}.")]
    if missing:
        problems.append(f"lacks {len(missing)} tensors that are needed: {_some(missing)}.")
    shapes = [
        f"tensor {aligned[p.name]!r} is {list(stored)}, the template's is {list(p.shape)}."
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
    return problems + shapes + integers


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

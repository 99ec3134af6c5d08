"""`EncodingSettings`: how texts become embeddings, resolved from the user's word and the template's files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from mergesearch.errors import Problem, SourceError, unknown
from mergesearch.evaluation.template_files import POOLING_MODES, TemplateFiles, read_template_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Kind = Literal["query", "document"]
KINDS: tuple[Kind, ...] = ("query", "document")
Similarity = Literal["cosine", "dot"]

_PROMPT_NAMES: dict[Kind, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
"""Prompt names that say what they are for; the same that sentence-transformers looks for."""


@dataclass(frozen=True)
class EncodingSettings:
    """How texts become embeddings; belongs in the study's record, for every entry moves scores.

    Attributes:
        pooling: modes whose results are concatenated; empty when the model pools by itself.
        normalize: whether embeddings are scaled to length 1.
        similarity: `cosine` or `dot`.
        prompts: what is put before `query` and `document` texts; None where it must be given.
        max_length: tokens per `query` and `document`.
        include_prompt: whether prompt tokens take part in pooling.
        append_eos: whether an end token is appended that the tokenizer itself leaves out.
        dimensions: of the embeddings.
        dtype: of weights and arithmetic; embeddings come out in fp32.
        attention: the implementation of attention that transformers was told to use.
    """

    pooling: tuple[str, ...]
    normalize: bool
    similarity: Similarity
    prompts: Mapping[Kind, str | None]
    max_length: Mapping[Kind, int]
    include_prompt: bool
    append_eos: bool
    dimensions: int
    dtype: str
    attention: str


@dataclass(frozen=True)
class Choices:
    """What the user says about encoding; None leaves it to the template's files."""

    pooling: str | None = None
    normalize: bool | None = None
    similarity: str | None = None
    max_length: int | None = None


@dataclass(frozen=True)
class Resolved:
    """Choices with every gap closed by the files; `files` keeps what else they say."""

    files: TemplateFiles
    pooling: tuple[str, ...]
    normalize: bool
    similarity: Similarity


def resolve(folder: Path, choices: Choices) -> Resolved:
    """The user's word first, then what the files state, and never a guess.

    Raises:
        SourceError: listing everything that neither the user nor a file says.
    """
    files = read_template_files(folder)
    problems = list(files.problems)
    pooling = (choices.pooling,) if choices.pooling else files.pooling
    problems += [Problem(unknown("pooling mode", m, POOLING_MODES)) for m in pooling if m not in POOLING_MODES]
    if not pooling and (files.has_pooling or not files.has_modules):
        problems.append(Problem(f"no file says how tokens are pooled: give `pooling` ({', '.join(POOLING_MODES)})."))
    normalize = files.normalize if choices.normalize is None else choices.normalize
    if normalize is None:
        problems.append(
            Problem("no file says whether embeddings are scaled to length 1: give `normalize` (true or false).")
        )
    similarity = choices.similarity or files.similarity
    if similarity is None and normalize:
        similarity = "cosine"  # The same as the inner product on vectors of length 1.
    if similarity is None:
        problems.append(Problem("no file says how embeddings are compared: give `similarity` (cosine or dot)."))
    elif similarity not in ("cosine", "dot"):
        problems.append(Problem(f"similarity {similarity!r} is not supported; supported: cosine, dot."))
    if choices.max_length is None and not files.states_length:
        problems.append(Problem("no file says how long a text may be: give `max_length`, in tokens."))
    if problems:
        raise SourceError(problems, heading=f"The template {folder} does not say how it encodes texts:")
    return Resolved(files, pooling, bool(normalize), cast("Similarity", similarity))


def stated_prompts(files: TemplateFiles) -> dict[Kind, str | None]:
    """The prompt per kind of text.

    A template without any prompt takes bare texts, and so do documents when only queries have prompts. A
    template whose prompts are named after tasks leaves the query's open (None): choosing one is the user's.
    """
    prompts: dict[Kind, str | None] = {}
    for kind, names in _PROMPT_NAMES.items():
        named = [files.prompts[name] for name in names if name in files.prompts]
        if named:
            prompts[kind] = named[0]
        elif files.default_prompt is not None:
            prompts[kind] = files.prompts.get(files.default_prompt, "")
        else:
            prompts[kind] = None if kind == "query" and any(files.prompts.values()) else ""
    return prompts


def lengths(model: Any, choices: Choices) -> dict[Kind, int]:
    """Tokens per kind of text, from the user or as the loaded sentence-transformers model states them."""
    stated: dict[Kind, int | None] = {
        "query": getattr(model[0], "query_length", None),
        "document": getattr(model[0], "document_length", None),
    }
    return {kind: choices.max_length or own or int(model.max_seq_length) for kind, own in stated.items()}

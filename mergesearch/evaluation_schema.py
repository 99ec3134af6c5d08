"""The schema of what a study file says of evaluation: collections, prompts, lengths, precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

DType = Literal["float32", "bfloat16", "float16"]


class Closed(BaseModel):
    """Unknown keys are errors, and so are values of another type: `true` is no number, `3` is no text."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def _length_shorthand(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return {"query": value, "document": value} if whole else value


def repeated(texts: Iterable[str]) -> list[str]:
    """Texts that come more than once."""
    return [text for text, times in Counter(texts).items() if times > 1]


class GivenPromptsEntry(Closed):
    """Text put before every query or document; the template's own prompts by default."""

    query: str | None = None
    document: str | None = None


class PromptListEntry(Closed):
    """Prompts to choose from: a search dimension."""

    values: list[str] = []
    """Texts, the first of which is what sources alone and the uniform average are scored with."""
    file: str | None = None
    """Or a YAML file with a list of texts, as `mergesearch synthesize prompts` writes it."""

    @model_validator(mode="after")
    def _lists(self) -> PromptListEntry:
        if bool(self.values) == (self.file is not None):
            raise ValueError("exactly one of `values`, a list of texts, and `file`")
        if twice := repeated(self.values):
            raise ValueError(f"different texts: {twice[0]!r} is listed twice")
        return self


class PromptsEntry(Closed):
    """Text put before every query or document; a list (`{values: […]}` or `{file: …}`) is searched."""

    query: str | PromptListEntry | None = None
    document: str | PromptListEntry | None = None

    @property
    def given(self) -> bool:
        """Whether anything is said."""
        return self.query is not None or self.document is not None


class PoolEntry(Closed):
    """A smaller corpus: the judged documents and BM25 negatives of every query."""

    negatives: int = Field(ge=0)
    """Negatives per query; 0 keeps judged documents only."""
    test_negatives: int | None = Field(default=None, ge=0)
    """The same for test queries; where it is not given they rank the whole corpus."""


class SubsampleEntry(Closed):
    """A few of the dev queries, as when there were no more; the pool stays that of all."""

    queries: int = Field(ge=1)
    seed: int = Field(ge=0)


class LengthsEntry(Closed):
    """Longest texts in tokens, special tokens included; the template's own limit by default."""

    query: int | None = Field(default=None, ge=8)
    document: int | None = Field(default=None, ge=8)


def _kind_shorthand(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


class FirstStageEntry(Closed):
    """Where the candidates of every query come from; keys beside those named here are the kind's own."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    kind: str = "bm25"
    """`bm25`, `run` (a file in TREC's format), `model` (a bi-encoder) or `candidates` (the collection's own lists)."""
    depth: int = Field(100, ge=1)
    """Candidates per query, at most."""

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own options."""
        return dict(self.model_extra or {})


class RerankEntry(Closed):
    """Re-ranking: the merge scores pairs of a query and a candidate.

    Without this entry merges are bi-encoders that rank the whole corpus.
    """

    family: str | None = None
    """`cross_encoder`, `mono_t5`, `rank_llama`, `query_likelihood` or `yes_no`; by default what the
    template's files say it is."""
    first_stage: Annotated[FirstStageEntry, BeforeValidator(_kind_shorthand)] = FirstStageEntry(depth=100)
    """A kind's name, or a mapping of `kind`, `depth` and the kind's options."""
    fusion: Annotated[float, Field(ge=0, le=1)] | Literal["tuned"] = "tuned"
    """Share λ of the re-ranker in the weighted sum with the first stage's scores, both scaled to 0 … 1 per query: a
    number, or `tuned`, the best of 0, .1, …, 1 on the dev queries of every trial, which costs no forward pass."""
    max_length: int | None = Field(None, ge=8)
    """Tokens of a pair, special tokens included; what the model's files say by default. `evaluation.max_length` cuts
    queries and documents before they are paired."""
    template: str | None = None
    """Text of a pair around `{query}` and `{document}`, instead of the family's own."""
    query_template: str | None = None
    """Text around `{query}`, for families whose tokenizer is given two texts."""
    document_template: str | None = None
    """The same, around `{document}`."""
    instruction: str | None = None
    """What takes the place of `{instruction}` in the template of `yes_no`."""
    tokens: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    """The tokens for no and yes, of families that read their logits: `["▁false", "▁true"]`."""


class CollectionEntry(Closed):
    """A judged collection; keys beside those named here are its format's own."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str
    format: str = "beir"
    split: str = "dev"
    """The queries that trials are scored on."""
    test_split: str = "test"
    """The queries that `evaluate` reads, and nothing else."""
    test: dict[str, Any] = {}
    """Options of the format that differ for the test split, such as another `folder`; or all options of another
    `format`, where judged queries are to test what pseudo-queries chose."""
    queries: int | None = Field(None, ge=1)
    """Sample this many dev queries (all by default)."""
    test_queries: int | None = Field(None, ge=1)
    """Sample this many test queries (all by default): re-rankers read a hundred pairs for each."""
    pool: PoolEntry | None = None
    subsample: SubsampleEntry | None = None
    """Score only so many of these queries, drawn with a seed of their own: `{queries: 50, seed: 1}`. The pool stays
    that of all, so that scores compare with those of a study without it."""
    weight: float = Field(1.0, ge=0)
    """Share in a trial's value, relative to the other collections; 0 for one that is only guarded."""
    objective: str | None = Field(None, min_length=1)
    """What this collection counts for, such as `target` or `others`. With two names or more each is an objective of its
    own: the study has a Pareto front, and a trial's value is still the weighted mean over all collections."""
    may_lose: float | None = Field(None, ge=0)
    """Guard: no merge is chosen that scores more than this below the template alone on this collection."""
    prompts: PromptsEntry = PromptsEntry()
    first_stage: Annotated[FirstStageEntry, BeforeValidator(_kind_shorthand)] | None = None
    """Where this collection's candidates come from, in studies that re-rank; `evaluation.rerank` says it for all."""

    @property
    def options(self) -> dict[str, Any]:
        """The format's own options."""
        return dict(self.model_extra or {})

    @property
    def tested(self) -> tuple[str, dict[str, Any]]:
        """Format and options of the test split."""
        given = dict(self.test)
        if "format" in given:
            return str(given.pop("format")), given
        return self.format, {**self.options, **given}


class EvaluationEntry(Closed):
    """How a merge is scored."""

    collections: list[CollectionEntry] = Field(min_length=1)
    metric: str = "ndcg@10"
    rerank: RerankEntry | None = None
    """Merges score pairs of a query and a first stage's candidate."""
    max_length: Annotated[LengthsEntry, BeforeValidator(_length_shorthand)] = LengthsEntry()
    """Tokens per text: one number, or a mapping of `query` and `document`."""
    prompts: PromptsEntry = PromptsEntry()
    pooling: str | None = None
    """Overrides the template's pooling: `mean`, `cls`, `lasttoken`, …"""
    normalize: bool | None = None
    """Overrides whether embeddings are scaled to length 1."""
    similarity: Literal["cosine", "dot"] | None = None
    """Overrides how the template compares embeddings."""
    append_eos: bool | None = None
    """For templates that read a text off its end token: append it (true) where the tokenizer does not, or accept texts
    without one (false). By default such a tokenizer is an error."""
    dtype: DType = "float32"
    """What the merge is evaluated and exported in."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    """How attention is computed: `auto` takes FlashAttention 2, unpadded, on a CUDA device in half precision where the
    package flash-attn is installed, and transformers' own choice (SDPA) elsewhere."""
    batch_tokens: int = Field(2048, ge=64)
    """Padded tokens per batch."""
    search: str = "torch"
    """The exact search backend: `torch` or `faiss`."""

"""The schema of a study file, typed and closed.

What depends on plug-ins (a method's coefficients, a strategy's or a collection format's options) is checked against
their registries, so a new plug-in needs no change here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator

from mergesearch.evaluation_schema import Closed, EvaluationEntry, GivenPromptsEntry

GroupRule = Literal["template", "first_segment", "last_segment", "own"]


def _source_shorthand(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


def _name_shorthand(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)B")


def memory_bytes(text: str) -> int:
    """`2GB` as a number of bytes, in powers of 1024.

    Raises:
        ValueError: it is none.
    """
    found = _MEMORY.fullmatch(text)
    if found is None:
        raise ValueError("Input should be 'auto', 'off' or memory such as '2GB' or '500MB'")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _auto_off_or_memory(value: str) -> str:
    if value not in ("auto", "off"):
        memory_bytes(value)
    return value


class SourceEntry(Closed):
    """A model that is read, or a PEFT adapter, which is read as the model that it makes of its base."""

    model: str
    """A hub id (`org/name`), a local folder (relative to the study file), or `package:NAME`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    adapter_of: str | None = None
    """For an adapter: the source that is its base; by default the model that it names itself."""
    trust_remote_code: bool = False
    """Run the Python code that lies in this model's folder, which its configuration may need."""


class GroupsEntry(Closed):
    """How the parameters are divided into groups with coefficients of their own."""

    segments: int | None = Field(default=None, ge=1, le=1000)
    """Split the layers into this many segments of (nearly) equal size."""
    boundaries: list[int] | None = None
    """First layer (counted from 0) of the second and every further segment."""
    per_layer: bool = False
    """One group per layer."""
    components: bool = False
    """Divide every segment or layer by component: `segment_1_attention`, `segment_1_mlp`, `segment_1_norms`, …"""
    embeddings: GroupRule = "template"
    """`template` copies them, `first_segment` and `last_segment` merge them along, `own` is a group of its own. With
    `components`, embeddings, pooler and head go along with the segment's MLPs, and final norms with its norms."""
    final_norm: GroupRule = "last_segment"
    """The norm after the last layer, where the architecture has one."""
    pooler: GroupRule = "template"
    """A pooler, or whatever else an encoder has after the last layer."""
    head: GroupRule = "template"
    """The head of a re-ranker: what scores pairs, or predicts words. Ignored by models that are merged without one."""
    decoder: Literal["own", "with_encoder", "template"] = "own"
    """An encoder-decoder's decoder: `own` gives it as many segments as the encoder has (`decoder_segment_1`, …; with
    `boundaries` equal ones; with `per_layer` one per layer), `with_encoder` gives its segments the coefficients of the
    encoder's, `template` copies it. Its last norm goes by `final_norm`. Ignored by models without a decoder."""


class ExamplesCollectionEntry(Closed):
    """Where examples are drawn from: a split of a judged collection. Other keys are its format's own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    format: str = "beir"
    split: str = "train"

    @property
    def options(self) -> dict[str, Any]:
        """The format's own options."""
        return dict(self.model_extra or {})


class ExamplesEntry(Closed):
    """A few labelled examples, on which the loss of every source is measured before the search."""

    loss: Literal["contrastive", "language_model"] = "contrastive"
    """Of retrievers, or of language models that generate the outputs."""
    file: str | None = None
    """One JSON object a line: `query`, `pos` and `neg`, or `input` and `output` for language models."""
    collection: ExamplesCollectionEntry | None = None
    """Instead of a file: queries with a relevant document and BM25 negatives each."""
    n: int | None = Field(default=None, ge=1)
    """How many examples, drawn with the seed; by default all of a file, 5 of a collection."""
    negatives: int = Field(default=7, ge=1)
    """Negatives per example, at most."""
    batch_size: int = Field(default=2, ge=1)
    """Examples that share their negatives."""
    temperature: float = Field(default=0.05, gt=0)
    """What the contrastive loss divides similarities by."""
    seed: int | None = Field(default=None, ge=0)
    """The study's by default."""
    prompts: GivenPromptsEntry = GivenPromptsEntry()


class MergeEntry(Closed):
    """What is merged, and with which coefficients."""

    method: str = "linear"
    """A merge method; `mergesearch methods` lists them."""
    template: str
    """The source that gives architecture, tokenizer, pooling, prompts and all parameters that are not merged."""
    base: str | None = None
    """The source that task vectors are taken from, for methods that need one."""
    groups: GroupsEntry = GroupsEntry(segments=1)
    coefficients: dict[str, Any]
    """Per coefficient: a number, `{values: […]}`, `{low, high, step|log}`, or a mapping by source, group or component;
    with `knots: 3` a range is a gradient over the layers, and so is a list of numbers."""
    examples: ExamplesEntry | None = None
    """What a method measures of the sources (the losses of `cocktail`) is measured on these."""
    options: dict[str, bool | float | str] = Field(default={})
    """The method's options that are not searched."""
    other_vocabulary: Literal["refuse", "template", "shared_tokens"] = "refuse"
    """Sources whose vocabulary is not the template's are an error (`refuse`), lend their layers while all embeddings
    are the template's (`template`), or are merged with it over the tokens that all sources have, matched by their
    text, while the word embeddings of other tokens are the template's (`shared_tokens`)."""


class StrategyEntry(Closed):
    """Which strategy proposes coefficients."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    """A strategy; `mergesearch methods` lists them."""

    @property
    def options(self) -> dict[str, Any]:
        """Everything beside the name: the strategy's own options."""
        return dict(self.model_extra or {})


def _racing_shorthand(value: object) -> object:
    return ({} if value else None) if isinstance(value, bool) else value


class RacingEntry(Closed):
    """Trials are scored in looks at more and more queries, and stopped when they cannot win any more."""

    looks: int | list[float] = Field(default=4)
    """How many, each at the same share of every collection's queries; or the share of the queries after each look but
    the last, such as `[0.2, 0.5]`."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Probability of stopping a trial that would have won, over all looks, at most and about."""
    rivals: int = Field(default=20, ge=4, le=200)
    """From how many of the best trials a trial's score is forecast."""
    hits: int = Field(default=10, ge=0)
    """Where a whole corpus is searched: the BM25 hits per query that are encoded before the last look, beside judged
    documents. What nobody needs is encoded last."""

    @field_validator("looks")
    @classmethod
    def _ascend(cls, looks: int | list[float]) -> int | list[float]:
        if isinstance(looks, int):
            if not 2 <= looks <= 20:
                raise ValueError("2 to 20 looks")
        elif not looks or sorted(set(looks)) != looks or looks[0] <= 0 or looks[-1] >= 1 or len(looks) > 19:
            raise ValueError("ascending shares of the queries between 0 and 1, 19 at most, such as `[0.25, 0.5, 0.75]`")
        return looks

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the queries after each look; the last is 1."""
        if isinstance(self.looks, int):
            return tuple((i + 1) / self.looks for i in range(self.looks))
        return (*self.looks, 1.0)


def _study_shorthand(value: object) -> object:
    return {"study": value} if isinstance(value, str) else value


class StartEntry(Closed):
    """A recorded study whose merges this one starts from: those that are points of its space too."""

    study: str
    """Its name in the database."""
    storage: str | None = None
    """Its database, by default the one of this study."""
    scores: Literal["recorded", "again"] = "recorded"
    """`recorded`: its scores are this study's trials, without evaluation; everything that could change a score has to
    agree, groups and ranges apart. `again`: its best merges are evaluated here, after what is enqueued."""
    best: int | None = Field(default=None, ge=1)
    """Only so many merges, the highest; by default all of them, and 10 where they are scored `again`."""


class SearchEntry(Closed):
    """How coefficients are proposed, and how many are evaluated."""

    strategy: Annotated[StrategyEntry, BeforeValidator(_name_shorthand)]
    """A strategy's name, or a mapping of `name` and its options."""
    trials: int | None = Field(None, ge=1)
    """Evaluated recipes, those enqueued first included. `grid` and `greedy_soup` need none: they end by themselves."""
    minutes: float | None = Field(None, gt=0)
    """Start no further trial after this many minutes of a session."""
    gpu_hours: float | None = Field(None, gt=0)
    """Start no further trial when those of all sessions, failed ones included, have held GPUs for so many hours.
    A worker without a GPU counts as one. Raise it to go on."""
    enqueue: list[Literal["sources", "uniform", "without", "prompts"] | dict[str, float]] = Field(
        ["sources", "uniform"]
    )
    """What to evaluate first: every source alone, the uniform average, the average `without` each source in turn, the
    template alone with every prompt that is searched (`prompts`), or points by parameter name."""
    start_from: Annotated[StartEntry | None, BeforeValidator(_study_shorthand)] = None
    """A recorded study to start from: its name, or a mapping. Its trials teach the strategy and count for no budget."""
    retries: int = Field(2, ge=0)
    """How often a trial is tried again after its worker died."""
    racing: Annotated[RacingEntry | None, BeforeValidator(_racing_shorthand)] = None
    """Stop trials that cannot win: `true`, or a mapping. What is enqueued is never stopped."""


class WorkersEntry(Closed):
    """Who evaluates trials."""

    kind: Literal["local", "ray"] = "local"
    count: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Ray actors; `local` has one. `auto`: one per GPU (or per `gpus` of them), else one per `threads` CPUs, as many as
    the cluster has room for while the study runs."""
    gpus: int = Field(default=1, ge=1)
    """GPUs of every Ray worker, on a CUDA `device`."""
    device: str = "auto"
    """`cpu`, `cuda`, …, or `auto`: CUDA where the machine that runs the study has it. For a cluster with GPUs, whose
    head has none, write `cuda`."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per worker; by default this machine's cores divided by the workers on it."""
    residency: Literal["auto", "device", "pinned", "mapped"] = "auto"
    """Where sources are kept: in the memory of the `device`, `pinned` in the host's (CUDA only), or in `mapped` files.
    `auto` takes the first of these that fits; on a CPU it takes mapped files, which workers share. No score changes."""
    prefix_cache: Annotated[str, AfterValidator(_auto_off_or_memory)] = "auto"
    """Memory of each worker, such as `2GB`, for hidden states that are reused by trials with the same lower layers;
    `auto` takes what is useful and at most half of what is left, `off` runs all layers always. No score changes."""
    address: str | None = None
    """An existing Ray cluster, where workers without room wait for nodes; none starts one on this machine."""


class StudyFile(Closed):
    """A study file as it was written."""

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The study's name in the database."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    storage: str | None = None
    """A SQLAlchemy URL; by default `sqlite:///STUDY.db` in the current folder."""
    artifacts: str | None = None
    """Where embeddings of trials are kept for strategies that predict from them: a folder, `s3://BUCKET` or
    `gs://BUCKET` that all workers reach. By default a folder of the cache on each machine; what is missing there is
    encoded again."""
    sources: dict[str, Annotated[SourceEntry, BeforeValidator(_source_shorthand)]] = Field(min_length=1)
    merge: MergeEntry
    search: SearchEntry
    evaluation: EvaluationEntry
    workers: WorkersEntry = WorkersEntry()

    @property
    def trusted(self) -> frozenset[str]:
        """The sources whose own Python code may be run."""
        return frozenset(name for name, source in self.sources.items() if source.trust_remote_code)


RESERVED_SOURCE_NAMES = frozenset({"low", "high", "step", "log", "values", "tie", "knots"})

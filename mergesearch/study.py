"""A resolved study: the file's words turned into sources, groups, a search space and collections, all checked.

Resolving reads headers, configurations and texts, and no weights. `Study` is what every command works with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.examples import ExampleSet
from mergesearch.evaluation.labels import PSEUDO, on_queries
from mergesearch.evaluation.looks import LookSettings
from mergesearch.evaluation.objectives import Objectives
from mergesearch.evaluation.racing import RacingSettings
from mergesearch.merging.declared import OptionValue
from mergesearch.merging.method import MergeMethod
from mergesearch.recipe import CoefficientValue, GroupRecipe, MergeRecipe, SourceRef
from mergesearch.search.dimension import Dimension
from mergesearch.search.points import Params
from mergesearch.search.prefixes import share_run, useful_boundaries
from mergesearch.search.registry import STRATEGIES, Strategy
from mergesearch.search.space import SearchSpace
from mergesearch.sources.adapter import AdaptedCheckpoint
from mergesearch.sources.alignment import align
from mergesearch.sources.cache import cache_dir
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.groups import Group
from mergesearch.sources.layout import EMBEDDINGS, Layout, lowest_layer
from mergesearch.sources.locate import commit_of
from mergesearch.sources.vocabulary import SharedTokens, hash_of_shared, same_vocabulary
from mergesearch.study_checks import given_measurements, sources_to_measure
from mergesearch.study_file import ParsedStudy, artifact_location
from mergesearch.study_inputs import collection_specs, encoding_files
from mergesearch.study_prompts import given_prompts, prompt_dimensions, searched_prompts
from mergesearch.study_schema import EvaluationEntry, memory_bytes
from mergesearch.workers.evaluator_spec import CollectionSpec, EvaluationSettings, EvaluatorSpec
from mergesearch.workers.machine import default_threads
from mergesearch.workers.prefix_memory import PrefixSpec

Coefficients = Mapping[str, Mapping[str, CoefficientValue]]
"""Group name to coefficient name to value."""
Prompts = Mapping[str, Mapping[str, str]]
"""By collection and kind (`query`, `document`) what stands before its texts."""
UNIFORM_AVERAGE = "uniform average"
"""What the anchor with equal weights is called."""
_DECIDES_ELSEWHERE = {"collections", "search", "prompts", "attention"}
"""Entries of `evaluation` that are recorded in another form, or that no score depends on."""
FEW_QUERIES = 200
"""With fewer dev queries the highest of a hundred scores lies well above what it is worth."""


@dataclass(frozen=True)
class Anchor:
    """A merge that is evaluated before the strategy is asked: a source alone, the uniform average, a given point."""

    name: str
    coefficients: Coefficients
    params: Mapping[str, float] | None
    """The point of the search space that gives it; None when it lies outside."""
    source: str = ""
    """The source that it is alone, in every merged group; empty for any other merge."""
    prompts: Prompts = field(default_factory=dict)
    """See `MergeRecipe`."""


@dataclass(frozen=True)
class Study:
    """A study file with everything it names found, read and checked.

    Attributes:
        parsed: the study file.
        folders: source name to the local folder of its model, which is its base's for an adapter.
        checkpoints: source name to its opened headers.
        layout: the template's parameters and their places.
        shared: the tokens that embeddings are merged over; None where whole tables are, or none.
        method: the merge method.
        groups: the parameter groups, in model order.
        space: the search space.
        collections: the dev splits, sampled and pooled, in the file's order.
        examples: what losses of the sources are measured on; None where none are, or the study file gives them.
        measured: the losses as far as they are known, by coefficient and source: part of every recipe.
        inherited: points that another study scored high, evaluated after what is enqueued.
    """

    parsed: ParsedStudy
    folders: Mapping[str, Path]
    checkpoints: Mapping[str, Checkpoint]
    layout: Layout
    shared: SharedTokens | None
    method: MergeMethod
    groups: tuple[Group, ...]
    space: SearchSpace
    collections: tuple[Collection, ...]
    examples: ExampleSet | None = None
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    inherited: tuple[Params, ...] = ()

    @property
    def name(self) -> str:
        """The study's name in the database."""
        return self.parsed.content.study

    @property
    def adapters(self) -> dict[str, Path]:
        """Source name to local folder of the sources that are PEFT adapters."""
        return {name: c.adapter for name, c in self.checkpoints.items() if isinstance(c, AdaptedCheckpoint)}

    @property
    def merged_sources(self) -> list[str]:
        """The sources that have coefficients: all but the base."""
        return [s for s in self.folders if s != self.parsed.content.merge.base]

    def recipe(self, params: Mapping[str, float]) -> MergeRecipe:
        """The recipe at a point of the search space."""
        return self.recipe_of(self.space.coefficients(params), self.prompts_at(params))

    def recipe_of(self, coefficients: Coefficients, prompts: Prompts | None = None) -> MergeRecipe:
        """The recipe with these coefficients per merged group; other groups are copied from the template.

        Where prompts are searched they are these, or the first of each list.
        """
        merge = self.parsed.content.merge
        groups = tuple(
            GroupRecipe(g.name, g.places, coefficients={**coefficients[g.name], **self.measured})
            if g.merged
            else GroupRecipe(g.name, g.places, copy_from=merge.template)
            for g in self.groups
        )
        return self._recipe(groups, prompts)

    def prompts_at(self, params: Mapping[str, float] | None = None) -> Prompts:
        """What the study puts before texts at a point; empty where no prompt is searched.

        Without a value a prompt is the first of its list. The template's own prompts are left out.
        """
        evaluation = self._evaluation
        searched = searched_prompts(evaluation)
        found: dict[str, dict[str, str]] = {}
        for c in evaluation.collections if any(searched.values()) else ():
            given = {kind: text for kind, text in given_prompts(evaluation, c.prompts).items() if text is not None}
            picked = {kind: d.names[round((params or {}).get(d.name, 0.0))] for kind, d in searched[c.name].items()}
            found[c.name] = {**given, **picked}
        return found

    @property
    def sources_to_measure(self) -> tuple[str, ...]:
        """The sources whose loss is measured before the first trial."""
        if self.examples is None:
            return ()
        return tuple(dict.fromkeys(s for sources in sources_to_measure(self.parsed).values() for s in sources))

    def with_losses(self, losses: Mapping[str, float]) -> Study:
        """The study with the losses of `sources_to_measure`."""
        needed = sources_to_measure(self.parsed)
        return replace(self, measured={name: {s: losses[s] for s in sources} for name, sources in needed.items()})

    def source_alone(self, source: str, prompts: Prompts | None = None) -> MergeRecipe:
        """The recipe that is one source, unmerged, in every place the source has; prompts as in `recipe_of`."""
        template = self.parsed.content.merge.template
        own = self.own_places(source)
        groups = tuple(GroupRecipe(p, (p,), copy_from=source if p in own else template) for p in self.layout.places)
        return self._recipe(groups, prompts)

    def own_places(self, source: str) -> frozenset[str]:
        """The places whose every parameter the source has, in the template's shape and for its vocabulary."""
        template = self.parsed.content.merge.template
        checkpoint = self.checkpoints[source]
        names = align(checkpoint, self.layout)
        misfits = {
            p.place
            for p in self.layout.parameters.values()
            if p.name not in names or tuple(checkpoint.tensors[names[p.name]].shape) != tuple(p.shape)
        }
        if self.shared is not None:
            misfits.discard(EMBEDDINGS)  # they were found to fit, row by row
        elif not same_vocabulary(self.folders[template], self.folders[source]):
            misfits.add(EMBEDDINGS)  # the template's tokenizer would pick other words' rows
        return frozenset(self.layout.places) - misfits

    def content_hash(self, source: str) -> str:
        """Of all that merges take from a source."""
        weights = self.checkpoints[source].content_hash
        if self.shared is None:
            return weights
        return hash_of_shared(weights, self.shared.rows[source])

    def _options(self) -> dict[str, OptionValue]:
        """The merge method's options that differ from their defaults; one that is spelled out makes no other merge."""
        given = self.parsed.content.merge.options
        return {name: setting for name, setting in given.items() if setting != self.method.options[name].default}

    def _recipe(self, groups: tuple[GroupRecipe, ...], prompts: Prompts | None = None) -> MergeRecipe:
        content = self.parsed.content
        located = {**self.folders, **self.adapters}
        refs = [
            SourceRef(
                name,
                source.model,
                self.content_hash(name),
                commit_of(located[name]) or source.revision,
            )
            for name, source in content.sources.items()
        ]
        return MergeRecipe(
            method=content.merge.method,
            sources=tuple(refs),
            template=content.merge.template,
            groups=groups,
            base=content.merge.base,
            options=self._options(),
            dtype=content.evaluation.dtype,
            seed=content.seed,
            prompts=self.prompts_at() if prompts is None else prompts,
        )

    def sources_alone(self) -> dict[str, Coefficients]:
        """Coefficients that give each source alone, for the sources that the method can give alone."""
        merge, sources = self.parsed.content.merge, self.merged_sources
        found = {s: self.method.coefficients_for_source(s, sources, merge.base, merge.template) for s in self.folders}
        return {s: self._everywhere(c) for s, c in found.items() if c is not None}

    def uniform_average(self) -> Coefficients | None:
        """Equal weights in every merged group; None for methods without weights."""
        even = self.method.uniform(self.merged_sources)
        return None if even is None else self._everywhere(even)

    def _everywhere(self, coefficients: Mapping[str, CoefficientValue]) -> Coefficients:
        return {g.name: coefficients for g in self.groups if g.merged}

    def anchors(self) -> list[Anchor]:
        """What `search.enqueue` asks for, in its order, and `inherited` points; equal ones once."""
        found: list[tuple[str, Coefficients, str, Mapping[str, float]]] = []
        alone, template = self.sources_alone(), self.parsed.content.merge.template
        if self.objectives.allowances:  # what guards are measured against comes first
            found.append((self._name_alone(template), alone[template], template, {}))
        for entry in (*self.parsed.content.search.enqueue, *self.inherited):
            if entry == "sources":
                found += [(self._name_alone(source), c, source, {}) for source, c in alone.items()]
            elif entry == "uniform":
                even = self.uniform_average()
                found += [(UNIFORM_AVERAGE, even, "", {})] if even is not None else []
            elif entry == "prompts":
                for d, value in self._prompt_choices() if template in alone else ():
                    name = f"{self._name_alone(template)}, {self.space.label({d.name: value})}"
                    found.append((name, alone[template], template, {d.name: value}))
            else:
                coefficients = self.space.coefficients(entry)  # refuses what is no point
                found.append((self.space.label(dict(sorted(entry.items()))), coefficients, "", entry))
        once: dict[str, Anchor] = {}
        for name, c, source, picked in found:
            params, prompts = self.space.locate(c), self.prompts_at(picked)
            if params is not None:
                params |= {d.name: picked.get(d.name, params[d.name]) for d in prompt_dimensions(self._evaluation)}
            once.setdefault(self.recipe_of(c, prompts).fingerprint, Anchor(name, c, params, source, prompts))
        return list(once.values())

    def _prompt_choices(self) -> Iterator[tuple[Dimension, float]]:
        """Every prompt of every list."""
        for d in prompt_dimensions(self._evaluation):
            for value in d.choices() or ():
                yield d, value

    @property
    def _evaluation(self) -> EvaluationEntry:
        return self.parsed.content.evaluation

    def _name_alone(self, source: str) -> str:
        """What an anchor's trial of one source is: not the whole source where places are the template's."""
        whole = source == self.parsed.content.merge.template or all(g.merged for g in self.groups)
        return f"{source} alone" if whole else f"{source}'s layers"

    @property
    def metric(self) -> str:
        """What trials are scored by, as people are to read it: `ndcg@10`, or `ndcg@10 on pseudo-queries`."""
        return self.parsed.content.evaluation.metric + on_queries([c.pseudo_queries for c in self.collection_specs()])

    def collection_specs(self, *, test: bool = False) -> tuple[CollectionSpec, ...]:
        """The dev splits that trials are scored on, or the whole test splits."""
        return collection_specs(self.parsed, test=test)

    def evaluator_spec(self, *, device: str | None = None, threads: int | None = None) -> EvaluatorSpec:
        """What a worker needs to evaluate this study's recipes on the dev splits."""
        content = self.parsed.content
        evaluation, workers = content.evaluation, content.workers
        merged_places = frozenset(p for g in self.groups if g.merged for p in g.places)
        return EvaluatorSpec(
            folders=dict(self.folders),
            adapters=self.adapters,
            template=content.merge.template,
            merged_places=dict.fromkeys(self.folders, merged_places),
            trusted=content.trusted,
            collections=self.collection_specs(),
            evaluation=EvaluationSettings(
                metric=evaluation.metric,
                max_query_length=evaluation.max_length.query,
                max_document_length=evaluation.max_length.document,
                pooling=evaluation.pooling,
                normalize=evaluation.normalize,
                similarity=evaluation.similarity,
                append_eos=evaluation.append_eos,
                dtype=evaluation.dtype,
                attention=evaluation.attention,
                batch_tokens=evaluation.batch_tokens,
                search=evaluation.search,
                device=_device(device or workers.device),
            ),
            study=self.name,
            shared_tokens=self.shared is not None,
            threads=threads or workers.threads or default_threads(self.workers),
            residency=workers.residency,
            workers=self.workers,
            artifacts=self.artifacts,
            prefix=self._prefix_spec(),
            racing=self.racing,
            gpus=workers.gpus,
        )

    @property
    def workers(self) -> int:
        """How many workers there are; where the study file says `auto`, how many fit on a machine like this one."""
        workers = self.parsed.content.workers
        if workers.count != "auto":
            return workers.count
        if _device(workers.device).startswith("cuda"):
            return max(1, torch.cuda.device_count() // workers.gpus)
        return max(1, default_threads(1) // workers.threads) if workers.threads else 1

    @cached_property
    def lowest_layers(self) -> dict[str, float]:
        """Of every merged group; -1 for embeddings, infinite for what follows the layers."""
        return {g.name: min(map(lowest_layer, g.places)) for g in self.groups if g.merged}

    @property
    def layer_share(self) -> float | None:
        """The share of all layers that one worker runs, anchors left out; None where it is not known beforehand."""
        strategy, spec = self.strategy(), self._prefix_spec()
        planned = strategy.planned()
        whole_grid = planned is not None and planned == self.space.size() and planned <= (self.planned_trials or 0)
        if not spec.boundaries or not whole_grid:
            return None
        return share_run(self.space, self.lowest_layers, spec.boundaries, self.layout.n_layers)

    def _prefix_spec(self) -> PrefixSpec:
        """Where the search has use for hidden states of earlier trials."""
        content = self.parsed.content
        if content.workers.prefix_cache == "off" or content.workers.gpus > 1:
            return PrefixSpec()
        strategy, granted = self.strategy(), content.workers.prefix_cache
        return PrefixSpec(
            boundaries=useful_boundaries(strategy, self.lowest_layers, self.layout.n_layers),
            prefixes=max(1, strategy.repeated_prefixes),
            token_bytes=self.layout.hidden_size * getattr(torch, content.evaluation.dtype).itemsize,
            cache_bytes=None if granted == "auto" else memory_bytes(granted),
        )

    @property
    def artifacts(self) -> str | None:
        """Where embeddings of trials are kept; None for strategies that need none."""
        content = self.parsed.content
        if not STRATEGIES[content.search.strategy.name].needs_embeddings:
            return None
        return artifact_location(self.parsed) or str(cache_dir() / "embeddings")

    def unmerged_spec(self) -> EvaluatorSpec:
        """Like `evaluator_spec`, with whole sources loaded so that each can be scored alone; they share no prefix."""
        places = {name: self.own_places(name) for name in self.folders}
        return replace(self.evaluator_spec(), merged_places=places, artifacts=None, prefix=PrefixSpec())

    @property
    def planned_trials(self) -> int | None:
        """How many trials the study will have, where that is known beforehand."""
        strategy = self.strategy()
        planned = strategy.planned()
        budget = self.parsed.content.search.trials
        if planned is None:
            return budget
        planned += sum(a.params is None or not strategy.plans(dict(a.params)) for a in self.anchors())
        return planned if budget is None else min(planned, budget)

    def notes(self) -> list[str]:
        """What a user should know before trusting the study's outcome."""
        notes = [
            f"{c.name}: dev scores are on {PSEUDO}, which no user asked and nobody judged: they say how well a merge "
            "finds documents by words of their own"
            for c in self.collection_specs()
            if c.pseudo_queries
        ]
        notes += [f"{c.name}: {warning}" for c in self.collections for warning in c.warnings]
        if self.shared is not None:
            notes.append(
                f"embeddings: {len(self.shared):,} of the template's {self.layout.vocab_size:,} rows belong to tokens "
                "that all sources have and are merged; the others stay the template's"
            )
        queries = sum(len(c.query_ids) for c in self.collections)
        if queries < FEW_QUERIES:
            notes.append(
                f"{queries} dev queries are few: below {FEW_QUERIES} the best of many trials owes much of its score "
                "to luck"
            )
        return notes

    @property
    def objectives(self) -> Objectives:
        """What trials are judged by beside their value."""
        content = self.parsed.content
        collections = content.evaluation.collections
        return Objectives(
            {c.name: c.objective or content.evaluation.metric for c in collections},
            {c.name: c.weight for c in collections},
            {c.name: c.may_lose for c in collections if c.may_lose is not None},
            content.merge.template,
        )

    @property
    def racing(self) -> RacingSettings | None:
        """How trials are raced; None where every trial is scored at once."""
        entry = self.parsed.content.search.racing
        if entry is None:
            return None
        looks = LookSettings(shares=entry.shares, hits=entry.hits, seed=self.parsed.content.seed)
        return RacingSettings(looks, alpha=entry.alpha, rivals=entry.rivals)

    def strategy(self) -> Strategy:
        """The strategy that the study file names, with its options."""
        search, seed = self.parsed.content.search, self.parsed.content.seed
        chosen = STRATEGIES[search.strategy.name]
        started = {} if search.start_from is None else chosen.started
        strategy = chosen(self.space, chosen.Options(**{**started, **search.strategy.options}), seed)
        strategy.metric = self.parsed.content.evaluation.metric
        strategy.workers = self.workers
        strategy.objectives = self.objectives
        return strategy

    def score_relevant(self) -> dict[str, Any]:
        """Everything that could change a score: what a resumed study must agree with."""
        content = self.parsed.content
        merge = content.merge
        return {
            "seed": content.seed,
            "sources": {name: self.content_hash(name) for name in self.checkpoints},
            "merge": {
                "method": merge.method,
                "template": merge.template,
                "base": merge.base,
                "options": self._options(),
                # Coefficients that name a source hold its place, and some methods treat the first differently.
                "order": list(self.method.sources_of(self._recipe(()))),
                "groups": {g.name: {"places": list(g.places), "merged": g.merged} for g in self.groups},
                "space": self.space.to_dict(),
                **({"measured": self._what_is_measured()} if self.method.measured else {}),
            },
            "evaluation": {
                **content.evaluation.model_dump(exclude=_DECIDES_ELSEWHERE),
                # Like the device, what `auto` comes to is the machine's business.
                **({} if content.evaluation.attention == "auto" else {"attention": content.evaluation.attention}),
                "template_files": encoding_files(self.folders[merge.template]),
                "collections": {
                    c.name: {
                        "content": c.content_hash,
                        "weight": spec.weight,
                        # Those that are searched are recorded with the space.
                        "prompts": {k: None if k in spec.choices else text for k, text in spec.prompts.items()},
                        **({"pseudo_queries": True} if spec.pseudo_queries else {}),
                        **entry.model_dump(include={"objective", "may_lose"}, exclude_none=True),
                    }
                    for c, spec, entry in zip(
                        self.collections, self.collection_specs(), content.evaluation.collections, strict=True
                    )
                },
                # Scores per query and embeddings are kept in this order.
                **({"order": [c.name for c in self.collections]} if len(self.collections) > 1 else {}),
                # Batches hold texts of one look, and what was not looked at cannot be compared.
                **({} if self.racing is None else {"looks": asdict(self.racing.looks)}),
            },
        }

    def score_defaults(self) -> dict[str, Any]:
        """What `score_relevant` says where the study file says nothing, as far as the file has a default."""
        entry = type(self.parsed.content.evaluation)
        unset = {name: field.get_default() for name, field in entry.model_fields.items() if not field.is_required()}
        return {
            "merge": {"options": {name: option.default for name, option in self.method.options.items()}},
            "evaluation": entry.model_construct(**unset).model_dump(exclude=_DECIDES_ELSEWHERE),
        }

    def _what_is_measured(self) -> Mapping[str, Any]:
        """The same before and after it is measured."""
        return given_measurements(self.parsed) if self.examples is None else self.examples.describe()


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"

"""What a study can merge: its sources and groups, the recipes at points of its space, and what is evaluated first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, cast

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.examples import ExampleSet
from mergesearch.evaluation.objectives import Objectives
from mergesearch.evaluation_schema import EvaluationEntry
from mergesearch.merging.declared import OptionValue
from mergesearch.merging.method import MergeMethod
from mergesearch.recipe import CoefficientValue, GroupRecipe, MergeRecipe, SourceRef
from mergesearch.search.dimension import Dimension
from mergesearch.search.points import Params
from mergesearch.search.space import SearchSpace
from mergesearch.sources.adapter import AdaptedCheckpoint
from mergesearch.sources.alignment import align
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.groups import Group
from mergesearch.sources.layout import EMBEDDINGS, HEAD, POOLER, Layout
from mergesearch.sources.locate import commit_of
from mergesearch.sources.vocabulary import SharedTokens, hash_of_shared, same_vocabulary
from mergesearch.study_checks import sources_to_measure
from mergesearch.study_file import ParsedStudy
from mergesearch.study_prompts import given_prompts, prompt_dimensions, searched_prompts

Coefficients = Mapping[str, Mapping[str, CoefficientValue]]
"""Group name to coefficient name to value."""
Prompts = Mapping[str, Mapping[str, str]]
"""By collection and kind (`query`, `document`) what stands before its texts."""
UNIFORM_AVERAGE = "uniform average"
"""What the anchor with equal weights is called."""


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
class StudyRecipes:
    """A study file with everything it names found, read and checked, as far as recipes go; `Study` is the whole.

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
        family: of re-rankers, what the template is; None for bi-encoders.
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
    family: str | None = None

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

    def with_losses(self, losses: Mapping[str, float]) -> Self:
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
        if HEAD in misfits:
            misfits.add(POOLER)  # the template's head reads what the template's pooler puts out
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

    def averages_without(self) -> dict[str, Coefficients]:
        """By source the uniform average of all others; none for methods without weights, or for a single source."""
        found = {}
        for left_out in self.merged_sources:
            even = self.method.uniform([s for s in self.merged_sources if s != left_out] or [left_out])
            if even is not None and len(self.merged_sources) > 1:
                weights = cast("Mapping[str, float]", even["weight"])
                of_all = {s: weights.get(s, 0.0) for s in self.merged_sources}
                found[left_out] = self._everywhere({**even, "weight": of_all})
        return found

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
            elif entry == "without":
                found += [(f"{UNIFORM_AVERAGE} without {s}", c, "", {}) for s, c in self.averages_without().items()]
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

    def anchored(self, anchor: Anchor) -> MergeRecipe:
        """The recipe of an anchor."""
        return self.recipe_of(anchor.coefficients, anchor.prompts)

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
    def measure(self) -> MergeRecipe | None:
        """What guards are measured against: the template alone, behind the first prompts; None without guards."""
        guards = self.objectives
        return self.recipe_of(self.sources_alone()[guards.template]) if guards.allowances else None

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

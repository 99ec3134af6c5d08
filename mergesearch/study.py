"""A resolved study: the file's words turned into sources, groups, a search space and collections, all checked.

Resolving reads headers, configurations and texts, and no weights. `Study` is what every command works with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from mergesearch.evaluation.candidates import find_candidates, first_stage_identity
from mergesearch.evaluation.labels import PSEUDO, on_queries
from mergesearch.evaluation.looks import LookSettings
from mergesearch.evaluation.racing import RacingSettings
from mergesearch.search.prefixes import share_run, useful_boundaries
from mergesearch.search.registry import STRATEGIES, Strategy
from mergesearch.sources.cache import cache_dir
from mergesearch.sources.encoding_files import encoding_files
from mergesearch.sources.layout import lowest_layer
from mergesearch.study_checks import given_measurements
from mergesearch.study_file import artifact_location
from mergesearch.study_inputs import collection_specs, rerank_settings
from mergesearch.study_recipes import StudyRecipes
from mergesearch.study_schema import memory_bytes
from mergesearch.workers.evaluator_spec import CollectionSpec, EvaluationSettings, EvaluatorSpec
from mergesearch.workers.machine import default_threads
from mergesearch.workers.prefix_memory import PrefixSpec

_DECIDES_ELSEWHERE = {"collections", "search", "prompts", "attention", "rerank"}
"""Entries of `evaluation` that are recorded in another form, or that no score depends on."""
FEW_QUERIES = 200
"""With fewer dev queries the highest of a hundred scores lies well above what it is worth."""


@dataclass(frozen=True)
class Study(StudyRecipes):
    """A study file with everything it names found, read and checked, and what is done with it."""

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
                rerank=rerank_settings(self.parsed, self.family),
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
        notes += self._notes_on_candidates()
        queries = sum(len(c.query_ids) for c in self.collections)
        if queries < FEW_QUERIES:
            notes.append(
                f"{queries} dev queries are few: below {FEW_QUERIES} the best of many trials owes much of its score "
                "to luck"
            )
        return notes

    def _notes_on_candidates(self) -> list[str]:
        """Of first stages that take seconds; what a bi-encoder finds is known once workers have asked it."""
        if self.family is None:
            return []
        return [
            f"{c.name}: {warning}"
            for c, spec in zip(self.collections, self.collection_specs(), strict=True)
            if spec.first_stage.kind != "model"
            for warning in find_candidates(spec.first_stage, c).warnings
        ]

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
                **self._how_re_ranked(),
                "collections": dict(zip([c.name for c in self.collections], self._collections_recorded(), strict=True)),
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

    def _collections_recorded(self) -> Iterator[dict[str, Any]]:
        """Of every collection what scores depend on."""
        evaluation = self.parsed.content.evaluation
        for c, spec, entry in zip(self.collections, self.collection_specs(), evaluation.collections, strict=True):
            yield {
                "content": c.content_hash,
                "weight": spec.weight,
                # Those that are searched are recorded with the space.
                "prompts": {k: None if k in spec.choices else text for k, text in spec.prompts.items()},
                **({"pseudo_queries": True} if spec.pseudo_queries else {}),
                **entry.model_dump(include={"objective", "may_lose"}, exclude_none=True),
                **({} if evaluation.rerank is None else {"first_stage": first_stage_identity(spec.first_stage, c)}),
            }

    def _how_re_ranked(self) -> dict[str, Any]:
        """What a re-ranker is asked; nothing of bi-encoders. Of first stages, their content is recorded."""
        settings = rerank_settings(self.parsed, self.family)
        return {} if settings is None else {"rerank": asdict(settings)}

    def _what_is_measured(self) -> Mapping[str, Any]:
        """The same before and after it is measured."""
        return given_measurements(self.parsed) if self.examples is None else self.examples.describe()


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"

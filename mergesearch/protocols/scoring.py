"""Scores of merges and of fine-tuned models by the same code; a test split is read once for each model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.recipe import GroupRecipe, MergeRecipe, SourceRef
from mergesearch.sources.adapter import open_source
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator
from mergesearch.workers.evaluator_spec import BatchProgress, CollectionSpec

ADAPTED = "fine-tuned"
"""What the template with an adapter is called as a source."""


@dataclass(frozen=True)
class Given(CollectionSpec):
    """A collection that is in memory already, whatever the rest says of where it comes from."""

    collection: Collection | None = None

    @classmethod
    def of(cls, spec: CollectionSpec, collection: Collection) -> Given:
        """`spec` with the collection."""
        return cls(**vars(spec), collection=collection)

    def load(self) -> Collection:
        """What was given."""
        assert self.collection is not None
        return self.collection


def score_adapter(
    study: Study, adapter: Path, collections: Sequence[CollectionSpec], progress: BatchProgress | None = None
) -> TrialResult:
    """Scores of the study's template with a PEFT adapter, merged in as any source is, with the study's settings.

    Raises:
        SourceError: the adapter does not fit.
    """
    folder = study.folders[study.parsed.content.merge.template]
    spec = replace(
        study.unmerged_spec(),
        folders={study.parsed.content.merge.template: folder, ADAPTED: folder},
        adapters={ADAPTED: adapter},
        merged_places={ADAPTED: frozenset(study.layout.places)},
        collections=tuple(collections),
        shared_tokens=False,
        racing=None,
    )
    return TrialEvaluator(spec).evaluate(_adapted(study, adapter), progress)


def _adapted(study: Study, adapter: Path) -> MergeRecipe:
    content = study.parsed.content
    template = content.merge.template
    checkpoint = open_source(ADAPTED, study.folders[template], adapter)
    sources = (
        SourceRef(template, content.sources[template].model, study.content_hash(template)),
        SourceRef(ADAPTED, adapter.name, checkpoint.content_hash),
    )
    groups = tuple(GroupRecipe(p, (p,), copy_from=ADAPTED) for p in study.layout.places)
    return MergeRecipe("linear", sources, template, groups, dtype=content.evaluation.dtype)


class HeldOut:
    """The test splits of a study's collections. Every reading is recorded with the study, and none is done twice.

    Readings are kept by what was scored and by what it was scored on: texts, judgements and how they are encoded.

    Args:
        study: whose test splits are read.
        store: where readings are recorded, and where those of earlier processes are.
        command: what reads.

    Raises:
        CollectionError: a collection has no such split.
    """

    def __init__(self, study: Study, store: StudyStore, command: str) -> None:
        self._study, self._store = study, store
        specs = study.collection_specs(test=True)
        self.collections = tuple(spec.load() for spec in specs)
        self._specs = tuple(Given.of(s, c) for s, c in zip(specs, self.collections, strict=True))
        evaluation = {
            n: v for n, v in study.score_relevant()["evaluation"].items() if n not in ("collections", "order")
        }
        what = [evaluation, [[c.name, c.content_hash] for c in self.collections], [dict(s.prompts) for s in specs]]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        self._command = f"{command} (test data and settings {digest[:12]})"
        self._evaluator: tuple[str, TrialEvaluator] | None = None

    def known(self, fingerprint: str) -> dict[str, CollectionScores] | None:
        """Scores by collection of a model that was read, in this process or an earlier one."""
        found = {
            r.scores.collection: r.scores
            for r in self._store.test_readings()
            if (r.command, r.fingerprint) == (self._command, fingerprint)
        }
        return found or None

    @property
    def read(self) -> int:
        """How many models were read, by earlier processes too."""
        mine = (r for r in self._store.test_readings() if r.command == self._command)
        return len({r.fingerprint for r in mine})

    def of_merge(
        self, study: Study, recipe: MergeRecipe, subject: str, progress: BatchProgress | None = None
    ) -> dict[str, CollectionScores]:
        """Scores by collection of a merge of any study with the same template, whole sources among them."""
        if (known := self.known(recipe.fingerprint)) is not None:
            return known
        if self._evaluator is None or self._evaluator[0] != study.name:
            self.close()
            spec = replace(study.unmerged_spec(), collections=self._specs, racing=None)
            self._evaluator = study.name, TrialEvaluator(spec)
        return self._recorded(self._evaluator[1].evaluate(recipe, progress), subject, recipe.fingerprint)

    def of_adapter(
        self, adapter: Path, subject: str, progress: BatchProgress | None = None
    ) -> dict[str, CollectionScores]:
        """Scores by collection of the template with an adapter."""
        fingerprint = _adapted(self._study, adapter).fingerprint
        if (known := self.known(fingerprint)) is not None:
            return known
        self.close()
        return self._recorded(score_adapter(self._study, adapter, self._specs, progress), subject, fingerprint)

    def close(self) -> None:
        """Unload what merges are scored with."""
        self._evaluator = None

    def _recorded(self, result: TrialResult, subject: str, fingerprint: str) -> dict[str, CollectionScores]:
        self._store.record_test_reading(
            result.collections, subject=subject, split="test", command=self._command, fingerprint=fingerprint
        )
        return {c.collection: c for c in result.collections}

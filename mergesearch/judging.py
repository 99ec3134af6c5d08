"""Judges trials by a study's objectives and guards, once the template alone has a score to measure guards against."""

from __future__ import annotations

from collections.abc import Sequence

from mergesearch.evaluation.objectives import Judgement
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.storage.reader import StudyReader
from mergesearch.study import Study

NO_TEMPLATE = "the template alone has no score, which `may_lose` is measured against"


class Judge:
    """What to record of trials beside their value.

    Args:
        study: whose objectives and guards.
        store: its records.
    """

    def __init__(self, study: Study, store: StudyReader) -> None:
        self._store = store
        self._objectives = study.objectives
        self._template: Sequence[CollectionScores] | None = None
        measure = study.measure
        self._template_recipe = "" if measure is None else measure.fingerprint

    @property
    def ready(self) -> bool:
        """Whether any trial can be judged; while not, the template's own is to be evaluated and no other."""
        return not self._template_recipe or self._template_scores() is not None

    def of(self, recipe: str, result: TrialResult) -> Judgement:
        """What to record of a trial with a recipe's fingerprint; nothing of one that was stopped."""
        if result.stopped:
            return Judgement()
        template = result.collections if self.is_template(recipe) else self._template_scores()
        return self._objectives.judge(result.collections, template)

    def is_template(self, recipe: str) -> bool:
        """Whether guards are measured against the trial with this recipe's fingerprint."""
        return recipe == self._template_recipe

    def _template_scores(self) -> Sequence[CollectionScores] | None:
        if self._template is None and self._template_recipe:
            found = self._store.value_of(self._template_recipe)
            self._template = None if found is None else found[1].collections
        return self._template

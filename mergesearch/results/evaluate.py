"""Scores that a study was not searched on: the winner and what it has to be compared with, with paired tests.

Test splits are read here and by `protocols/`, and every reading of a study's test split is recorded with the study.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.encoder import Encoder
from mergesearch.evaluation.labels import PSEUDO
from mergesearch.evaluation.reranking import RerankEvaluator
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.evaluation.tables import ranx_per_query
from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import choose, scored_trials
from mergesearch.results.readings import COMMAND, OF_A_FOLDER, overlaps, pools, readings
from mergesearch.results.recorded import check_unchanged
from mergesearch.results.reranked import FIRST_STAGE, Shares, first_stages, open_tuned, share_of, told, tunes
from mergesearch.results.rival_models import RIVAL, with_rivals
from mergesearch.results.tested import USUAL, PairedTest, Reported, paired_tests, shown_p
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.study_inputs import rerank_settings
from mergesearch.study_prompts import searched_prompts
from mergesearch.study_recipes import UNIFORM_AVERAGE, Prompts
from mergesearch.workers.evaluator import TrialEvaluator
from mergesearch.workers.evaluator_spec import BatchProgress, CollectionSpec, EvaluationSettings
from mergesearch.workers.opening import build_pipeline, open_with

CHOSEN, HIGHEST = "chosen (trial ", "highest on dev (trial "
"""How the subjects of readings begin that are trials; then comes the number. A source may have any name."""
Table = tuple[str, list[str], list[tuple[Any, ...]]]
"""Title, headers, rows."""
Qrels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class ModelScores:
    """One model on every collection; `scores` are by collection and metric, each float64 [Q] as `query_ids` go."""

    label: str
    result: TrialResult
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]

    @property
    def means(self) -> Mapping[str, Mapping[str, float]]:
        """Means over queries, by collection and metric."""
        return {c: {name: float(values.mean()) for name, values in of.items()} for c, of in self.scores.items()}

    def on(self, i: int, metric: str) -> CollectionScores:
        """The scores on a collection, by its place, by one of the metrics."""
        own = self.result.collections[i]
        if metric == own.metric:
            return own
        return replace(own, metric=metric, scores=self.scores[own.collection][metric])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"model": self.label, "scores": {c: dict(m) for c, m in self.means.items()}}


@dataclass(frozen=True)
class Evaluation:
    """Models by collections by metrics, and the paired tests of the last model, the winner, against the others."""

    split: str
    models: tuple[ModelScores, ...]
    tests: tuple[PairedTest, ...] = ()
    notes: tuple[str, ...] = field(default=())
    reported: Reported = USUAL
    pseudo: tuple[str, ...] = ()
    """The collections whose queries are pseudo-queries."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "split": self.split,
            "models": [m.to_dict() for m in self.models],
            "tests": [t.to_dict() for t in self.tests],
            "notes": list(self.notes),
            "pseudo_queries": list(self.pseudo),
        }

    def tables(self) -> list[Table]:
        """Per collection one table of scores and, where something was tested, one of the differences by each metric."""
        tables: list[Table] = []
        selection = " (selection scores)" if self.split == "dev" else ""
        for scores in self.models[0].result.collections:
            name, n = scores.collection, len(scores.query_ids)
            means = {m.label: m.means[name] for m in self.models}
            metrics = self.reported.shown(scores.metric)
            rows: list[tuple[Any, ...]] = [(label, *(f"{of[k]:.4f}" for k in metrics)) for label, of in means.items()]
            queries = PSEUDO if name in self.pseudo else "queries"
            tables.append((f"{name}, {self.split} split, {n} {queries}{selection}", ["model", *metrics], rows))
            corrected = f"p (t, {self.reported.correction.capitalize()})"
            for metric in self.reported.tested(scores.metric):
                found = [t for t in self.tests if (t.collection, t.metric) == (name, metric)]
                if found:
                    interval = f"{100 * found[0].comparison.level:g}% interval"
                    headers = ["paired by query", metric, interval, "p (t)", "p (perm.)", corrected]
                    tables.append((f"{name}, differences", headers, [self._row(t) for t in found]))
        return tables

    def _row(self, test: PairedTest) -> tuple[str, ...]:
        c = test.comparison
        corrected = test.p_holm if self.reported.correction == "holm" else test.p_bonferroni
        level = self.reported.level
        return (
            f"chosen − {test.against}",
            f"{c.mean_difference:+.4f}",
            "[{:+.4f}, {:+.4f}]".format(*c.interval),
            shown_p(c.p_ttest),
            shown_p(c.p_permutation),
            shown_p(corrected) + ("*" if level is not None and corrected < 1 - level else ""),
        )


def evaluate_study(
    study: Study,
    store: StudyStore,
    *,
    split: str = "test",
    trials: Sequence[int] = (),
    rivals: Mapping[str, str] = MappingProxyType({}),
    reported: Reported = USUAL,
    progress: BatchProgress | None = None,
) -> Evaluation:
    """Score every source alone, the uniform average, what is named, the highest on dev and the chosen merge.

    Sources alone are whole models, their embeddings included, encoded with the template's tokenizer and settings.
    Equal weights are encoded once. The dev split chose the merge, so nothing is tested there.

    Args:
        study: the resolved study.
        store: its records, from which the choice is made and in which the reading is noted.
        split: `test`, `dev` for the very queries that the study searched on, or another split's own name.
        trials: numbers of further trials to score, such as the one that is a paper's fixed choice.
        rivals: models beside the sources that the choice has to beat, by name: anything that a source may be.
        reported: what is shown and tested.
        progress: called with (batches encoded, batches of all models).

    Raises:
        NothingScoredError: no trial has a score yet.
        ResumeError: sources or settings are not those of the recorded study.
        CollectionError: a collection has no such split.
        EvaluationError: a trial that is named has no score.
        SourceError: a rival cannot be opened, or is of another architecture.
    """
    check_unchanged(study, store)
    choice = choose(study, store)
    chosen = store.recipe(choice.number)
    beside = with_rivals(study, rivals)
    recipes = _recipes(study, chosen.prompts)
    recipes |= {f"{name}{RIVAL}": beside.source_alone(name, chosen.prompts) for name in rivals}
    recipes |= {f"trial {number}": _recorded(store, number) for number in trials if number != choice.number}
    if choice.best_number != choice.number:
        recipes[f"{HIGHEST}{choice.best_number})"] = store.recipe(choice.best_number)
    recipes[f"{CHOSEN}{choice.number})"] = chosen
    specs = _specs(study, split)
    spec = replace(beside.unmerged_spec(), collections=specs, racing=None)
    tuned = {} if split == "dev" else recipes  # there λ is tuned anew, as in every trial
    evaluator, shares = open_tuned(study, store, tuned, spec)
    evaluator.pipeline.depth = max(evaluator.pipeline.depth, reported.depth)
    scored, weights = _score(evaluator, recipes, shares, progress)
    collections = [p.source.collection for p in evaluator.pipeline.collections]
    qrels = {c.name: c.qrels for c in collections}
    models = tuple(_model(label, result, qrels, reported) for label, result in scored.items())
    if split == "dev":
        note = "these queries were searched on: the scores are selection scores, not an estimate, and nothing is tested"
        return Evaluation(split, models, (), (note,), reported, _pseudo(specs))
    for label, result in scored.items():
        fingerprint = recipes[label].fingerprint if label in recipes else None
        store.record_test_reading(
            result.collections, subject=label, split=split, command=COMMAND, fingerprint=fingerprint
        )
    others = [m for m in models[:-1] if weights[m.label] != weights[models[-1].label]]
    same = [m.label for m in models[:-1] if m not in others]
    notes = [*told(shares), *overlaps(study, collections), *pools(collections), *readings(store)]
    if same:
        notes.insert(0, f"the chosen merge has the same weights as: {', '.join(same)}")
    notes += [f"queries of {name} are {PSEUDO}: no user asked them, and nobody judged them" for name in _pseudo(specs)]
    return Evaluation(split, models, _tests(models[-1], others, reported), tuple(notes), reported, _pseudo(specs))


def evaluate_folder(
    folder: Path,
    *,
    study: Study | None = None,
    store: StudyStore | None = None,
    beir: Path | None = None,
    split: str = "test",
    reported: Reported = USUAL,
    progress: BatchProgress | None = None,
) -> Evaluation:
    """Score any model folder, on a study's collections with its settings or on a folder in BEIR layout.

    Args:
        folder: a model folder with sentence-transformers files.
        study: its collections and settings are used; `split` is its `dev` or `test`, or a split's own name.
        store: notes the reading of the study's test split.
        beir: a collection folder, instead of a study.
        split: which queries.
        reported: which metrics are shown.
        progress: called with (batches encoded, batches).

    Raises:
        SourceError: the folder holds no model, or does not say how it pools.
        CollectionError: the collection cannot be read.
        EvaluationError: neither a study nor a collection is named, or both are.
    """
    if (study is None) == (beir is None):
        raise EvaluationError("name what to score the folder on: a study or a collection folder")
    gpus = 1
    if study is not None:
        spec = study.evaluator_spec()
        gpus = spec.gpus
        specs, settings = _without_lists(study, _specs(study, split)), spec.evaluation
        if settings.rerank is not None:  # another folder may be of another family, which its files say
            settings = replace(settings, rerank=rerank_settings(study.parsed, None))
        torch.set_num_threads(spec.threads)
    else:
        assert beir is not None
        specs = (CollectionSpec(beir.resolve().name, "beir", {"folder": str(beir.resolve())}, split, Path.cwd()),)
        settings = EvaluationSettings(device="cuda" if torch.cuda.is_available() else "cpu")
    trusted = study is not None and study.parsed.content.merge.template in study.parsed.content.trusted
    model = open_with(settings, folder, trust_remote_code=trusted, gpus=gpus)
    options: dict[str, Any] = {}
    if isinstance(model, Encoder):
        specs = tuple(replace(c, prompts=_of_folder(c, model)) for c in specs)
    elif study is not None and tunes(study) and split != "dev":
        dev = build_pipeline(model, study.collection_specs(), settings)
        options["fusion"] = share_of(dev.evaluate())
    pipeline = build_pipeline(model, specs, settings)
    pipeline.depth = max(pipeline.depth, reported.depth)
    result = pipeline.evaluate(progress, keep_runs=True, **options)
    label = folder.resolve().name
    notes = told({label: share} if (share := options.get("fusion")) is not None else {})
    if store is not None and split != "dev":
        store.record_test_reading(result.collections, subject=label, split=split, command=OF_A_FOLDER)
        notes += readings(store)
    qrels = {p.source.collection.name: p.source.collection.qrels for p in pipeline.collections}
    return Evaluation(split, (_model(label, result, qrels, reported),), (), tuple(notes), reported, _pseudo(specs))


def _specs(study: Study, split: str) -> tuple[CollectionSpec, ...]:
    """The study's dev queries, or the whole of another split: its `test`, or one by its own name."""
    specs = study.collection_specs(test=split != "dev")
    return specs if split in ("dev", "test") else tuple(replace(c, split=split) for c in specs)


def _pseudo(specs: Iterable[CollectionSpec]) -> tuple[str, ...]:
    return tuple(c.name for c in specs if c.pseudo_queries)


def _without_lists(study: Study, specs: tuple[CollectionSpec, ...]) -> tuple[CollectionSpec, ...]:
    """The collections without the prompts that are searched: another model has its own."""
    searched = searched_prompts(study.parsed.content.evaluation)
    return tuple(
        replace(c, choices={}, prompts={k: None if k in searched[c.name] else p for k, p in c.prompts.items()})
        for c in specs
    )


def _of_folder(spec: CollectionSpec, encoder: Encoder) -> dict[str, str | None]:
    """What is put before a collection's texts: what is given, or what the folder's files have for this collection."""
    own = encoder.model.prompts
    return {k: own.get(f"{k}.{spec.name}") if p is None else p for k, p in spec.prompts.items()}


def _score(
    evaluator: TrialEvaluator, recipes: Mapping[str, MergeRecipe], shares: Shares, progress: BatchProgress | None
) -> tuple[dict[str, TrialResult], dict[str, str]]:
    """Results by label, and fingerprints of the weights and prompts; what comes again is not encoded again.

    Of re-rankers the first stage comes first.
    """
    scored: dict[str, TrialResult] = {}
    weights: dict[str, str] = {}
    if isinstance(evaluator.pipeline, RerankEvaluator) and (label := first_stages(evaluator.spec.collections)):
        scored[label], weights[label] = evaluator.pipeline.first_stage(keep_runs=True), FIRST_STAGE
    known: dict[str, TrialResult] = {}
    n_batches = evaluator.pipeline.n_batches

    for i, (label, recipe) in enumerate(recipes.items()):

        def on_batch(done: int, _: int, before: int = i * n_batches) -> None:
            if progress is not None:
                progress(before + done, len(recipes) * n_batches)

        evaluator.merger.apply(recipe)
        weights[label] = f"{evaluator.merger.fingerprint()} {json.dumps(recipe.prompts, sort_keys=True)}"
        if weights[label] not in known:
            known[weights[label]] = evaluator.evaluate(recipe, on_batch, keep_runs=True, fusion=shares.get(label))
        else:
            on_batch(n_batches, n_batches)
        scored[label] = known[weights[label]]
    return scored, weights


def _recipes(study: Study, prompts: Prompts) -> dict[str, MergeRecipe]:
    """What every choice has to be compared with; sources alone with its prompts, too, so that merging gets its share.

    Args:
        study: the resolved study.
        prompts: of the choice.
    """
    recipes = {f"{source} alone": study.source_alone(source) for source in study.folders}
    even = study.uniform_average()
    if even is not None:
        recipes[UNIFORM_AVERAGE] = study.recipe_of(even)
    if prompts != study.prompts_at():
        for source in study.folders:
            recipes[f"{source} with the chosen prompts, alone"] = study.source_alone(source, prompts)
    return recipes


def _recorded(store: StudyStore, number: int) -> MergeRecipe:
    """The recipe of a trial that was scored on all its queries.

    Raises:
        EvaluationError: there is no such trial.
    """
    scored = [t.number for t in scored_trials(store)]
    if number not in scored:
        raise EvaluationError(f"no trial {number} has a score; those that have: {', '.join(map(str, scored))}.")
    return store.recipe(number)


def _model(label: str, result: TrialResult, qrels: Mapping[str, Qrels], reported: Reported) -> ModelScores:
    """With the metrics that are shown, all by ranx."""
    return ModelScores(
        label, result, {c.collection: _by_ranx(c, qrels[c.collection], reported) for c in result.collections}
    )


def _by_ranx(scores: CollectionScores, qrels: Qrels, reported: Reported) -> dict[str, NDArray[np.float64]]:
    assert scores.run is not None  # runs were asked for
    place = {query: i for i, query in enumerate(sorted(qrels))}
    order = [place[query] for query in scores.query_ids]
    found = ranx_per_query(scores.run, qrels, reported.shown(scores.metric))
    return {name: values[order] for name, values in found.items()}


def _tests(winner: ModelScores, others: Sequence[ModelScores], reported: Reported) -> tuple[PairedTest, ...]:
    """The winner against every other model, collection by collection and metric by metric."""
    return tuple(
        test
        for i, own in enumerate(winner.result.collections)
        for metric in reported.tested(own.metric)
        for test in paired_tests(winner.on(i, metric), {o.label: o.on(i, metric) for o in others}, reported.confidence)
    )

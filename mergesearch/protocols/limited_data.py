"""Merging against fine-tuning, with all dev queries and with few of them: CIKM'25's second experiment in one call.

A study is chosen from with all its dev queries and with samples of few. A grid is evaluated once: what it would have
chosen with few queries follows from the scores per query that are recorded, since its points and its pool are fixed.
A strategy that learns is run on each sample as a study of its own. The rival is the template, fine-tuned on the same
queries. Whatever was chosen is then scored on the test split, once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergesearch.errors import MergesearchError, StudyFileError
from mergesearch.listener import Listener
from mergesearch.protocols.lora_rival import Announce, Rival, Rivals, RivalSettings, count_passes
from mergesearch.protocols.samples import HIGHEST, RULES, Samples, chosen, sample, sampled_study, seed_of
from mergesearch.protocols.scoring import HeldOut
from mergesearch.resolving import resolve
from mergesearch.results.recorded import check_unchanged
from mergesearch.session import Workers, open_store, run_study
from mergesearch.storage.store import StudyStore
from mergesearch.study_file import ParsedStudy, storage_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mergesearch.evaluation.result import CollectionScores, TrialResult
    from mergesearch.recipe import MergeRecipe
    from mergesearch.study import Study
    from mergesearch.training.harness import Progress

COMMAND = "protocol limited-data"
ALONE, RIVAL = "alone", "LoRA"
FEWEST = 5
"""Queries of a sample, at least: four of five train the rival."""


@dataclass(frozen=True)
class LimitedData:
    """What is compared.

    Attributes:
        queries: of a sample, from each collection.
        repeats: how many samples.
        rules: how merges are chosen, see `samples.RULES`.
        rival: how the rival is trained.
    """

    queries: int = 50
    repeats: int = 10
    rules: tuple[str, ...] = (HIGHEST,)
    rival: RivalSettings = field(default_factory=RivalSettings)

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            MergesearchError: naming them.
        """
        if self.queries < FEWEST or self.repeats < 2 or not self.rules or not {*self.rules} <= {*RULES}:
            raise MergesearchError(
                f"expected samples of {FEWEST} or more queries, 2 or more of them, and rules among "
                f"{', '.join(RULES)}; found {self.queries}, {self.repeats} and {', '.join(self.rules) or 'none'}"
            )
        self.rival.check()


@dataclass(frozen=True)
class Picked:
    """What was chosen with one sample of the dev queries, or with all.

    Attributes:
        model: who chose it: a study, with its rule where there are several, or the rival.
        number: of the sample, from 1 on; 0 for all dev queries.
        what: a merge's label, or the rival's passes.
        dev: its score on those queries; of the rival on those held out.
    """

    model: str
    number: int
    what: str
    dev: float


@dataclass(frozen=True)
class Outcome:
    """Everything that was scored on the test splits.

    Attributes:
        settings: what was asked for.
        template: the source that was merged into and fine-tuned.
        metric: of all scores.
        dev_queries: of each collection, all together.
        picked: in the order of models and samples.
        scores: by collection and model (the template alone first, then the rival), float64 [1 + repeats, Q]: the
            test scores with all dev queries and with each sample.
        read: how many readings of the test split this took, earlier processes' included.
        pseudo: collections whose test queries are pseudo-queries.
    """

    settings: LimitedData
    template: str
    metric: str
    dev_queries: Mapping[str, int]
    picked: tuple[Picked, ...]
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]
    read: int
    pseudo: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "settings": asdict(self.settings),
            "template": self.template,
            "metric": self.metric,
            "dev_queries": dict(self.dev_queries),
            "picked": [asdict(p) for p in self.picked],
            "test_scores": {c: {m: s.tolist() for m, s in models.items()} for c, models in self.scores.items()},
            "test_readings": self.read,
            "pseudo_queries": list(self.pseudo),
        }


class LimitedDataProtocol:
    """The studies of one comparison, and where it is kept.

    Args:
        parsed: study files with the same template and the same collections; the first names the database.
        work: a folder for samples' studies and for trainings. Whatever is in it of the same comparison is used.
        settings: what is compared.
        storage: the database of the studies themselves; None as `run` has it.

    Raises:
        StudyFileError: a study cannot be used, or they do not belong together.
        MergesearchError: for impossible settings.
    """

    def __init__(
        self, parsed: Sequence[ParsedStudy], work: Path, settings: LimitedData, storage: str | None = None
    ) -> None:
        settings.check()
        self.settings, self.work = settings, work
        self.studies = [resolve(p) for p in parsed]
        self._storage = storage
        self._check()
        self.first = self.studies[0]
        self.template = self.first.parsed.content.merge.template

    def _check(self) -> None:
        problems, first = [], self.studies[0]
        for study in self.studies:
            content, name = study.parsed.content, study.parsed.path.name
            if content.evaluation.rerank is not None:
                problems.append(f"{name}: this comparison is of bi-encoders, which LoRA trains: take `rerank` out")
            if content.search.racing is not None:
                problems.append(f"{name}: `search.racing` leaves trials without scores on some queries: take it out")
            if content.search.start_from is not None:
                problems.append(
                    f"{name}: `search.start_from` brings scores on other queries than a sample's: take it out"
                )
            if study.objectives.several or study.objectives.allowances:
                problems.append(f"{name}: objectives and `may_lose` have no say in this comparison: take them out")
            if any(c.subsample is not None for c in content.evaluation.collections):
                problems.append(f"{name}: `subsample` is what this command gives each sample: take it out")
            for c in study.collections:
                if len(c.query_ids) <= self.settings.queries:
                    found = f"{name}: {c.name} has {len(c.query_ids)} dev queries"
                    problems.append(f"{found}, of which samples of {self.settings.queries} are to be drawn")
            if _comparable(study) != _comparable(first):
                problems.append(f"{name}: template, seed or `evaluation` is not that of {first.parsed.path.name}")
        if len({s.name for s in self.studies}) < len(self.studies):
            problems.append("the studies need different names")
        if problems:
            raise StudyFileError(problems)

    @property
    def numbers(self) -> range:
        """Of all dev queries (0) and of the samples."""
        return range(self.settings.repeats + 1)

    def samples(self, number: int) -> Samples:
        """The dev queries of a sample."""
        return sample(self.first, self.settings.queries, number)

    def storage(self, study: Study, number: int) -> str:
        """The database of a study, or of that on a sample."""
        if number:
            return f"sqlite:///{self.work.resolve() / 'samples.db'}"
        return storage_url(study.parsed.content, self._storage)

    def on_sample(self, study: Study, number: int) -> Study:
        """The study that is run for a sample: the study itself where its points do not depend on scores."""
        if number == 0 or is_fixed(study):
            return study
        return sampled_study(study, self.settings.queries, number)

    def runs(self) -> Iterator[tuple[Study, int]]:
        """Each study with the samples that it is run for."""
        for study in self.studies:
            for number in self.numbers:
                if number == 0 or not is_fixed(study):
                    yield study, number

    def run(self, announce: Announce) -> Outcome:
        """Do what is left to do.

        Args:
            announce: told of everything that begins.

        Raises:
            MergesearchError: something of it cannot be done; what was done is kept.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with closing(Workers()) as workers:
            for study, number in self.runs():
                self._run_study(self.on_sample(study, number), number, workers, announce)
        rivals = Rivals(self.first, self.settings.rival, self.work / "lora")
        trained = {
            n: rivals.train(self.samples(n), seed_of(self.first.parsed, n), self.name_of(RIVAL, n), announce)
            for n in self.numbers
        }
        with StudyStore.open(self.storage(self.first, 0), self.first.name, None, exclusive=False) as store:
            outcome = self._read_test(trained, store, announce)
        text = json.dumps(outcome.to_dict(), indent=2)
        (self.work / "result.json").write_text(text + "\n", encoding="utf-8")
        return outcome

    def name_of(self, model: str, number: int) -> str:
        """A model and the dev queries that it was made with, in words."""
        total = sum(len(c.query_ids) for c in self.samples(number).values())
        return f"{model}, sample {number} of {self.settings.repeats}" if number else f"{model}, all {total} dev queries"

    def _run_study(self, study: Study, number: int, workers: Workers, announce: Announce) -> None:
        with open_store(study, self.storage(study, number)) as store:
            done = sum(t.state.is_finished() for t in store.trials())
            if study.planned_trials is not None and done >= study.planned_trials:
                return
            with announce(f"study {study.name}: {done} trials evaluated before") as progress:
                run_study(study, store, _Trials(done, study.planned_trials, progress), workers=workers)

    def _choices(self) -> Iterator[tuple[Picked, Study, MergeRecipe]]:
        for study in self.studies:
            for number in self.numbers:
                on = self.on_sample(study, number)
                where = self.storage(study, 0 if on is study else number)
                with StudyStore.open(where, on.name, None, exclusive=False) as store:
                    check_unchanged(on, store)
                    for rule in self.settings.rules:
                        model = study.name if len(self.settings.rules) == 1 else f"{study.name}, {rule}"
                        choice = chosen(on, store, rule, self.samples(number) if number and on is study else None)
                        picked = Picked(model, number, choice.label, choice.value)
                        alone = choice.distance == 0 and choice.nearest == self.template
                        recipe = study.source_alone(self.template) if alone else store.recipe(choice.number)
                        yield picked, study, recipe

    def _read_test(self, trained: Mapping[int, Rival], store: StudyStore, announce: Announce) -> Outcome:
        """All that is read was chosen before any of it is."""
        choices = list(self._choices())
        picked = [Picked(RIVAL, n, count_passes(r.passes), r.validation[r.passes]) for n, r in trained.items()]
        picked += [p for p, _, _ in choices]
        names = [f"{self.template} {ALONE}", *dict.fromkeys(p.model for p in picked)]
        rows: dict[str, list[dict[str, CollectionScores]]] = {name: [] for name in names}
        with closing(HeldOut(self.first, store, COMMAND)) as held_out:
            total = 1 + len(trained) + len(choices)
            with announce(f"test: {total} choices, each model read once") as progress:
                alone = held_out.of_merge(self.first, self.first.source_alone(self.template), names[0])
                rows[names[0]] = [alone] * len(self.numbers)
                for n, rival in trained.items():
                    rows[RIVAL].append(held_out.of_adapter(rival.adapter, self.name_of(RIVAL, n)))
                    progress(1 + len(rows[RIVAL]), total)
                for i, (p, study, recipe) in enumerate(choices):
                    rows[p.model].append(held_out.of_merge(study, recipe, f"{study.name}: {p.what}"))
                    progress(2 + len(trained) + i, total)
            read = held_out.read
        collections = [c.name for c in held_out.collections]
        return Outcome(
            settings=self.settings,
            template=self.template,
            metric=self.first.parsed.content.evaluation.metric,
            dev_queries={c.name: len(c.query_ids) for c in self.first.collections},
            picked=tuple(picked),
            scores={c: {m: np.stack([s[c].scores for s in found]) for m, found in rows.items()} for c in collections},
            read=read,
            pseudo=tuple(c.name for c in self.first.collection_specs(test=True) if c.pseudo_queries),
        )


def is_fixed(study: Study) -> bool:
    """Whether a study evaluates the same merges whatever they score, all of them."""
    search = study.parsed.content.search
    return search.strategy.name == "grid" and search.trials is None and search.minutes is None


def _comparable(study: Study) -> str:
    """What studies must have in common."""
    content = study.parsed.content
    relevant = study.score_relevant()
    same = [relevant["evaluation"], study.content_hash(content.merge.template), content.seed]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


class _Trials(Listener):
    """Counts trials."""

    def __init__(self, done: int, total: int | None, progress: Progress) -> None:
        self._done, self._total, self._progress = done, total or 0, progress

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:  # noqa: ARG002
        """One more."""
        self._done += 1
        self._progress(self._done, self._total)

    def reused(self, number: int, label: str, value: float, original: int) -> None:  # noqa: ARG002
        """One more."""
        self._done += 1
        self._progress(self._done, self._total)

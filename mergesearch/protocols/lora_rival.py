"""The rival of segment merging (CIKM'25, section 4.3.2): the retriever fine-tuned with LoRA on the same dev queries.

80% of the queries train it for some passes and the others say after which of them it is best; then it is trained
on all of them for so many passes. An example is a query, a relevant document and some of the query's hard negatives:
the BM25 hits that are not relevant, or what a candidate list has beside the relevant documents.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mergesearch.errors import MergesearchError
from mergesearch.evaluation.collection import Collection
from mergesearch.protocols.samples import Samples
from mergesearch.protocols.scoring import Given, score_adapter
from mergesearch.study import Study
from mergesearch.training.expert import NONE, ExpertSettings, train_expert
from mergesearch.training.harness import Progress

TRAINING_SHARE = 0.8
"""Of the queries; the others choose the number of passes."""
Announce = Callable[[str], AbstractContextManager[Progress]]
"""Says what begins, and gives what is told of its progress."""


@dataclass(frozen=True)
class RivalSettings:
    """How the rival is trained.

    Attributes:
        expert: of every training; `epochs` are the most passes, and batches are smaller where there are fewer examples.
        mined: hard negatives of a query, of which `expert.negatives` are drawn for its examples.
    """

    expert: ExpertSettings = field(
        default_factory=lambda: ExpertSettings(mine=NONE, negatives=7, epochs=5, batch_size=16, learning_rate=1e-4)
    )
    mined: int = 30

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            MergesearchError: naming them.
        """
        self.expert.check()
        if self.expert.adapter is None or self.expert.epochs < 1 or self.expert.negatives > self.mined:
            raise MergesearchError(
                "the rival is an adapter, trained for 1 or more passes with no more negatives than are mined; found "
                f"{self.expert.epochs:g} passes and {self.expert.negatives} of {self.mined} negatives"
            )


@dataclass(frozen=True)
class Rival:
    """A fine-tuned retriever.

    Attributes:
        adapter: its folder.
        queries: that it was trained on.
        examples: of these.
        passes: over them.
        validation: the score on the held-out queries by number of passes.
    """

    adapter: Path
    queries: int
    examples: int
    passes: int
    validation: Mapping[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "adapter": str(self.adapter), "validation": dict(self.validation)}


class Rivals:
    """Trains rivals, each in a folder that is named by what it is trained on and how.

    Args:
        study: the template is what is trained; its dev queries are what there is to train on.
        settings: of every training.
        work: the folder for all of them.
    """

    def __init__(self, study: Study, settings: RivalSettings, work: Path) -> None:
        settings.check()
        self._study, self._settings, self._work = study, settings, work
        self._specs = study.collection_specs()
        prompts = {(s.prompts["query"], s.prompts["document"]) for s in self._specs}
        if len(prompts) > 1:
            raise MergesearchError("the rival is trained with one prompt, and the study's collections have several")
        self._prompts = prompts.pop()
        self._pools: dict[str, Collection] = {}

    def train(self, sample: Samples, seed: int, what: str, announce: Announce) -> Rival:
        """Train on the dev queries of a sample; what an earlier process has done is not done again.

        Args:
            sample: the queries.
            seed: divides them, draws negatives and starts the adapter.
            what: for what is said of it.
            announce: told of what begins.

        Raises:
            MergesearchError: a training cannot be done, or diverged.
        """
        training = {name: [*_part(c, seed)] for name, c in sample.items()}
        every = {name: c.query_ids for name, c in sample.items()}
        given = {"training": self._rows(training, seed), "all": self._rows(every, seed)}
        template = self._study.parsed.content.merge.template
        settings = asdict(self._expert(seed, given["all"], self._settings.expert.epochs))
        asked = [given, every, settings, self._settings.mined, self._study.content_hash(template)]
        folder = self._work / hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        for name, rows in given.items():
            _write(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        record = folder / "validation.json"
        if not record.is_file():
            self._choose_passes(folder, given["training"], sample, training, seed, what, announce)
        validation = {int(n): score for n, score in json.loads(record.read_text(encoding="utf-8")).items()}
        passes = min(validation, key=lambda n: (-validation[n], n))
        if not (folder / "adapter").is_dir():
            with announce(f"{what}: {passes} passes over all {_count(given['all'])}") as progress:
                self._train(folder, "all", self._expert(seed, given["all"], passes), folder / "adapter", progress)
        examples = _examples(given["all"], self._settings.expert.positives)
        return Rival(folder / "adapter", sum(map(len, every.values())), examples, passes, validation)

    def _choose_passes(
        self,
        folder: Path,
        rows: list[dict[str, Any]],
        sample: Samples,
        training: Mapping[str, list[str]],
        seed: int,
        what: str,
        announce: Announce,
    ) -> None:
        """Leaves `validation.json`."""
        most = math.floor(self._settings.expert.epochs)
        with announce(f"{what}: up to {most} passes over {_count(rows)}") as progress:
            settings = self._expert(seed, rows, most)
            self._train(folder, "training", settings, folder / "last-pass", progress, folder / "passes")
        held_out = []
        for spec in self._specs:
            queries = [q for q in sample[spec.name].query_ids if q not in training[spec.name]]
            pool = self._pool(spec.name).with_queries(queries)
            held_out.append(Given.of(spec, pool.with_documents(_listed(pool))))
        scores = {}
        with announce(f"{what}: scoring each pass on the other queries") as progress:
            for number in range(1, most + 1):
                scores[number] = score_adapter(self._study, folder / "passes" / str(number), held_out).value
                progress(number, most)
        _write(folder / "validation.json", json.dumps(scores))
        shutil.rmtree(folder / "passes")
        shutil.rmtree(folder / "last-pass")

    def _train(
        self,
        folder: Path,
        name: str,
        settings: ExpertSettings,
        out: Path,
        progress: Progress,
        passes: Path | None = None,
    ) -> None:
        evaluator = self._study.evaluator_spec()
        model = str(self._study.folders[self._study.parsed.content.merge.template])
        device = evaluator.evaluation.device
        train_expert(model, [folder / f"{name}.jsonl"], out, settings, device=device, progress=progress, passes=passes)

    def _expert(self, seed: int, rows: list[dict[str, Any]], epochs: float) -> ExpertSettings:
        """The settings with the study's prompts, and batches no larger than what there is."""
        expert = self._settings.expert
        evaluation = self._study.parsed.content.evaluation
        query, document = self._prompts
        return replace(
            expert,
            mine=NONE,
            seed=seed,
            epochs=epochs,
            batch_size=min(expert.batch_size, _examples(rows, expert.positives)),
            max_length=expert.max_length or evaluation.max_length.document,
            query_prompt=query if expert.query_prompt is None else expert.query_prompt,
            document_prompt=document if expert.document_prompt is None else expert.document_prompt,
        )

    def _rows(self, queries: Mapping[str, list[str]], seed: int) -> list[dict[str, Any]]:
        """What `train_expert` reads: each query with its relevant documents and its negatives in a drawn order."""
        rows = []
        for name, ids in queries.items():
            pool = self._pool(name)
            texts = dict(zip(pool.doc_ids, pool.doc_texts, strict=True))
            query_texts = dict(zip(pool.query_ids, pool.query_texts, strict=True))
            for query in ids:
                grades, lists = pool.qrels[query], pool.pooled or pool.candidates or {}
                negatives = [d for d in lists.get(query, ()) if grades.get(d, 0) == 0][: self._settings.mined]
                random.Random(f"{seed} {query}").shuffle(negatives)  # noqa: S311 - sampling, no secret
                relevant = [texts[d] for d in sorted(grades) if grades[d] > 0]
                rows.append({"query": query_texts[query], "pos": relevant, "neg": [texts[d] for d in negatives]})
        return rows

    def _pool(self, name: str) -> Collection:
        """Every dev query with its judged documents and hard negatives: the study's pool where that is the same."""
        if name not in self._pools:
            (spec,) = (s for s in self._specs if s.name == name)
            (own,) = (c for c in self._study.collections if c.name == name)
            as_given = own.candidates is not None or spec.pool_negatives == self._settings.mined
            self._pools[name] = own if as_given else replace(spec, pool_negatives=self._settings.mined).load()
        return self._pools[name]


def _part(collection: Collection, seed: int) -> Iterator[str]:
    """The queries to train on."""
    n = round(TRAINING_SHARE * len(collection.query_ids))
    if not 0 < n < len(collection.query_ids):
        raise MergesearchError(f"{len(collection.query_ids)} queries of {collection.name!r} cannot be divided 80:20")
    yield from collection.sample_queries(n, seed).query_ids


def _listed(pool: Collection) -> Iterable[str]:
    """The documents that a pool's queries brought in."""
    lists = pool.pooled or pool.candidates or {}
    return {d for listed in lists.values() for d in listed} | {d for grades in pool.qrels.values() for d in grades}


def _examples(rows: list[dict[str, Any]], positives: int) -> int:
    """How many examples `train_expert` makes of rows: those of equal queries are one query's."""
    relevant: dict[str, set[str]] = {}
    for row in rows:
        relevant.setdefault(row["query"], set()).update(row["pos"])
    return sum(min(positives, len(found)) for found in relevant.values())


def count_passes(n: int) -> str:
    """In words."""
    return "1 pass" if n == 1 else f"{n} passes"


def _count(rows: list[dict[str, Any]]) -> str:
    return f"{len(rows)} queries"


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.rename(file)

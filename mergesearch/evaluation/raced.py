"""`RacedEvaluator`: a trial scored in looks, and stopped after one when it cannot win."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mergesearch.evaluation.account import Account, Progress
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.looks import LookPlan, needed_documents, order_queries, plan_looks
from mergesearch.evaluation.pipeline import PreparedCollection, RetrievalEvaluator
from mergesearch.evaluation.racing import RacingSettings, Rival, Verdict
from mergesearch.evaluation.result import CollectionScores, Look, TrialResult
from mergesearch.evaluation.search import TopK
from mergesearch.evaluation.taking import looked_scores, standing, take_looks
from mergesearch.evaluation.tokens import TokenPlan, plan_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mergesearch.evaluation.encoder import Encoder
    from mergesearch.evaluation.kept import Keeper
    from mergesearch.evaluation.pipeline import WeightedCollection


@dataclass(frozen=True)
class PreparedLook:
    """What one look takes of one collection.

    Attributes:
        queries: plan with the batches of the look's queries only.
        documents: the same for its documents.
        tokens: useful tokens of both.
        positions: the look's queries among the judged ones, int64, ascending.
        judgements: of these queries.
        exclude: see `PreparedCollection`, of these queries.
        candidates: the same.
    """

    queries: TokenPlan
    documents: TokenPlan
    tokens: int
    positions: NDArray[np.int64]
    judgements: Judgements
    exclude: NDArray[np.int64] | None
    candidates: list[NDArray[np.int64]] | None


@dataclass(frozen=True)
class LookedCollection(PreparedCollection):
    """A collection and the looks at it. Its own plans hold the batches of all looks, one after the other."""

    plan: LookPlan
    looks: tuple[PreparedLook, ...]


class RacedEvaluator(RetrievalEvaluator):
    """Like `RetrievalEvaluator`, in looks.

    Batches hold texts of one look, so embeddings may differ in their last bits from those of an evaluator without
    looks; every trial of a study is evaluated with the same plan, raced or not. The embeddings of documents that are
    encoded before the last look stay in memory until the trial ends.

    Args:
        encoder: as for `RetrievalEvaluator`.
        collections: the same.
        racing: the looks, and when a trial is stopped.
        options: further arguments of `RetrievalEvaluator`.
    """

    def __init__(
        self, encoder: Encoder, collections: Sequence[WeightedCollection], *, racing: RacingSettings, **options: Any
    ) -> None:
        self.racing = racing
        super().__init__(encoder, collections, **options)

    def evaluate(
        self,
        progress: Progress | None = None,
        *,
        keep_runs: bool = False,
        keeper: Keeper | None = None,
        rivals: Sequence[Rival] = (),
    ) -> TrialResult:
        """Score every collection in looks, under the current weights.

        Args:
            progress: called after every batch.
            keep_runs: keep the best `depth` documents per query in the result.
            keeper: given the embeddings as they come.
            rivals: the trials that this one has to beat, best first; none for a trial that is not to be stopped.

        Raises:
            EvaluationError: embeddings are NaN or infinite.
            MemoryFullError: one text alone does not fit into memory.
        """
        account = Account(self.encoder, self.n_batches, progress)
        races = [_Race(self, i, looked, account, keeper) for i, looked in enumerate(self._looked())]
        shares = [race.looked.source.weight for race in races]

        def look(number: int) -> tuple[Look, list[NDArray[np.float64]]]:
            for race in races:
                race.look(number)
            scores = [race.scores[-1] for race in races]
            approximate = any(race.looked.plan.approximate[number] for race in races)
            return standing(scores, shares, sum(race.tokens for race in races), approximate=approximate), scores

        looks, verdict = take_looks(look, rivals, shares=shares, settings=self.racing)
        scores = tuple(race.result(keep_runs=keep_runs, keep_looks=verdict is None) for race in races)
        return account.result(scores, looks[-1].tokens, looks=looks, **Verdict.fields(verdict))

    def new_search(self, collection: PreparedCollection, look: PreparedLook, queries: Tensor) -> TopK:
        """The search for a look's queries, to which documents are added."""
        return TopK(
            queries,
            collection.source.collection.doc_ids,
            self.depth,
            backend=self._backend,
            exclude=look.exclude,
            candidates=look.candidates,
            by_id=collection.by_id,
        )

    def _looked(self) -> Iterator[LookedCollection]:
        for prepared in self.collections:
            assert isinstance(prepared, LookedCollection)
            yield prepared

    def _prepare(self, i: int, source: WeightedCollection) -> PreparedCollection:
        whole, looks = super()._prepare(i, source), self.racing.looks
        collection, query_ids = source.collection, whole.judgements.query_ids
        needs = needed_documents(collection, query_ids, looks.hits, looks.seed)
        order = order_queries(query_ids, looks.seed)
        listed = whole.candidates is not None
        return self._cut(whole, plan_looks(needs, whole.document_rows, order, looks.shares, listed=listed))

    def _replanned(self, prepared: PreparedCollection, queries: TokenPlan, documents: TokenPlan) -> PreparedCollection:
        assert isinstance(prepared, LookedCollection)
        return self._cut(replace(prepared, queries=queries, documents=documents), prepared.plan)

    def _cut(self, whole: PreparedCollection, plan: LookPlan) -> LookedCollection:
        """Its plans cut into looks."""
        collection, query_ids = whole.source.collection, whole.judgements.query_ids
        place_of_row = {row: place for place, row in enumerate(whole.document_rows.tolist())}
        places = [np.array([place_of_row[row] for row in rows.tolist()], dtype=np.int64) for rows in plan.documents]
        queries = [self._of_texts(whole.queries, positions) for positions in plan.queries]
        documents = [self._of_texts(whole.documents, texts) for texts in places]
        prepared = tuple(
            PreparedLook(
                queries=queries[i],
                documents=documents[i],
                tokens=int(whole.queries.lengths[positions].sum() + whole.documents.lengths[places[i]].sum()),
                positions=positions,
                judgements=Judgements.prepare([query_ids[p] for p in positions], collection.doc_ids, collection.qrels),
                exclude=None if whole.exclude is None else whole.exclude[positions],
                candidates=None if whole.candidates is None else [whole.candidates[p] for p in positions],
            )
            for i, positions in enumerate(plan.queries)
        )
        in_turn = {"queries": _in_turn(whole.queries, queries), "documents": _in_turn(whole.documents, documents)}
        return LookedCollection(**{**vars(whole), **in_turn, "plan": plan, "looks": prepared})

    def _of_texts(self, plan: TokenPlan, texts: NDArray[np.int64]) -> TokenPlan:
        """The plan with batches of some of its texts only."""
        batches = plan_batches(plan.lengths[texts], self._batch_tokens)
        return replace(plan, batches=tuple(texts[batch] for batch in batches))


class _Race:
    """One trial on one collection.

    Attributes:
        scores: after every look so far, float64 [Q]; NaN for queries not looked at.
        tokens: encoded so far.
    """

    def __init__(
        self,
        evaluator: RacedEvaluator,
        index: int,
        looked: LookedCollection,
        account: Account,
        keeper: Keeper | None,
    ) -> None:
        self._evaluator, self._clock, self._on_batch = evaluator, account.clock, account.on_batch
        self._index, self._keeper = index, keeper
        self.looked = looked
        self.scores: list[NDArray[np.float64]] = []
        self.tokens = 0
        self._searches: list[tuple[PreparedLook, TopK]] = []
        self._kept: list[tuple[NDArray[np.int64], Tensor]] = []

    def look(self, number: int) -> None:
        """Encode what the look takes, search, score."""
        look = self.looked.looks[number]
        self.tokens += look.tokens
        self._ask(look)
        self._take_documents(look, keep=number + 1 < len(self.looked.looks))
        scores = np.full(len(self.looked.judgements.query_ids), np.nan)
        with self._clock.phase("search"):
            rankings = [search.result() for _, search in self._searches]
        with self._clock.phase("score"):
            for (group, _), ranking in zip(self._searches, rankings, strict=True):
                gains = group.judgements.gains(ranking.rows)
                scores[group.positions] = self._evaluator.metric.score(gains, group.judgements)
        self.scores.append(scores)

    def result(self, *, keep_runs: bool, keep_looks: bool) -> CollectionScores:
        """Scores after the last look that was taken, of the queries that were looked at."""
        whole = self.looked
        run: dict[str, Sequence[tuple[str, float]]] | None = {} if keep_runs else None
        if run is not None:
            for group, search in self._searches:
                run |= search.result().to_run(group.judgements.query_ids, whole.source.collection.doc_ids)
        query_ids, metric = whole.judgements.query_ids, self._evaluator.metric.name
        return looked_scores(whole.source, metric, query_ids, self.scores, run, keep_looks=keep_looks)

    def _ask(self, look: PreparedLook) -> None:
        """Encode the look's queries and let them search the documents that are there."""
        if not len(look.positions):
            return
        evaluator = self._evaluator
        with self._clock.phase("encode"):
            (chunk,) = evaluator.encoder.chunks(look.queries, look.queries.n_texts, self._on_batch)
            queries = evaluator._comparable(chunk[1])[np.argsort(chunk[0])]
        if self._keeper is not None:
            self._keeper.add_queries(self._index, look.positions, queries)
        with self._clock.phase("search"):
            search = evaluator.new_search(self.looked, look, queries)
            for rows, documents in self._kept:
                search.add(rows, documents)
                if self._keeper is not None:
                    self._keeper.add_documents(self._index, rows, documents, [search])
        self._searches.append((look, search))

    def _take_documents(self, look: PreparedLook, *, keep: bool) -> None:
        """Encode the look's documents and show them to every query so far; later looks' queries need them again."""
        evaluator, whole = self._evaluator, self.looked
        chunks = evaluator.encoder.chunks(look.documents, evaluator._chunk_documents, self._on_batch)
        while True:
            with self._clock.phase("encode"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            rows, documents = whole.document_rows[chunk[0]], evaluator._comparable(chunk[1])
            with self._clock.phase("search"):
                for _, search in self._searches:
                    search.add(rows, documents)
            if self._keeper is not None:
                self._keeper.add_documents(self._index, rows, documents, [search for _, search in self._searches])
            if keep:
                self._kept.append((rows, documents))


def _in_turn(plan: TokenPlan, parts: Sequence[TokenPlan]) -> TokenPlan:
    """The plan with the batches of its parts, one part after the other."""
    return replace(plan, batches=tuple(batch for part in parts for batch in part.batches))

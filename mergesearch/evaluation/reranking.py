"""`RerankEvaluator`: the current weights of a re-ranker, scored on every dev collection behind a first stage.

All pairs of a query and a candidate are scored; their scores and the first stage's make one ranking (`fusion`). The
share of the re-ranker in it may be tuned: all shares are tried on scores that are there, and the one that gives the
trial its best value is taken for all collections (SIGIR'25, section 4). On queries that chose it such a value is
optimistic, as every tuned one is, so test splits are scored with the share of dev.

Notation: Q judged queries, K candidates of a query at most, P pairs, L shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.account import Account, Progress
from mergesearch.evaluation.fusion import SHARES, best_share
from mergesearch.evaluation.kept import PairKeeper
from mergesearch.evaluation.looks import divide_queries, order_queries
from mergesearch.evaluation.metrics import parse_metric
from mergesearch.evaluation.prepared_pairs import PairLook, PreparedPairs, prepare_pairs
from mergesearch.evaluation.racing import RacingSettings, Rival, Verdict
from mergesearch.evaluation.result import CollectionScores, Look, TrialResult
from mergesearch.evaluation.taking import looked_scores, standing, take_looks
from mergesearch.evaluation.tokens import BATCH_TOKENS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from mergesearch.evaluation.candidates import Candidates
    from mergesearch.evaluation.pipeline import WeightedCollection
    from mergesearch.evaluation.rerank_settings import Fusion
    from mergesearch.evaluation.reranker import Reranker

_NO_PROMPTS = "a re-ranker takes no prompts; its template says what stands around a query and a document."


class RerankEvaluator:
    """Scores the weights that the re-ranker holds at the moment.

    Pairs are tokenised and batches are planned in the constructor. Not safe for use from several threads.

    Args:
        reranker: its weights may change between calls of `evaluate`; its tokenizer and settings may not.
        collections: at least one.
        candidates: of each collection, see `find_candidates`.
        metric: for example `ndcg@10`.
        fusion: share λ of the re-ranker, or `tuned`; collections whose candidates have no scores go by the re-ranker
            alone.
        depth: documents kept per query, for runs that are kept; at least the metric's, which is the default.
        batch_tokens: most padded tokens per batch.
        store: folder for the token ids of corpora that outgrow memory; None keeps them in memory.

    Raises:
        EvaluationError: the metric is unknown, a collection has no judged queries, or it has prompts, which a re-ranker
            takes none of.
    """

    def __init__(
        self,
        reranker: Reranker,
        collections: Sequence[WeightedCollection],
        candidates: Sequence[Candidates],
        *,
        metric: str = "ndcg@10",
        fusion: Fusion = "tuned",
        depth: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        store: Path | None = None,
    ) -> None:
        self.reranker = reranker
        self.metric = parse_metric(metric)
        self.fusion = fusion
        self.depth = max(depth or 0, self.metric.depth)
        self._batch_tokens = batch_tokens
        self._store = store
        self.collections = tuple(self._prepare(c, found) for c, found in zip(collections, candidates, strict=True))
        if not self.collections:
            raise EvaluationError("there is no collection to evaluate on.")

    @property
    def n_tokens(self) -> int:
        """Useful tokens of one trial."""
        return sum(prepared.plan.n_tokens for prepared in self.collections)

    @property
    def n_padded_tokens(self) -> int:
        """Tokens of one trial, padding counted."""
        return sum(prepared.plan.n_padded_tokens for prepared in self.collections)

    @property
    def n_batches(self) -> int:
        """Batches of one trial."""
        return sum(len(prepared.plan.batches) for prepared in self.collections)

    @property
    def n_pairs(self) -> int:
        """Pairs of one trial."""
        return sum(prepared.plan.n_texts for prepared in self.collections)

    def use_prompts(self, prompts: Mapping[str, Mapping[str, str]]) -> None:
        """Nothing: a re-ranker has templates instead, which are the study's.

        Raises:
            EvaluationError: there are prompts.
        """
        if any(prompts.values()):
            raise EvaluationError(_NO_PROMPTS)

    def new_keeper(self) -> PairKeeper:
        """Collects the logits of a trial that it is given to."""
        return PairKeeper(self.collections)

    def evaluate(
        self,
        progress: Progress | None = None,
        *,
        keep_runs: bool = False,
        keeper: PairKeeper | None = None,
        fusion: Fusion | None = None,
    ) -> TrialResult:
        """Score the pairs of every collection under the current weights, fuse, rank and score the rankings.

        Args:
            progress: called after every batch.
            keep_runs: keep the best `depth` documents per query in the result, with fused scores.
            keeper: given the logits as they come.
            fusion: instead of the evaluator's own.

        Returns:
            Scores, the share that they were fused with, and seconds of `encode` (forward passes), `search` (fusion) and
            `score`; `merge` and `worker` are the caller's.

        Raises:
            EvaluationError: logits are NaN or infinite.
            MemoryFullError: one pair alone does not fit into memory.
        """
        account = Account(self.reranker, self.n_batches, progress)
        trial = RerankTrial(self, account, keeper, fusion)
        trial.look(0)
        return account.result(trial.scores(keep_runs=keep_runs), self.n_tokens, fusion=trial.fusion)

    def first_stage(self, *, keep_runs: bool = False) -> TrialResult:
        """Score the first stage alone; the model is not run.

        Raises:
            EvaluationError: a collection's candidates have no scores, so that there is no ranking.
        """
        for prepared in self.collections:
            if prepared.candidates.scores is None:
                name = prepared.source.collection.name
                raise EvaluationError(
                    f"the candidates of collection {name!r} come without scores, so the first stage alone ranks "
                    "nothing. One such as bm25 would."
                )
        account = Account(self.reranker, 0, None)
        trial = RerankTrial(self, account, None, 0.0)
        trial.first_stage()
        return account.result(trial.scores(keep_runs=keep_runs), 0, fusion=0.0)

    def _prepare(self, source: WeightedCollection, candidates: Candidates) -> PreparedPairs:
        collection, query_ids = source.collection, source.collection.judged
        if not query_ids:
            raise EvaluationError(f"collection {collection.name!r} has no judged queries.")
        if any(text is not None for text in source.prompts.values()) or source.choices:
            raise EvaluationError(f"collection {collection.name!r}: {_NO_PROMPTS}")
        pairs = np.argwhere(candidates.rows >= 0)
        documents, document_of_pair = np.unique(candidates.rows[tuple(pairs.T)], return_inverse=True)
        texts = dict(zip(collection.query_ids, collection.query_texts, strict=True))
        plan = self.reranker.plan_pairs(
            [texts[query_id] for query_id in query_ids],
            [collection.doc_texts[row] for row in documents],
            np.stack([pairs[:, 0], document_of_pair], axis=1),
            batch_tokens=self._batch_tokens,
            store=self._store,
        )
        return prepare_pairs(source, candidates, plan, self._divided(query_ids), self._batch_tokens)

    def _divided(self, query_ids: Sequence[str]) -> Sequence[NDArray[np.int64]]:
        """Positions of the queries of each look: of one."""
        return [np.arange(len(query_ids), dtype=np.int64)]


class RacedRerankEvaluator(RerankEvaluator):
    """Like `RerankEvaluator`, in looks: a query's pairs are looked at together, so no look is approximate.

    A share that is tuned is tuned on the queries so far. Batches hold pairs of one look, see `RacedEvaluator`.

    Args:
        reranker: as for `RerankEvaluator`.
        collections: the same.
        candidates: the same.
        racing: the looks, and when a trial is stopped.
        options: further arguments of `RerankEvaluator`.
    """

    def __init__(
        self,
        reranker: Reranker,
        collections: Sequence[WeightedCollection],
        candidates: Sequence[Candidates],
        *,
        racing: RacingSettings,
        **options: Any,
    ) -> None:
        self.racing = racing
        super().__init__(reranker, collections, candidates, **options)

    def evaluate(
        self,
        progress: Progress | None = None,
        *,
        keep_runs: bool = False,
        keeper: PairKeeper | None = None,
        fusion: Fusion | None = None,
        rivals: Sequence[Rival] = (),
    ) -> TrialResult:
        """See the base class; `rivals` are the trials that this one has to beat, best first, or it is stopped."""
        account = Account(self.reranker, self.n_batches, progress)
        trial = RerankTrial(self, account, keeper, fusion)
        weights = [prepared.source.weight for prepared in self.collections]

        def look(number: int) -> tuple[Look, list[NDArray[np.float64]]]:
            trial.look(number)
            return standing(trial.history[-1], weights, trial.tokens), trial.history[-1]

        looks, verdict = take_looks(look, rivals, shares=weights, settings=self.racing)
        scores = trial.scores(keep_runs=keep_runs, keep_looks=verdict is None)
        fields = {"fusion": trial.fusion, "looks": looks, **Verdict.fields(verdict)}
        return account.result(scores, trial.tokens, **fields)

    def _divided(self, query_ids: Sequence[str]) -> Sequence[NDArray[np.int64]]:
        looks = self.racing.looks
        return divide_queries(order_queries(query_ids, looks.seed), looks.shares)


class RerankTrial:
    """One trial, look by look.

    What a query scores does not depend on other queries, so every look adds its queries' scores with all shares. Only
    the share that is taken may change with a look, and the scores of earlier queries with it.

    Attributes:
        history: after every look so far, per collection the scores with the share that was best then, float64 [Q]; NaN
            for queries not looked at.
        tokens: useful tokens of the pairs scored so far.
    """

    def __init__(
        self, evaluator: RerankEvaluator, account: Account, keeper: PairKeeper | None, fusion: Fusion | None
    ) -> None:
        self._evaluator, self._account, self._keeper = evaluator, account, keeper
        fusion = evaluator.fusion if fusion is None else fusion
        self._shares = SHARES if fusion == "tuned" else (float(fusion),)
        self._reranked = [np.zeros(prepared.places.shape) for prepared in evaluator.collections]
        self._tables = [np.full((len(self._shares), len(table)), np.nan) for table in self._reranked]
        self._best = 0
        self.history: list[list[NDArray[np.float64]]] = []
        self.tokens = 0

    def look(self, number: int) -> None:
        """Score the pairs of a look, fuse, rank and score the rankings."""
        reranker, clock = self._evaluator.reranker, self._account.clock
        for i, prepared in enumerate(self._evaluator.collections):
            look = prepared.looks[number]
            with clock.phase("encode"):
                logits = reranker.logits(look.plan, self._account.on_batch).cpu()[torch.from_numpy(look.pairs)]
            self.tokens += int(look.plan.lengths[look.pairs].sum())
            _check_finite(logits, prepared.source.collection.name)
            if self._keeper is not None:
                self._keeper.add(i, look.pairs, logits)
            with clock.phase("search"):
                scores = np.zeros(prepared.plan.n_texts)
                scores[look.pairs] = reranker.activated(logits).numpy()
                self._reranked[i][look.positions] = prepared.table(scores)[look.positions]
            self._rank(i, look)
        self._settle()

    def first_stage(self) -> None:
        """Rank all queries by the first stage alone."""
        for i, prepared in enumerate(self._evaluator.collections):
            for look in prepared.looks:
                self._rank(i, look)
        self._settle()

    @property
    def fusion(self) -> float | None:
        """The share that is taken; None where nothing is fused."""
        fuses = any(prepared.candidates.scores is not None for prepared in self._evaluator.collections)
        return self._shares[self._best] if fuses else None

    def scores(self, *, keep_runs: bool, keep_looks: bool = False) -> tuple[CollectionScores, ...]:
        """Scores of the queries looked at, with the share that is taken; see `looked_scores`."""
        metric, found = self._evaluator.metric.name, []
        for i, prepared in enumerate(self._evaluator.collections):
            history = [scores[i] for scores in self.history]
            run = self._run(i, prepared) if keep_runs else None
            query_ids = prepared.judgements.query_ids
            found.append(looked_scores(prepared.source, metric, query_ids, history, run, keep_looks=keep_looks))
        return tuple(found)

    def _rank(self, i: int, look: PairLook) -> None:
        """Scores of a look's queries with every share."""
        prepared, clock, metric = self._evaluator.collections[i], self._account.clock, self._evaluator.metric
        table = self._tables[i]
        for number, share in enumerate(self._shares):
            if number and prepared.candidates.scores is None:  # every share gives the same
                table[number, look.positions] = table[0, look.positions]
                continue
            with clock.phase("search"):
                _, columns = prepared.fused(self._reranked[i], share, look.positions)
            with clock.phase("score"):
                gains = np.take_along_axis(prepared.gains[look.positions], columns[:, : metric.depth], axis=1)
                table[number, look.positions] = metric.score(gains, look.judgements)

    def _settle(self) -> None:
        """Take the share with the highest value over the queries so far, the smallest of equals."""
        weights = [prepared.source.weight for prepared in self._evaluator.collections]
        known = [table[:, ~np.isnan(table[0])] for table in self._tables]
        self._best = int(best_share(known, weights))
        self.history.append([table[self._best].copy() for table in self._tables])

    def _run(self, i: int, prepared: PreparedPairs) -> dict[str, tuple[tuple[str, float], ...]]:
        """Query id to (document id, fused score), best first, of the queries looked at."""
        collection, depth = prepared.source.collection, self._evaluator.depth
        queries = np.flatnonzero(~np.isnan(self.history[-1][i]))
        scores, columns = prepared.fused(self._reranked[i], self._shares[self._best], queries)
        run = {}
        for query, values, best in zip(queries.tolist(), scores, columns[:, :depth], strict=True):
            rows = prepared.candidates.rows[query]
            ranked = [(collection.doc_ids[rows[c]], float(values[c])) for c in best if rows[c] >= 0]
            run[prepared.judgements.query_ids[query]] = tuple(ranked)
        return run


def _check_finite(logits: Tensor, collection: str) -> None:
    broken = int((~torch.isfinite(logits)).sum())
    if broken:
        raise EvaluationError(
            f"{broken:,} of {len(logits):,} pairs of collection {collection!r} have a logit that is NaN or infinite, "
            "so the merge cannot be scored. Its weights are too large for the arithmetic: smaller coefficients or "
            "float32 help."
        )

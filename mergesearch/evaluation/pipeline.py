"""`RetrievalEvaluator`: the current weights of an encoder, scored on every dev collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.account import Account, Progress
from mergesearch.evaluation.backends import get_backend
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.kept import Keeper
from mergesearch.evaluation.metrics import parse_metric
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.evaluation.search import Ranking, TopK, order_by_id, own_documents
from mergesearch.evaluation.settings import KINDS, Kind
from mergesearch.evaluation.tokens import BATCH_TOKENS, TokenPlan

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mergesearch.evaluation.collection import Collection
    from mergesearch.evaluation.encoder import Encoder

CHUNK_DOCUMENTS = 16_384
"""Embeddings held at a time: 25 MB at 384 dimensions, 268 MB at 4,096."""


@dataclass(frozen=True)
class WeightedCollection:
    """A collection and its part in a trial's value.

    Attributes:
        collection: queries, documents and judgements.
        weight: its share; shares are normalised over collections.
        query_prompt: put before queries; None for the template's own prompt, empty for none.
        document_prompt: the same for documents.
        choices: by kind further prompts, see `RetrievalEvaluator.use_prompts`, that are tokenised beforehand.
    """

    collection: Collection
    weight: float = 1.0
    query_prompt: str | None = None
    document_prompt: str | None = None
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def prompts(self) -> dict[str, str | None]:
        """What is put before texts where nothing else is asked for, by kind."""
        return {"query": self.query_prompt, "document": self.document_prompt}


@dataclass(frozen=True)
class PreparedCollection:
    """What is worked out once per collection and used by every trial.

    Attributes:
        source: the collection and its weight.
        queries: plan of the judged queries, in `judgements.query_ids` order.
        documents: plan of the documents that can be retrieved.
        document_rows: corpus position of each planned document, int64.
        judgements: gains by corpus position.
        exclude: corpus position of the document that is the query itself, -1 for none; None when allowed.
        candidates: the corpus positions each query is limited to; None for the whole corpus.
        by_id: corpus positions in the order of document ids.
    """

    source: WeightedCollection
    queries: TokenPlan
    documents: TokenPlan
    document_rows: NDArray[np.int64]
    judgements: Judgements
    exclude: NDArray[np.int64] | None
    candidates: list[NDArray[np.int64]] | None
    by_id: NDArray[np.int64]


class RetrievalEvaluator:
    """Scores the weights that the encoder holds at the moment.

    Text is tokenised and batches are planned in the constructor. Not safe for use from several threads.

    Args:
        encoder: its weights may change between calls of `evaluate`; its tokenizer and settings may not.
        collections: at least one.
        metric: for example `ndcg@10`.
        depth: documents kept per query, for runs that are kept; at least the metric's, which is the default.
        batch_tokens: most padded tokens per batch.
        backend: exact search backend.
        max_query_length: tokens per query, instead of the template's.
        max_document_length: tokens per document, instead of the template's.
        chunk_documents: document embeddings held at a time; scores do not depend on it.
        store: folder for the token ids of corpora that outgrow memory; None keeps them in memory.

    Raises:
        EvaluationError: the metric or the backend is unknown, the template cannot encode as asked, or a
            collection has no judged queries.
    """

    def __init__(
        self,
        encoder: Encoder,
        collections: Sequence[WeightedCollection],
        *,
        metric: str = "ndcg@10",
        depth: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        backend: str = "torch",
        max_query_length: int | None = None,
        max_document_length: int | None = None,
        chunk_documents: int = CHUNK_DOCUMENTS,
        store: Path | None = None,
    ) -> None:
        self.encoder = encoder
        self.metric = parse_metric(metric)
        self.depth = max(depth or 0, self.metric.depth)
        get_backend(backend)  # Raises now rather than in the first trial.
        self._backend = backend
        self._chunk_documents = chunk_documents
        self._batch_tokens = batch_tokens
        self._lengths = (max_query_length, max_document_length)
        self._store = store
        self._planned: dict[tuple[int, Kind, str | None], TokenPlan] = {}
        self._given = tuple(self._prepare(i, source) for i, source in enumerate(collections))
        if not self._given:
            raise EvaluationError("there is no collection to evaluate on.")
        self._prompted: dict[tuple[int, tuple[str | None, ...]], PreparedCollection] = {}
        self.collections = self._given
        for i, prepared in enumerate(self._given):
            for kind in KINDS:
                for prompt in prepared.source.choices.get(kind, ()):  # one that cannot be used is to be known now
                    self._plan(i, prepared.source, kind, prompt, prepared.judgements.query_ids, prepared.document_rows)
        self._store = None  # its folder may be gone by now: what is planned later stays in memory

    @property
    def n_tokens(self) -> int:
        """Useful tokens per trial."""
        return sum(plan.n_tokens for plan in self._plans())

    @property
    def n_padded_tokens(self) -> int:
        """Tokens per trial, padding counted."""
        return sum(plan.n_padded_tokens for plan in self._plans())

    @property
    def n_batches(self) -> int:
        """Batches per trial."""
        return sum(len(plan.batches) for plan in self._plans())

    def use_prompts(self, prompts: Mapping[str, Mapping[str, str]]) -> None:
        """Put these prompts before texts from now on.

        Texts behind a prompt that was not used before are tokenised; documents stay as they are planned while only the
        queries' prompts change.

        Args:
            prompts: by collection and kind; collections and kinds that are not named have their own.

        Raises:
            EvaluationError: a text has no tokens, or does not end as the model's pooling needs.
        """
        self.collections = tuple(
            self._with_prompts(i, {**given.source.prompts, **prompts.get(given.source.collection.name, {})})
            for i, given in enumerate(self._given)
        )

    def evaluate(
        self, progress: Progress | None = None, *, keep_runs: bool = False, keeper: Keeper | None = None
    ) -> TrialResult:
        """Encode, search and score every collection under the current weights.

        Args:
            progress: called after every batch.
            keep_runs: keep the best `depth` documents per query in the result.
            keeper: given the embeddings as they come.

        Returns:
            Scores, and seconds of `encode`, `search` and `score`; `merge` and `worker` are the caller's.

        Raises:
            EvaluationError: embeddings are NaN or infinite.
            MemoryFullError: one text alone does not fit into memory.
        """
        account = Account(self.encoder, self.n_batches, progress)
        scores = tuple(self._score(i, account, keep_runs, keeper) for i in range(len(self.collections)))
        return account.result(scores, self.n_tokens)

    def new_keeper(self) -> Keeper:
        """Collects the embeddings of a trial that it is given to."""
        return Keeper(self.collections)

    def embed(self, i: int, rows: NDArray[np.int64]) -> Tensor:
        """Embeddings of some documents of collection `i`, by corpus position, as they are compared, fp32 [N, E]."""
        prepared = self.collections[i]
        plan = prepared.documents.subset(np.searchsorted(prepared.document_rows, rows), self._batch_tokens)
        return self._comparable(self.encoder.encode(plan))

    def _score(self, i: int, account: Account, keep_runs: bool, keeper: Keeper | None) -> CollectionScores:
        prepared = self.collections[i]
        ranking = self._rank(i, account, keeper)
        judgements, collection = prepared.judgements, prepared.source.collection
        with account.clock.phase("score"):
            scores = self.metric.score(judgements.gains(ranking.rows), judgements)
            run = ranking.to_run(judgements.query_ids, collection.doc_ids) if keep_runs else None
        return CollectionScores(
            collection.name, self.metric.name, judgements.query_ids, scores, prepared.source.weight, run
        )

    def _rank(self, i: int, account: Account, keeper: Keeper | None) -> Ranking:
        prepared, clock, on_batch = self.collections[i], account.clock, account.on_batch
        with clock.phase("encode"):
            queries = self._comparable(self.encoder.encode(prepared.queries, on_batch))
        if keeper is not None:
            keeper.add_queries(i, np.arange(len(queries)), queries)
        with clock.phase("search"):
            search = TopK(
                queries,
                prepared.source.collection.doc_ids,
                self.depth,
                backend=self._backend,
                exclude=prepared.exclude,
                candidates=prepared.candidates,
                by_id=prepared.by_id,
            )
        chunks = self.encoder.chunks(prepared.documents, self._chunk_documents, on_batch)
        while True:
            with clock.phase("encode"):
                chunk = next(chunks, None)
            if chunk is None:
                break
            rows = prepared.document_rows[chunk[0]]
            with clock.phase("search"):
                documents = self._comparable(chunk[1])
                search.add(rows, documents)
            if keeper is not None:
                keeper.add_documents(i, rows, documents, [search])
        with clock.phase("search"):
            return search.result()

    def _comparable(self, embeddings: Tensor) -> Tensor:
        """Cosine is the inner product of vectors scaled to length 1, in fp32 whatever the model's dtype."""
        if self.encoder.settings.similarity == "dot":
            return embeddings
        return torch.nn.functional.normalize(embeddings, dim=1)

    def _with_prompts(self, i: int, prompts: Mapping[str, str | None]) -> PreparedCollection:
        """A collection with these prompts, of both kinds; made once."""
        given, key = self._given[i], (i, tuple(prompts[kind] for kind in KINDS))
        if prompts == given.source.prompts:
            return given
        if key not in self._prompted:
            query_ids, rows = given.judgements.query_ids, given.document_rows
            plans = {kind: self._plan(i, given.source, kind, prompts[kind], query_ids, rows) for kind in KINDS}
            self._prompted[key] = self._replanned(given, plans["query"], plans["document"])
        return self._prompted[key]

    def _replanned(self, prepared: PreparedCollection, queries: TokenPlan, documents: TokenPlan) -> PreparedCollection:
        return replace(prepared, queries=queries, documents=documents)

    def _plan(
        self,
        i: int,
        source: WeightedCollection,
        kind: Kind,
        prompt: str | None,
        query_ids: Sequence[str],
        document_rows: NDArray[np.int64],
    ) -> TokenPlan:
        """The plan of collection `i`'s texts behind a prompt; made once."""
        collection, query = source.collection, kind == "query"
        if (i, kind, prompt) not in self._planned:
            if query:
                by_id = dict(zip(collection.query_ids, collection.query_texts, strict=True))
                texts = [by_id[query_id] for query_id in query_ids]
            else:
                texts = [collection.doc_texts[row] for row in document_rows]
            self._planned[i, kind, prompt] = self.encoder.plan(
                texts,
                kind,
                prompt=prompt,
                max_length=self._lengths[0] if query else self._lengths[1],
                batch_tokens=self._batch_tokens,
                store=None if query else self._store,
            )
        return self._planned[i, kind, prompt]

    def _prepare(self, i: int, source: WeightedCollection) -> PreparedCollection:
        collection = source.collection
        query_ids = collection.judged
        if not query_ids:
            raise EvaluationError(f"collection {collection.name!r} has no judged queries.")
        rows = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
        candidates = None
        document_rows = np.arange(len(rows), dtype=np.int64)
        if collection.candidates is not None:
            candidates = [
                np.array([rows[d] for d in dict.fromkeys(collection.candidates.get(q, ()))], dtype=np.int64)
                for q in query_ids
            ]
            # Documents that no query may be answered with are not worth encoding.
            document_rows = np.unique(np.concatenate(candidates))
        return PreparedCollection(
            source,
            self._plan(i, source, "query", source.query_prompt, query_ids, document_rows),
            self._plan(i, source, "document", source.document_prompt, query_ids, document_rows),
            document_rows,
            Judgements.prepare(query_ids, collection.doc_ids, collection.qrels),
            own_documents(collection),
            candidates,
            order_by_id(collection.doc_ids),
        )

    def _plans(self) -> Iterator[TokenPlan]:
        for prepared in self.collections:
            yield prepared.queries
            yield prepared.documents

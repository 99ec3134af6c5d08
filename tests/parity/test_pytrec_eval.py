"""Per-query scores against pytrec_eval (trec_eval itself) and ranx, with many ties."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.metrics import MEASURES, parse_metric
from mergesearch.evaluation.search import Ranking, TopK
from mergesearch.evaluation.tables import ranx_scores

if TYPE_CHECKING:
    from pathlib import Path

pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs the extra `parity`")

COLLECTIONS = ["cosqa", "cranfield", "medquad_qa", "nfcorpus", "xquad_de", "xquad_en"]
TREC_NAMES = {
    "ndcg": "ndcg_cut",
    "precision": "P",
    "recall": "recall",
    "map": "map_cut",
}

Qrels = dict[str, dict[str, int]]


def rank_at_random(qrels: Qrels, doc_ids: list[str], seed: int, depth: int) -> tuple[list[str], Ranking]:
    """A search over integer embeddings: about fifty different scores, so that ties decide most ranks."""
    generator = torch.Generator().manual_seed(seed)
    query_ids = list(qrels)
    queries = torch.randint(-2, 3, (len(query_ids), 5), generator=generator).float()
    documents = torch.randint(-2, 3, (len(doc_ids), 5), generator=generator).float()
    # A little of the truth, so that scores are not all near zero.
    rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    for number, query_id in enumerate(query_ids):
        for doc_id in list(qrels[query_id])[:3]:
            if doc_id in rows:
                documents[rows[doc_id]] = queries[number]
    search = TopK(queries, doc_ids, depth)
    for part in np.array_split(np.arange(len(doc_ids)), 3):
        search.add(part, documents[torch.from_numpy(part)])
    return query_ids, search.result()


def trec_eval(qrels: Qrels, ranking: Ranking, query_ids: list[str], doc_ids: list[str], metric: str) -> list[float]:
    """The same ranking through trec_eval, which sorts by score and document id for itself."""
    measure, _, depth = metric.partition("@")
    run = {q: dict(reversed(found)) for q, found in ranking.to_run(query_ids, doc_ids).items()}
    if measure == "mrr":
        # trec_eval has no cut-off here: the ranking is cut instead.
        run = {q: dict(found[: int(depth)]) for q, found in ranking.to_run(query_ids, doc_ids).items()}
        results = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
        return [results[q]["recip_rank"] for q in query_ids]
    name = TREC_NAMES[measure]
    results = pytrec_eval.RelevanceEvaluator(qrels, {f"{name}.{depth}"}).evaluate(run)
    return [results[q][f"{name}_{depth}"] for q in query_ids]


def assert_equal(qrels: Qrels, doc_ids: list[str], seed: int, metrics: list[str], depth: int) -> None:
    query_ids, ranking = rank_at_random(qrels, doc_ids, seed, depth)
    judgements = Judgements.prepare(query_ids, doc_ids, qrels)
    for metric in metrics:
        ours = parse_metric(metric).score(judgements.gains(ranking.rows), judgements)
        theirs = trec_eval(qrels, ranking, query_ids, doc_ids, metric)
        assert np.abs(ours - theirs).max() < 1e-9
        assert ours.mean() > 0


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("collection", COLLECTIONS)
def test_ndcg_equals_trec_eval_on_real_judgements(shared_data: Path, collection: str, split: str) -> None:
    folder = shared_data / collection
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        pytest.skip(f"{collection} has no {split} split")
    qrels: Qrels = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    with (folder / "corpus.jsonl").open(encoding="utf-8") as file:
        doc_ids = [json.loads(line)["_id"] for line in file]
    assert_equal(qrels, doc_ids, 0, ["ndcg@10"], 10)


def graded(seed: int) -> tuple[Qrels, list[str]]:
    """Grades from -1 to 3; a fifth of the judged documents is not in the corpus; some queries have nothing."""
    rng = np.random.default_rng(seed)
    doc_ids = [f"d{i}" for i in rng.permutation(400)]
    qrels = {
        f"q{q}": {f"d{d}": int(rng.integers(-1, 4)) for d in rng.choice(500, rng.integers(1, 40), replace=False)}
        for q in range(60)
    }
    qrels["nothing"] = {"d3": 0}
    qrels["elsewhere"] = {"not in the corpus": 2}
    return qrels, doc_ids


@pytest.mark.parametrize("measure", sorted(MEASURES))
@pytest.mark.parametrize("seed", range(3))
def test_every_measure_equals_trec_eval(measure: str, seed: int) -> None:
    qrels, doc_ids = graded(seed)
    assert_equal(qrels, doc_ids, seed, [f"{measure}@{k}" for k in (1, 3, 10, 100)], 100)


def test_ranx_tables_equal_trec_eval_in_any_order() -> None:
    qrels, doc_ids = graded(0)
    qrels = {q: found for q, found in qrels.items() if any(g > 0 for g in found.values())}
    query_ids, ranking = rank_at_random(qrels, doc_ids, 0, 100)
    run = ranking.to_run(query_ids, doc_ids)
    shuffled = {q: run[q][::-1] for q in reversed(query_ids)}
    metrics = ["ndcg@10", "precision@10", "recall@100", "map@100", "mrr@10"]
    expected = {m: np.mean(trec_eval(qrels, ranking, query_ids, doc_ids, m)) for m in metrics}
    positive = {q: {d: max(g, 0) for d, g in found.items()} for q, found in qrels.items()}
    assert ranx_scores(shuffled, positive, metrics) == pytest.approx(expected, abs=1e-9)
    # A query that the run lacks counts as 0, it is not left out.
    missing = {q: found for q, found in run.items() if q != query_ids[0]}
    first = trec_eval(qrels, ranking, query_ids, doc_ids, "ndcg@10")[0]
    assert first > 0
    assert ranx_scores(missing, positive, ["ndcg@10"])["ndcg@10"] == pytest.approx(
        expected["ndcg@10"] - first / len(query_ids), abs=1e-9
    )
    with pytest.raises(EvaluationError, match="ranx cannot compute nonsense"):
        ranx_scores(run, positive, ["nonsense"])
    with pytest.raises(EvaluationError, match="no judgements"):
        ranx_scores(run, {}, ["ndcg@10"])

"""What every search backend must do; adding one to the registry adds it here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.backends import BACKENDS, get_backend
from mergesearch.evaluation.search import TopK

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]


@pytest.fixture(params=sorted(BACKENDS))
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="faiss is an extra: pip install 'mergesearch[faiss]'")
    return str(request.param)


def embeddings(n: int, seed: int, *, ties: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return torch.randint(-1, 2, (n, 8), generator=generator).float()
    return torch.nn.functional.normalize(torch.randn(n, 64, generator=generator), dim=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ties", [True, False])
def test_finds_the_definition_of_nearest(name: str, ties: bool, device: str) -> None:
    queries, documents = embeddings(40, 0, ties=ties), embeddings(700, 1, ties=ties)
    ids = [str(i) for i in range(700)]
    search = TopK(queries.to(device), ids, 20, backend=name)
    for start in range(0, 700, 256):
        rows = np.arange(start, min(start + 256, 700))
        search.add(rows, documents[rows].to(device))
    ranking = search.result()
    scores = (queries.double() @ documents.double().T).float()
    for query, rows in enumerate(ranking.rows):
        expected = sorted(range(700), key=lambda d: (scores[query, d].item(), ids[d]), reverse=True)
        assert rows.tolist() == expected[:20]
        assert ranking.scores[query].tolist() == scores[query, rows].tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_keeps_the_base_classs_promise(name: str, device: str) -> None:
    queries, documents = embeddings(9, 2, ties=False).to(device), embeddings(100, 3, ties=False).to(device)
    backend = get_backend(name)
    backend.open(documents)
    scores, columns = backend.best(queries, 100)
    exact = queries.double() @ documents.double().T
    assert (scores.dtype, columns.dtype) == (torch.float32, torch.int64)
    assert scores.device == columns.device == queries.device
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert columns.sort(dim=1).values.equal(torch.arange(100, device=queries.device).expand(9, 100))
    assert (scores - exact.gather(1, columns)).abs().max() <= 64 * 2**-24
    backend.open(documents[:5])
    assert backend.best(queries, 5)[1].max() == 4


def test_stays_exact_when_the_process_allows_low_precision_products(name: str) -> None:
    queries, documents = embeddings(20, 4, ties=False), embeddings(500, 5, ties=False)
    ids = [str(i) for i in range(500)]
    rankings = []
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            search = TopK(queries, ids, 10, backend=name)
            search.add(np.arange(500), documents)
            rankings.append(search.result().rows.tolist())
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert rankings[0] == rankings[1]


def test_unknown_backends_are_named() -> None:
    with pytest.raises(EvaluationError, match="Did you mean 'faiss'"):
        get_backend("fais")

"""The flat (exact) inner-product index of faiss. Needs the extra `faiss` or `gpu`."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.backends import SearchBackend, backend

_GPU_SCRATCH_BYTES = 256 << 20
"""faiss reserves 1.5 GB or more of a GPU when left alone, which belongs to the model here."""

_MOST_ON_GPU = 2048
"""faiss' GPU index returns no more neighbours than this."""


@backend("faiss")
class FaissBackend(SearchBackend):
    """On the CPU, or on the GPU where the embeddings are and faiss was built for it."""

    def __init__(self) -> None:
        try:
            self._faiss = importlib.import_module("faiss")
        except ImportError as error:
            raise EvaluationError(
                "the search backend 'faiss' needs faiss: pip install 'mergesearch[faiss]' for CPUs or "
                "'mergesearch[gpu]' for NVIDIA GPUs (never both in one environment), or use 'torch'."
            ) from error
        self._resources: Any = None

    def open(self, documents_CE: Tensor) -> None:
        """See the base class."""
        self._flat = self._faiss.IndexFlatIP(documents_CE.shape[1])
        self._flat.add(documents_CE.cpu().numpy())
        self._on_gpu: Any = None
        if documents_CE.is_cuda and hasattr(self._faiss, "StandardGpuResources"):
            if self._resources is None:
                self._resources = self._faiss.StandardGpuResources()
                self._resources.setTempMemory(_GPU_SCRATCH_BYTES)
            device = documents_CE.device.index or 0
            self._on_gpu = self._faiss.index_cpu_to_gpu(self._resources, device, self._flat)

    def best(self, queries_QE: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """See the base class."""
        # faiss and torch each have a thread pool; the worker's limit is meant for both.
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        index = self._on_gpu if self._on_gpu is not None and n <= _MOST_ON_GPU else self._flat
        scores, columns = index.search(queries_QE.cpu().numpy(), n)
        device = queries_QE.device
        return torch.from_numpy(scores).to(device), torch.from_numpy(columns).to(device)

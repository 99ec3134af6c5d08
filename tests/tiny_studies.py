"""Whole studies of kilobytes: two related tiny retrievers, a judged collection in BEIR layout, a study file.

The study runs in seconds, offline, and everything a study needs is really there.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from ruamel.yaml import YAML

from tests.tiny_models import WORDS, make_tiny, make_variant, tiny_reranker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

QRELS_HEADER = "query-id\tcorpus-id\tscore"


@dataclass(frozen=True)
class TinyStudy:
    """A folder with `retriever/`, `domain/`, `collection/` and `study.yaml`, free to be spoilt."""

    folder: Path

    @property
    def file(self) -> Path:
        """The study file."""
        return self.folder / "study.yaml"

    @property
    def storage(self) -> str:
        """The database that its study file names."""
        return f"sqlite:///{self.folder}/study.db"

    def content(self) -> dict[str, Any]:
        """The study file as plain Python."""
        loaded: dict[str, Any] = YAML(typ="safe").load(self.file)
        return loaded

    def change(self, *path: str | int, to: Any) -> TinyStudy:
        """Set one entry of the study file, making mappings on the way; `to=None` removes it."""
        content = self.content()
        node: Any = content
        for key in path[:-1]:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
        if to is None:
            node.pop(path[-1], None)
        else:
            node[path[-1]] = to
        self.write(content)
        return self

    def write(self, content: dict[str, Any]) -> None:
        """Write the study file anew."""
        yaml = YAML()
        yaml.sort_base_mapping_type_on_output = False
        with self.file.open("w", encoding="utf-8") as out:
            yaml.dump(content, out)

    def line_of(self, text: str) -> str:
        """Such as `/folder/study.yaml:3`: the one line of the study file that holds `text`."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        (number,) = [i for i, line in enumerate(lines, 1) if text in line]
        return f"{self.file}:{number}"


def make_study(folder: Path, *, kind: str = "bert", n_layers: int = 2) -> TinyStudy:
    """Write models, collection and study file to `folder`."""
    make_tiny(kind, folder / "retriever", n_layers=n_layers)
    make_variant(folder / "retriever", folder / "domain", seed=1)
    make_beir(folder / "collection")
    study = TinyStudy(folder)
    study.write(
        {
            "study": "tiny",
            "seed": 3,
            "storage": study.storage,
            "sources": {"retriever": "retriever", "domain": "domain"},
            "merge": {
                "method": "linear",
                "template": "retriever",
                "groups": {"segments": 2},
                "coefficients": {"alpha": {"values": [0, 0.5, 1]}},
            },
            "search": {"strategy": {"name": "random"}, "trials": 5},
            "evaluation": {"collections": [{"name": "made", "folder": "collection"}]},
            "workers": {"device": "cpu", "threads": 1},
        }
    )
    return study


def make_endless(folder: Path) -> TinyStudy:
    """One that somebody has to stop: points at random for ten hours."""
    made = make_study(folder)
    made.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    return made.change("search", to={"strategy": "random", "minutes": 600})


def copy_study(study: TinyStudy, folder: Path) -> TinyStudy:
    """The same study elsewhere, so that a test may spoil it; models are copied, not linked."""
    shutil.copytree(study.folder, folder, dirs_exist_ok=True)
    copied = TinyStudy(folder)
    return copied.change("storage", to=copied.storage)


def make_beir(folder: Path, *, seed: int = 0, n_queries: int = 8, n_documents: int = 30) -> Path:
    """A collection of random words; queries share words with the documents that are relevant to them."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 16))) for _ in range(n_documents)]
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(texts)])
    queries = []
    for split in ("dev", "test"):
        judged = [QRELS_HEADER]
        for i in range(n_queries):
            relevant = rng.choice(n_documents, 2, replace=False)
            words = [w for d in relevant for w in texts[d].split()[:2]]
            queries.append({"_id": f"{split}{i}", "text": " ".join(words)})
            judged += [f"{split}{i}\td{d}\t1" for d in relevant]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    write_lines(folder / "queries.jsonl", queries)
    return folder


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One JSON record per line."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


@dataclass(frozen=True)
class Answer:
    """What the program said and ended with."""

    code: int
    out: str
    err: str


def mergesearch(*arguments: object) -> Answer:
    """Run the program's entry point in this process, with its exit code and both outputs."""
    from mergesearch.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["mergesearch", *map(str, arguments)]),
        mock.patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return Answer(code, out.getvalue(), err.getvalue())


def make_rerank_study(folder: Path, *, kind: str = "bert", n_layers: int = 2) -> TinyStudy:
    """Task arithmetic on a tiny re-ranker: base and domain model of its layout, BM25's first documents, λ tuned."""
    whole = kind in ("t5", "mt5")  # with their decoders; of others bare encoders do
    head = None if whole else "auto"
    tiny_reranker(kind, folder / "reranker", n_layers=n_layers)
    tiny_reranker(kind, folder / "base", n_layers=n_layers, head=head, seed=1)
    tiny_reranker(kind, folder / "domain", n_layers=n_layers, head=head, seed=2)
    make_beir(folder / "collection")
    study = TinyStudy(folder)
    study.write(
        {
            "study": "tiny-reranker",
            "seed": 3,
            "storage": study.storage,
            "sources": {"base": "base", "reranker": "reranker", "domain": "domain"},
            "merge": {
                "method": "task_arithmetic",
                "template": "reranker",
                "base": "base",
                "groups": {"segments": 1, "embeddings": "first_segment", "decoder": "with_encoder"},
                "coefficients": {"weight": {"reranker": 1, "domain": {"values": [0, 0.5, 1]}}},
            },
            "search": {"strategy": "grid", "enqueue": [{"weight.domain.segment_1": 1}, "sources"]},
            "evaluation": {
                "rerank": {"first_stage": {"kind": "bm25", "depth": 6}},
                "collections": [{"name": "made", "folder": "collection"}],
            },
            "workers": {"device": "cpu", "threads": 1},
        }
    )
    return study

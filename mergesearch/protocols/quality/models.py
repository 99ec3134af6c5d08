"""The protocol's domain models, trained of the retriever and kept by the content of what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mergesearch.protocols.quality.schema import Protocol, Training
from mergesearch.protocols.quality.text import read_titles, training_pairs
from mergesearch.sources.cached import cached
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.locate import locate
from mergesearch.training.contrastive import train_contrastive
from mergesearch.training.masked_lm import train_masked_lm


def domain_model(protocol: Protocol, collection: str, name: str) -> Path:
    """The folder of a collection's domain model, trained now where the cache has none.

    Text is the collection's documents, or pairs of them and of train queries; see `training_pairs`.

    Raises:
        MergesearchError: the training failed; CollectionError: there is nothing to train on.
    """
    content = protocol.content
    training = content.domain_models[name]
    retriever = locate(content.retriever, relative_to=protocol.path.parent)
    texts: list[str] | list[tuple[str, str]]
    build: Callable[[Path], object]
    if training.kind == "masked_lm":
        texts = documents = [f"{title} {text}".strip() for title, text in read_titles(protocol.folder(collection))]
        build = lambda out: train_masked_lm(retriever, documents, out, **_settings(training))  # noqa: E731
    else:
        kind = content.collections[collection].pairs
        texts = pairs = training_pairs(protocol.folder(collection), kind, training.seed)
        build = lambda out: train_contrastive(retriever, pairs, out, **_settings(training))  # noqa: E731
    key = {
        "model": Checkpoint.open("retriever", retriever).content_hash,
        "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "libraries": {library: version(library) for library in ("torch", "transformers", "sentence-transformers")},
        "threads": torch.get_num_threads(),
        **training.model_dump(),
    }
    return cached("quality", key, build)


def _settings(training: Training) -> dict[str, Any]:
    return training.model_dump(exclude={"kind"})

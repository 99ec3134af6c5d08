"""A bi-encoder that ranks the whole corpus, exactly."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from mergesearch.evaluation.first_stages.registry import Candidates, FirstStage, first_stage
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.encoding_files import encoding_files
from mergesearch.sources.locate import locate

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection


@first_stage("model", "a bi-encoder that ranks the whole corpus")
class BiEncoder(FirstStage):
    """The documents nearest to the query by embeddings of a model that no trial changes.

    It encodes with the pooling, prompts and lengths that its own files state, unless they are given here.
    """

    model: str
    """A folder, `package:NAME` or a hub id, as for sources."""

    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    query_prompt: str | None = None
    """Put before queries."""

    document_prompt: str | None = None
    """Put before documents."""

    pooling: str | None = None
    """How tokens are pooled."""

    normalize: bool | None = None
    """Whether embeddings are scaled to length 1."""

    similarity: Literal["cosine", "dot"] | None = None
    """How embeddings are compared."""

    max_length: int | None = Field(None, ge=8)
    """Tokens per text."""

    append_eos: bool | None = None
    """For models that read a text off its end token; see `evaluation.append_eos`."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and arithmetic."""

    trust_remote_code: bool = False
    """Run Python code that lies with the model."""

    def identity(self, collection: Collection, relative_to: Path) -> dict[str, Any]:  # noqa: ARG002
        """See the base class; where the model lies does not count.

        Raises:
            SourceError: there is no such model.
        """
        folder = locate(self.model, revision=self.revision, relative_to=relative_to)
        return {
            **self.model_dump(exclude={"model", "revision", "trust_remote_code"}, exclude_none=True),
            "content": Checkpoint.open("first stage", folder).content_hash,
            "files": encoding_files(folder),
            "transformers": version("transformers"),
            "sentence-transformers": version("sentence-transformers"),
        }

    def rank(self, collection: Collection, depth: int, *, relative_to: Path, device: str) -> Candidates:
        """See the base class.

        Raises:
            SourceError: the model does not load, or does not say how texts are encoded.
            EvaluationError: its embeddings cannot be searched.
        """
        from mergesearch.evaluation.encoder import open_encoder  # they bring what evaluators of other kinds need not
        from mergesearch.evaluation.pipeline import RetrievalEvaluator, WeightedCollection

        encoder = open_encoder(
            locate(self.model, revision=self.revision, relative_to=relative_to),
            device=device,
            **self.model_dump(exclude={"model", "revision", "query_prompt", "document_prompt"}),
        )
        asked = WeightedCollection(collection, query_prompt=self.query_prompt, document_prompt=self.document_prompt)
        run = RetrievalEvaluator(encoder, [asked], metric=f"recall@{depth}").evaluate(keep_runs=True).collections[0].run
        assert run is not None
        row_of = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
        ranked = [run[query_id] for query_id in collection.judged]
        return Candidates.from_lists(
            [np.array([row_of[doc_id] for doc_id, _ in found], dtype=np.int64) for found in ranked],
            [np.array([score for _, score in found], dtype=np.float64) for found in ranked],
        )

"""What a worker opens: sources, the one model that is overwritten, and the collections that it is scored on."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from mergesearch.errors import CollectionError
from mergesearch.evaluation.candidates import find_candidates
from mergesearch.evaluation.encoder import Encoder, open_encoder
from mergesearch.evaluation.pipeline import RetrievalEvaluator, WeightedCollection
from mergesearch.evaluation.raced import RacedEvaluator
from mergesearch.evaluation.racing import RacingSettings
from mergesearch.evaluation.reranker import Reranker, open_reranker
from mergesearch.evaluation.reranking import RacedRerankEvaluator, RerankEvaluator
from mergesearch.merging.resident import ResidentMerger
from mergesearch.sources.adapter import open_source
from mergesearch.sources.alignment import align_within, share_tokens
from mergesearch.sources.cache import cache_dir
from mergesearch.sources.layout import read_layout
from mergesearch.sources.weights import read_tensors
from mergesearch.workers.evaluator_spec import CollectionSpec, EvaluationSettings, EvaluatorSpec
from mergesearch.workers.residency import choose_residency, free_memory, room_for_sources, working_bytes

logger = logging.getLogger(__name__)

Model: TypeAlias = Encoder | Reranker
Pipeline: TypeAlias = RetrievalEvaluator | RerankEvaluator
"""Either kind scores the weights that its model holds on all collections."""

LARGE_CORPUS = 500_000
"""Documents from which on token ids are kept on disk: about a gigabyte of them, and once per worker."""


def open_merger(spec: EvaluatorSpec) -> tuple[Model, ResidentMerger]:
    """Load the template as the resident model, and of every source what recipes may need."""
    settings = spec.evaluation
    trusted = spec.template in spec.trusted
    model = open_with(settings, spec.folders[spec.template], trust_remote_code=trusted, gpus=spec.gpus)
    layout = read_layout(spec.folders[spec.template], head=spec.head, trust_remote_code=trusted)
    places = {name: parameter.place for name, parameter in layout.parameters.items()}
    # Which tokens are shared, all sources decide; else those that no recipe needs are left alone.
    opened = [name for name in spec.folders if spec.shared_tokens or spec.merged_places.get(name)]
    checkpoints = {name: open_source(name, spec.folders[name], spec.adapters.get(name)) for name in opened}
    shared = share_tokens(checkpoints, template=spec.template, layout=layout) if spec.shared_tokens else None
    names = {n: align_within(c, layout, spec.merged_places.get(n, frozenset())) for n, c in checkpoints.items()}
    devices = {name: parameter.device for name, parameter in model.parameters.items()}
    sizes = [(n, checkpoints[source].tensors[raw].n_bytes) for source, read in names.items() for n, raw in read.items()]
    bytes_at: Counter[str] = Counter()
    for name, n_bytes in sizes:
        bytes_at[str(devices[name])] += n_bytes
    kept, why = choose_residency(
        spec.residency,
        settings.device,
        [n_bytes for _, n_bytes in sizes],
        room=room_for_sources(bytes_at, settings.device, working_bytes(settings.batch_tokens, layout.hidden_size)),
        host=free_memory("cpu") // spec.workers,
    )
    logger.info("sources: %s, %s", kept, why)
    sources = {}
    for name, checkpoint in checkpoints.items():
        own = {} if shared is None else {shared.tensor: shared.rows[name]}
        sources[name] = read_tensors(checkpoint, names[name], kept=kept, device=devices, rows=own)
    rows = {} if shared is None else {shared.tensor: shared.rows[spec.template]}
    statistics = cache_dir() / "statistics"
    return model, ResidentMerger(model.parameters, sources, places, rows=rows, statistics=statistics)


def open_with(settings: EvaluationSettings, folder: Path, *, trust_remote_code: bool = False, gpus: int = 1) -> Model:
    """Load a bi-encoder, or a re-ranker, as a study's `evaluation` says."""
    lengths = (settings.max_query_length, settings.max_document_length)
    if settings.rerank is not None:
        return open_reranker(
            folder,
            settings.rerank,
            dtype=settings.dtype,
            device=settings.device,
            max_query_length=settings.max_query_length,
            max_document_length=settings.max_document_length,
            attention=settings.attention,
            trust_remote_code=trust_remote_code,
            gpus=gpus,
        )
    return open_encoder(
        folder,
        dtype=settings.dtype,
        device=settings.device,
        pooling=settings.pooling,
        normalize=settings.normalize,
        similarity=settings.similarity,
        # Plans cut each kind of text to its own length; this one stands in for a length that no file states.
        max_length=max(n for n in lengths if n is not None) if None not in lengths else None,
        append_eos=settings.append_eos,
        attention=settings.attention,
        trust_remote_code=trust_remote_code,
        gpus=gpus,
    )


def build_pipeline(
    model: Model,
    collections: Sequence[CollectionSpec],
    settings: EvaluationSettings,
    racing: RacingSettings | None = None,
) -> Pipeline:
    """Tokenise every collection once and plan its batches, look by look where trials are raced."""
    weighted = [
        WeightedCollection(
            c.load(),
            weight=c.weight,
            query_prompt=c.prompts.get("query"),
            document_prompt=c.prompts.get("document"),
            choices=c.choices,
        )
        for c in collections
    ]
    with _token_store(weighted) as store:
        options: dict[str, Any] = {
            "metric": settings.metric,
            "batch_tokens": settings.batch_tokens,
            "store": store,
        }
        if isinstance(model, Reranker):
            assert settings.rerank is not None
            options["fusion"] = settings.rerank.fusion
            found = [
                find_candidates(c.first_stage, w.collection, device=settings.device)
                for c, w in zip(collections, weighted, strict=True)
            ]
            if racing is not None:
                return RacedRerankEvaluator(model, weighted, found, racing=racing, **options)
            return RerankEvaluator(model, weighted, found, **options)
        options |= {
            "max_query_length": settings.max_query_length,
            "max_document_length": settings.max_document_length,
            "backend": settings.search,
        }
        if racing is not None:
            return RacedEvaluator(model, weighted, racing=racing, **options)
        return RetrievalEvaluator(model, weighted, **options)


@contextmanager
def _token_store(collections: Sequence[WeightedCollection]) -> Iterator[Path | None]:
    """A private folder for the token ids of large corpora, beside other files that can be made again.

    It is gone as soon as the evaluator is made: the file in it has lost its name by then and lives as long as
    it is mapped, so nothing is left behind however the process ends.
    """
    if all(len(c.collection.doc_ids) <= LARGE_CORPUS for c in collections):
        yield None
        return
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="tokens-", dir=cache_dir())
    except OSError as error:
        problem = f"token ids of large corpora need a folder on disk: {error}. Name another: MERGESEARCH_CACHE=FOLDER"
        raise CollectionError([problem]) from error
    with folder as path:
        yield Path(path)

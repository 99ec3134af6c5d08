"""What is measured of the sources before a search: the loss of each on the study's examples, once per study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.encoder import Encoder
from mergesearch.evaluation.losses import contrastive_loss, language_model_loss
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.opening import open_merger

OnLoss = Callable[[str, float, float], None]
"""Called with (source, loss in nats, seconds)."""


def with_losses(study: Study, store: StudyStore, on_loss: OnLoss) -> Study:
    """The study with the losses of its sources, measured where the database does not hold them yet.

    One source is in memory at a time, whole, beside the one model.

    Args:
        study: the resolved study; one whose method measures nothing comes back as it is.
        store: the study's records, opened by its coordinator.
        on_loss: told of every loss that was measured.

    Raises:
        SourceError: a source cannot be read, or is no language model where its loss is one's.
        EvaluationError: a loss is NaN or infinite, or an example cannot be encoded.
    """
    if study.examples is None:
        return study
    examples = study.examples.fingerprint
    known = store.losses(examples)
    losses = {}
    for source in study.sources_to_measure:
        content = study.content_hash(source)
        if content not in known:
            started = time.perf_counter()
            loss = measure(study, source)
            if not math.isfinite(loss):
                raise EvaluationError(f"the loss of source {source!r} on the examples is {loss}: check its weights.")
            store.record_loss(source, content, examples, loss)
            known[content] = loss
            on_loss(source, loss, time.perf_counter() - started)
        losses[source] = known[content]
    return study.with_losses(losses)


def measure(study: Study, source: str) -> float:
    """The loss of one source, in nats, encoded or continued as the study's `evaluation` says.

    Retrievers are the whole source in the template's architecture, with its tokenizer, pooling and prompts; language
    models are the source's own folder.
    """
    assert study.examples is not None
    examples, template = study.examples, study.parsed.content.merge.template
    spec = study.unmerged_spec()
    evaluation = spec.evaluation
    if evaluation.device.startswith("cuda") and not torch.cuda.is_available():  # the workers are elsewhere
        evaluation = replace(evaluation, device="cpu")
        spec = replace(spec, residency="auto", gpus=1)
    torch.set_num_threads(spec.threads)
    if examples.completions:
        return language_model_loss(
            spec.folders[source],
            spec.folders[template],
            examples,
            dtype=evaluation.dtype,
            device=evaluation.device,
            trust_remote_code=source in spec.trusted,
        )
    places = {source: spec.merged_places[source]}
    model, merger = open_merger(replace(spec, merged_places=places, evaluation=evaluation))
    merger.apply(study.source_alone(source))
    assert isinstance(model, Encoder)  # studies of re-rankers give losses as numbers
    return contrastive_loss(
        model,
        examples,
        max_query_length=evaluation.max_query_length,
        max_document_length=evaluation.max_document_length,
    )

"""Is what was written what was merged? Saved models, loaded afresh by ourselves and by the libraries people use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from mergesearch.errors import ExportError, MergesearchError
from mergesearch.evaluation.encoder import Encoder
from mergesearch.evaluation.loading import quiet_loading
from mergesearch.evaluation.planned import DTYPES
from mergesearch.merging.resident import ResidentMerger
from mergesearch.results.saved_reranker import check_reranker
from mergesearch.workers.evaluator_spec import EvaluatorSpec
from mergesearch.workers.opening import Model, open_with

EMBEDDING_TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}
"""How far an embedding of `SentenceTransformer.encode` may lie from ours, as ‖a − b‖ / ‖b‖, by dtype. Both use the same
weights and modules; batches are composed differently, so sums are rounded in another order."""


def open_saved(folder: Path, spec: EvaluatorSpec, fingerprint: str) -> Model:
    """Load a saved model from its folder alone; its weights have to be the merge's, to the bit.

    Nothing but the folder says how it pools and normalises: it has to stand on its own. No file can say that an end
    token is appended which the tokenizer leaves out.

    Raises:
        ExportError: the weights are not those of `fingerprint`.
    """
    stated = replace(spec.evaluation, pooling=None, normalize=None, similarity=None)
    if stated.rerank is None:
        stated = replace(stated, max_query_length=None, max_document_length=None)
    model = open_with(stated, folder, trust_remote_code=spec.template in spec.trusted, gpus=spec.gpus)
    if ResidentMerger(model.parameters, {}, dict.fromkeys(model.parameters, "")).fingerprint() != fingerprint:
        raise ExportError("the saved weights are not those of the merge. Nothing was exported; is the disk sound?")
    return model


def check_libraries(
    folder: Path, model: Model, texts: Sequence[Sequence[str]], *, trust_remote_code: bool = False
) -> None:
    """`SentenceTransformer` alone gives our embeddings of `texts`, and `AutoModel` loads the weights.

    Re-rankers are compared with `CrossEncoder`, see `check_reranker`.

    Args:
        folder: the saved model.
        model: the same, loaded by us.
        texts: lists of a few texts each, encoded together.
        trust_remote_code: run Python code that lies in the folder.

    Raises:
        ExportError: a library makes something else of the files.
    """
    if isinstance(model, Encoder):
        _check_sentence_transformers(folder, model, texts, trust_remote_code)
        _check_transformers(folder, model, trust_remote_code)
    else:
        check_reranker(folder, model, texts, trust_remote_code=trust_remote_code)


def _check_sentence_transformers(
    folder: Path, encoder: Encoder, texts: Sequence[Sequence[str]], trust_remote_code: bool
) -> None:
    dtype = encoder.settings.dtype
    with quiet_loading():
        model = SentenceTransformer(
            str(folder),
            device=str(encoder.device),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": DTYPES[dtype]},
        )
    end = model.tokenizer.eos_token if encoder.settings.append_eos else ""
    encoders = {"document": model.encode_document}
    if encoder.settings.prompts["query"] is not None:
        encoders["query"] = model.encode_query
    for together in texts:
        for kind, encode in encoders.items():
            plan = encoder.plan(together, kind)  # type: ignore[arg-type]
            ours = encoder.encode(plan)
            theirs = encode([t + end for t in together], convert_to_tensor=True, show_progress_bar=False).to(ours)
            distance = float(((theirs - ours).norm(dim=1) / ours.norm(dim=1)).max())
            if not distance <= EMBEDDING_TOLERANCE[dtype]:
                raise ExportError(
                    f"SentenceTransformer's embeddings of {kind} texts lie {distance:.2g} from those of the merge, "
                    f"more than {EMBEDDING_TOLERANCE[dtype]:g}. Nothing was exported; please report this"
                )


def _check_transformers(folder: Path, encoder: Encoder, trust_remote_code: bool) -> None:
    """To the bit; the model may hold more (T5 has a decoder)."""
    with quiet_loading():
        model = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            dtype=DTYPES[encoder.settings.dtype],
        )
    theirs = dict(model.named_parameters(remove_duplicate=False))
    wrong = [n for n, p in encoder.parameters.items() if n not in theirs or not torch.equal(p.cpu(), theirs[n])]
    if wrong:
        raise ExportError(f"AutoModel does not load {len(wrong)} of the saved tensors as they are, such as {wrong[0]}")


@contextmanager
def unusable_is_an_export_error(what: str = "the saved files") -> Iterator[None]:
    """What goes wrong with `what` inside is told as an `ExportError`."""
    try:
        yield
    except ExportError:
        raise
    except (MergesearchError, OSError) as error:
        raise ExportError(f"{what} cannot be used, so nothing was exported: {error}") from error

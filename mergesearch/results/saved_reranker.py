"""Is a saved re-ranker what was merged? Loaded afresh by ourselves, by transformers and by sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mergesearch.errors import ExportError
from mergesearch.evaluation.joining import TwoTexts
from mergesearch.evaluation.loading import quiet_loading
from mergesearch.evaluation.planned import DTYPES
from mergesearch.evaluation.reranker import Reranker

SCORE_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2}
"""How far a logit of `CrossEncoder.predict` may lie from ours, by dtype: batches are composed differently."""


def check_reranker(
    folder: Path,
    model: Reranker,
    texts: Sequence[Sequence[str]],
    *,
    trust_remote_code: bool = False,
) -> None:
    """Transformers loads the weights as they are, and `CrossEncoder` gives our scores where it can.

    That is of classifiers of two texts, whole ones: what cuts queries before they are paired, no file can say.

    Args:
        folder: the saved model.
        model: the same, loaded by us.
        texts: lists of a few texts each; the first of a list is paired with the others.
        trust_remote_code: run Python code that lies in the folder.

    Raises:
        ExportError: a library makes something else of the files.
    """
    with quiet_loading():
        theirs = type(model.transformer).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            dtype=DTYPES[model.settings.dtype],
        )
    ours, loaded = model.transformer.state_dict(), theirs.state_dict()
    wrong = [name for name, tensor in ours.items() if not torch.equal(tensor.cpu(), loaded.get(name, tensor[:0].cpu()))]
    if wrong:
        raise ExportError(
            f"{type(theirs).__name__} does not load {len(wrong)} of the saved tensors as they are, such as {wrong[0]}"
        )
    settings = model.settings
    whole = settings.max_query_length is None and settings.max_document_length is None
    if isinstance(settings.form, TwoTexts) and whole and model.transformer.config.num_labels == 1:
        _check_cross_encoder(folder, model, texts, trust_remote_code)


def _check_cross_encoder(
    folder: Path, model: Reranker, texts: Sequence[Sequence[str]], trust_remote_code: bool
) -> None:
    from sentence_transformers import CrossEncoder

    dtype, form = model.settings.dtype, model.settings.form
    assert isinstance(form, TwoTexts)
    with quiet_loading():
        library = CrossEncoder(
            str(folder),
            device=str(model.device),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": DTYPES[dtype]},
            max_length=model.settings.max_length,
            activation_fn=torch.nn.Identity(),
        )
    for first, *others in texts:
        pairs = np.array([[0, i] for i in range(len(others))], dtype=np.int64).reshape(-1, 2)
        if not len(pairs):
            continue
        ours = model.logits(model.plan_pairs([first], others, pairs)).cpu()
        given = [(form.query.replace("{query}", first), form.document.replace("{document}", o)) for o in others]
        theirs = torch.as_tensor(library.predict(given, show_progress_bar=False)).float()
        distance = float((theirs - ours).abs().max())
        if not distance <= SCORE_TOLERANCE[dtype]:
            raise ExportError(
                f"CrossEncoder's scores lie {distance:.2g} from those of the merge, more than "
                f"{SCORE_TOLERANCE[dtype]:g}. Nothing was exported; please report this"
            )

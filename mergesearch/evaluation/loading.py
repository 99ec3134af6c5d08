"""Loading a template as a `SentenceTransformer` that does what was resolved, and checking that it can.

sentence-transformers and transformers are imported when a model is loaded: they take seconds.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mergesearch.errors import EvaluationError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mergesearch.evaluation.settings import Resolved


def load(folder: Path, dtype: torch.dtype, device: str, trust_remote_code: bool) -> Any:
    """The `SentenceTransformer`, in `dtype` from the start, ready for inference."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    try:
        # Weights that the checkpoint lacks (an unused pooler) are drawn at random: the same ones each time.
        with torch.random.fork_rng(devices=[]), no_progress_bar():
            torch.manual_seed(0)
            model = SentenceTransformer(
                str(folder),
                device=device,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                model_kwargs={"dtype": dtype},
            )
    except (OSError, ValueError) as error:
        raise SourceError([f"{folder} does not load as a sentence-transformers model: {error}"]) from error
    if not isinstance(model[0], Transformer) or model[0].tokenizer is None:
        raise SourceError([f"{folder} does not start with a transformer over text but with {type(model[0]).__name__}."])
    if model[0].tokenizer.pad_token_id is None:
        raise SourceError([f"the tokenizer of {folder} has no padding token: name one in tokenizer_config.json."])
    model[0].unpad_inputs = False
    return model.eval().requires_grad_(False)


def apply(model: Any, resolved: Resolved) -> bool:
    """Make the loaded modules do what was resolved; returns whether pooling takes the prompt in."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    include_prompt = True
    for index, module in enumerate(model):
        if isinstance(module, Pooling):
            include_prompt = bool(module.include_prompt)
            modes = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else module.pooling_mode
            if tuple(modes) != resolved.pooling:
                model[index] = Pooling(
                    model[0].get_embedding_dimension(), resolved.pooling, include_prompt=include_prompt
                )
    places = [index for index, module in enumerate(model) if isinstance(module, Normalize)]
    if resolved.normalize and not places:
        model.append(Normalize())
    if not resolved.normalize:
        for index in reversed(places):
            del model[index]
    return include_prompt


def end_tokens(model: Any) -> set[int]:
    """Special tokens that may end a text; the config's own may differ from the tokenizer's (Qwen3)."""
    stated = getattr(model[0].model.config, "eos_token_id", None)
    tokens = {stated} if isinstance(stated, int) else set(stated or ())
    tokenizer = model[0].tokenizer
    return {*tokens, tokenizer.eos_token_id, tokenizer.sep_token_id} - {None, tokenizer.bos_token_id}


def check_attention(model: Any, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> None:
    """Raise an `EvaluationError` when the config asks for bidirectional attention and does not get it.

    It is stated in the config, not in the weights, and old libraries ignore it. Under causal attention the
    first token's hidden state is the same whatever comes later.

    Args:
        model: a loaded `SentenceTransformer`.
        ids: two texts that share their first token and differ later, int64 [2, L].
        mask: their attention mask, int64 [2, L].
    """
    transformer = model[0].model
    asked = getattr(transformer.config, "is_causal", None) is False
    if not asked and not getattr(transformer.config, "use_bidirectional_attention", False):
        return
    with torch.inference_mode():
        hidden = transformer(
            input_ids=torch.from_numpy(ids).to(transformer.device),
            attention_mask=torch.from_numpy(mask).to(transformer.device),
        ).last_hidden_state
    if torch.equal(hidden[0, 0], hidden[1, 0]):
        raise EvaluationError(
            "the template's config asks for bidirectional attention (is_causal: false or "
            "use_bidirectional_attention: true), but the installed transformers ignores it: its embeddings "
            "would be wrong. Upgrade transformers (5.2 or later)."
        )


def check_length(model: Any, max_length: int) -> None:
    """Raise an `EvaluationError` when a model with learned positions has fewer than `max_length`."""
    for module in model[0].model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            padding = getattr(module, "padding_idx", None)
            # RoBERTa and its kin count positions from padding_idx + 1.
            limit = table.num_embeddings - (padding + 1 if isinstance(padding, int) else 0)
            if max_length > limit:
                raise EvaluationError(
                    f"a maximum length of {max_length} tokens is more than the model's {limit} positions. "
                    f"Give {limit} or less."
                )


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Loading a model draws a bar of its own, beside the study's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No bars, and no report of weights that a checkpoint has too many or too few of."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with no_progress_bar():
            yield
    finally:
        logging.set_verbosity(verbosity)

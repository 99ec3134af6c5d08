"""Loading a template as a `SentenceTransformer` that does what was resolved, and checking that it can.

sentence-transformers and transformers are imported when a model is loaded: they take seconds.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mergesearch.errors import EvaluationError, SourceError
from mergesearch.sources.config import refuse_foreign_modules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mergesearch.evaluation.settings import Resolved


ATTENTION = ("sdpa", "flash_attention_2", "eager")
"""Implementations of attention that can be asked for."""


def load(folder: Path, dtype: torch.dtype, device: str, trust_remote_code: bool) -> Any:
    """The `SentenceTransformer`, in `dtype` from the start, ready for inference.

    Raises:
        SourceError: it does not load, or needs code that is not trusted.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    if not trust_remote_code:
        refuse_foreign_modules(folder)
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


def choose_attention(model: Any, wanted: str) -> tuple[str, bool]:
    """Set how the loaded `SentenceTransformer` computes attention; see `set_attention`.

    Returns:
        The implementation's name, and whether batches go in unpadded.
    """
    chosen = set_attention(model[0].model, wanted)
    return chosen, chosen == "flash_attention_2" and _takes_unpadded(model[0])


def set_attention(transformer: Any, wanted: str) -> str:
    """Set how a loaded model computes attention, and return the implementation's name.

    `auto` takes FlashAttention 2 where it can be had: a CUDA device, weights of half precision, an architecture that
    supports it and the package flash-attn. Everywhere else it leaves transformers' own choice, which is SDPA for all
    but a few old architectures.

    Raises:
        EvaluationError: the implementation is not to be had here.
    """
    if wanted == "auto":
        usable = _lacks_for_flash(transformer) == []
        wanted = "flash_attention_2" if usable else transformer.config._attn_implementation
    elif wanted not in ATTENTION:
        raise EvaluationError(f"attention {wanted!r} is not one of auto, {', '.join(ATTENTION)}.")
    elif wanted == "flash_attention_2" and (lacking := _lacks_for_flash(transformer)):
        raise EvaluationError(
            f"attention flash_attention_2 needs {' and '.join(lacking)}. `attention: auto` uses it where it can."
        )
    if wanted != transformer.config._attn_implementation:
        transformer.set_attn_implementation(wanted)
        if transformer.config._attn_implementation != wanted:
            raise EvaluationError(
                f"{type(transformer).__name__} does not let its attention be set to {wanted}. Use `attention: auto`."
            )
    return wanted


def _lacks_for_flash(transformer: Any) -> list[str]:
    from transformers.utils import is_flash_attn_2_available

    needs = {
        "a CUDA device": transformer.device.type == "cuda",
        "`dtype: bfloat16` or `float16`": transformer.dtype in (torch.bfloat16, torch.float16),
        "an architecture that supports it": bool(getattr(transformer, "_supports_flash_attn", False)),
        "the package flash-attn": is_flash_attn_2_available(),
    }
    return [what for what, there in needs.items() if not there]


def _takes_unpadded(module: Any) -> bool:
    """sentence-transformers knows; asked, it also lets the unpadded batch's own keys through to the model."""
    module.unpad_inputs = None
    takes = bool(module.can_flatten_inputs)
    module.unpad_inputs = False  # Tokenising gives padded rows all the same.
    return takes


def first_position(transformer: Any) -> int:
    """The number of a text's first position: RoBERTa and its kin count from padding_idx + 1."""
    for module in _with_positions(transformer):
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int):
            return padding + 1
    return 0


def check_length(transformer: Any, max_length: int) -> None:
    """Raise an `EvaluationError` when a model with learned positions has fewer than `max_length`."""
    limit = positions(transformer)
    if limit is not None and max_length > limit:
        raise EvaluationError(
            f"a maximum length of {max_length} tokens is more than the model's {limit} positions. Give {limit} or less."
        )


def positions(transformer: Any) -> int | None:
    """How many tokens a model with learned positions can tell apart; None for other models."""
    tables = [module.position_embeddings.num_embeddings for module in _with_positions(transformer)]
    return min(tables) - first_position(transformer) if tables else None


def _with_positions(transformer: Any) -> list[Any]:
    """Modules with a table of learned positions."""
    modules = transformer.modules()
    return [m for m in modules if isinstance(getattr(m, "position_embeddings", None), torch.nn.Embedding)]


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

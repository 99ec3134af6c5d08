"""What the training recipes share: a quiet trainer, kept randomness, and the folder that is left behind."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergesearch.errors import MergesearchError, Problem, SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

Progress = Callable[[int, int], None]
"""Called with (optimizer steps done, optimizer steps in all)."""

RECORD_FILE = "mergesearch_training.json"
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".ot", ".onnx", ".gguf"}


def require_extra(*modules: str) -> None:
    """Refuse, with the command that helps, when a library of the extra `training` is not installed.

    Raises:
        MergesearchError: naming the modules that are missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MergesearchError(
            f'training needs {" and ".join(missing)}, not installed here; run `pip install "mergesearch[training]"`'
        )


def require_positive(**settings: float) -> None:
    """Refuse settings that are not above zero, all at once.

    Raises:
        MergesearchError: naming each of them.
    """
    wrong = [f"{name} = {value}" for name, value in settings.items() if not value > 0]
    if wrong:
        raise MergesearchError(f"training settings must be above zero: {', '.join(wrong)}")


def arguments(
    output_dir: str, *, device: str, steps: int, batch_size: int, learning_rate: float, seed: int
) -> dict[str, Any]:
    """Arguments for either trainer: so many steps, and no checkpoints, reports, logs or progress bars.

    AdamW without weight decay, linear warm-up over the first tenth of the steps, then linear decay to zero.
    """
    return {
        "output_dir": output_dir,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": max(1, steps // 10),
        "weight_decay": 0.0,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device != "cpu",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def prepare(model: torch.nn.Module, word_embeddings: torch.nn.Module, *, train_embeddings: bool) -> None:
    """Freeze the word embeddings unless they are to be trained, and switch dropout off.

    Merges take the embeddings from their template unless told otherwise; what a source learned there would
    be lost, and its layers would meet vectors that they were not trained with. Dropout guards against many
    passes over few texts, which is not what these recipes do, and drawing its masks took a sixth of a step.
    """
    word_embeddings.requires_grad_(train_embeddings)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def train(trainer: Any, progress: Progress | None) -> float:
    """Run a trainer that was made with `arguments`; its mean training loss.

    Raises:
        MergesearchError: when the loss is not finite, as after too large a learning rate.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.add_callback(_progress_callback(progress))
    loss = float(trainer.train().training_loss)
    if not np.isfinite(loss):
        raise MergesearchError(f"training diverged: its loss is {loss}; try a smaller learning rate")
    return loss


def _progress_callback(progress: Progress) -> TrainerCallback:
    from transformers import TrainerCallback

    class _Report(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_train_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            progress(0, state.max_steps)

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            progress(state.global_step, state.max_steps)

    return _Report()


@contextmanager
def quiet_and_seeded(seed: int) -> Iterator[None]:
    """Seeds Python, numpy and torch inside, and leaves the caller's generators and log settings untouched.

    transformers reports freshly made heads and draws a progress bar while it loads; neither is news here.
    """
    from transformers import set_seed
    from transformers.utils import logging

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # what trainers draw from
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng():
            set_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def encoder_folder(template: Path) -> Path:
    """Where the transformer of a sentence-transformers folder lies: the folder itself, or its first module's.

    Raises:
        SourceError: when there is no config.json.
    """
    modules = template / "modules.json"
    folder = template
    if modules.is_file():
        folder = template / json.loads(modules.read_text(encoding="utf-8"))[0]["path"]
    if not (folder / "config.json").is_file():
        raise SourceError([Problem("no config.json; training starts from a model's folder", str(folder))])
    return folder


def refuse_existing(out: Path) -> None:
    """Nothing that exists is overwritten, except an empty folder.

    Raises:
        MergesearchError: when `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergesearchError(f"{out} exists; training writes into a new folder")


def save(template: Path, encoder: PreTrainedModel, out: Path, record: dict[str, Any]) -> Path:
    """Write the template's files with the encoder's weights in place of its own, under one rename.

    Tokenizer, pooling and prompts are copied byte for byte, and so is config.json unless it states another
    dtype or another class than the weights now have. The template's model card is left out: it speaks of
    another model. `record` is stored as `mergesearch_training.json`.

    Raises:
        MergesearchError: when a trained weight is not finite.
    """
    broken = [name for name, tensor in encoder.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise MergesearchError(f"training left NaN or infinite weights: {', '.join(broken[:5])}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        made = Path(scratch) / "model"
        inner = encoder_folder(template).relative_to(template)
        root_weights = {p.name for p in (template / inner).iterdir() if _is_weights(p)}
        for file in template.rglob("*"):
            relative = file.relative_to(template)
            of_encoder = relative.parent == inner and file.name in root_weights
            if file.is_dir() or of_encoder or str(relative) == "README.md" or relative.parts[0] in ("onnx", "openvino"):
                continue
            (made / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, made / relative)
        saved = Path(scratch) / "encoder"
        encoder.save_pretrained(saved, max_shard_size="5GB")
        for file in saved.iterdir():
            if _is_weights(file):
                file.rename(made / inner / file.name)
                shutil.copymode(made / inner / "config.json", made / inner / file.name)
        _fit_config(made / inner / "config.json", encoder)
        record = {
            **record,
            "versions": {m: version(m) for m in ("torch", "transformers", "sentence-transformers")},
        }
        (made / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        made.rename(out)
    return out


def _is_weights(file: Path) -> bool:
    return file.suffix in _WEIGHT_SUFFIXES or file.name.endswith((".safetensors.index.json", ".bin.index.json"))


def _fit_config(file: Path, encoder: PreTrainedModel) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    fitting = {**config, "architectures": [type(encoder).__name__]}
    for name in ("dtype", "torch_dtype"):
        if name in config:
            fitting[name] = str(encoder.dtype).removeprefix("torch.")
    if fitting != config:
        file.write_text(json.dumps(fitting, indent=2) + "\n", encoding="utf-8")

"""What the training recipes share: a quiet trainer, kept randomness, and the folder that is left behind."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergesearch.errors import MergesearchError, Problem, SourceError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback

Progress = Callable[[int, int], None]
"""Called with (optimizer steps done, optimizer steps in all)."""

Prompts = dict[str, str]
"""What is put before texts, by `query` and `document`."""

RECORD_FILE = "mergesearch_training.json"
LIBRARIES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".ot", ".onnx", ".gguf"}


def require_extra(*modules: str) -> None:
    """Refuse, with the command that helps, when a library of the extra `training` is not installed.

    Raises:
        MergesearchError: naming the modules that are missing.
    """
    missing = missing_modules(*modules)
    if missing:
        raise MergesearchError(
            f'training needs {" and ".join(missing)}, not installed here; run `pip install "mergesearch[training]"`'
        )


def missing_modules(*modules: str) -> list[str]:
    """Those of the named libraries that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def require_positive(**settings: float | None) -> None:
    """Refuse settings that are given and not above zero, all at once.

    Raises:
        MergesearchError: naming each of them.
    """
    wrong = [f"{name} = {value}" for name, value in settings.items() if value is not None and not value > 0]
    if wrong:
        raise MergesearchError(f"training settings must be above zero: {', '.join(wrong)}")


def arguments(
    output_dir: str,
    *,
    device: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    warmup_steps: int | None = None,
) -> dict[str, Any]:
    """Arguments for either trainer: so many steps, and no checkpoints, reports, logs or progress bars.

    AdamW without weight decay, linear warm-up (over the first tenth of the steps unless `warmup_steps` says
    otherwise), then linear decay to zero.
    """
    return {
        "output_dir": output_dir,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": max(1, steps // 10) if warmup_steps is None else warmup_steps,
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
    be lost, and its layers would meet vectors that they were not trained with.
    """
    word_embeddings.requires_grad_(train_embeddings)
    without_dropout(model)


def without_dropout(model: torch.nn.Module) -> None:
    """Switch the model's dropout off.

    It guards against many passes over few texts, which is not what these recipes do, and drawing its masks took a
    sixth of a step.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def enable_checkpointing(model: Any) -> None:
    """Compute activations of blocks again in the backward pass instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is not None:
        enable()
    else:  # transformers 4
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def train(trainer: Any, progress: Progress | None, *, resume_from: str | None = None) -> float:
    """Run a trainer that was made with `arguments`, from a checkpoint if one is given; its mean training loss.

    Raises:
        MergesearchError: when the loss is not finite, as after too large a learning rate.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.add_callback(_progress_callback(progress))
    loss = float(trainer.train(resume_from_checkpoint=resume_from).training_loss)
    if not np.isfinite(loss):
        raise MergesearchError(f"training diverged: its loss is {loss}; try a smaller learning rate")
    return loss


def _progress_callback(progress: Progress) -> TrainerCallback:
    from transformers import TrainerCallback

    class _Report(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_train_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            progress(state.global_step, state.max_steps)

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            progress(state.global_step, state.max_steps)

    return _Report()


@contextmanager
def quiet_and_seeded(seed: int) -> Iterator[None]:
    """Seeds Python, numpy and torch inside, and leaves the caller's generators and log settings untouched.

    transformers reports freshly made heads and draws a progress bar while it loads, and sentence-transformers tells
    when it makes a re-ranker of a retriever; nothing of that is news here.
    """
    from transformers import set_seed
    from transformers.utils import logging as news

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # what trainers draw from
    verbosity, bars = news.get_verbosity(), news.is_progress_bar_enabled()
    news.set_verbosity_error()
    news.disable_progress_bar()
    others = logging.getLogger("sentence_transformers")
    level = others.level
    others.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng():
            set_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        others.setLevel(level)
        news.set_verbosity(verbosity)
        if bars:
            news.enable_progress_bar()


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


def pick_device(wanted: str) -> str:
    """A device as torch names it; `auto` is a CUDA GPU where there is one.

    Raises:
        MergesearchError: there is no such device here.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise MergesearchError(f"torch sees no CUDA GPU here, and the device is {wanted!r}; take cpu or auto")
    return wanted


def torch_dtype(wanted: str, device: str) -> torch.dtype:
    """`float32`, `bfloat16`, or `auto`: bfloat16 on a GPU that computes in it, else float32.

    Raises:
        MergesearchError: it is none of these.
    """
    if wanted == "auto":
        fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if wanted not in ("float32", "bfloat16"):
        raise MergesearchError(f"training computes in float32 or bfloat16 (or auto), found {wanted!r}")
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def positions(encoder: torch.nn.Module, config: PretrainedConfig) -> int:
    """Tokens that a text may have; the encoder may be empty (on torch's meta device)."""
    for module in encoder.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            padding = getattr(module, "padding_idx", None)
            # RoBERTa and its kin count from padding_idx + 1.
            return table.num_embeddings - (padding + 1 if isinstance(padding, int) else 0)
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(found) if isinstance(found, int) else sys.maxsize


def is_folder(location: str) -> bool:
    """Whether a model's location is a folder of this machine, and not of a package or a hub."""
    return not location.startswith("package:") and Path(location).expanduser().is_dir()


def refuse_file(out: Path) -> None:
    """A file is not overwritten by a folder.

    Raises:
        MergesearchError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise MergesearchError(f"{out} is a file; training writes a folder")


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
    with appearing(out, encoder.state_dict()) as made:
        inner = encoder_folder(template).relative_to(template)
        root_weights = {p.name for p in (template / inner).iterdir() if _is_weights(p)}
        for file in template.rglob("*"):
            relative = file.relative_to(template)
            of_encoder = relative.parent == inner and file.name in root_weights
            if file.is_dir() or of_encoder or str(relative) == "README.md" or relative.parts[0] in ("onnx", "openvino"):
                continue
            (made / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, made / relative)
        saved = made.with_name("encoder")
        encoder.save_pretrained(saved, max_shard_size="5GB")
        for file in saved.iterdir():
            if _is_weights(file):
                file.rename(made / inner / file.name)
                shutil.copymode(made / inner / "config.json", made / inner / file.name)
        _fit_config(made / inner / "config.json", encoder)
        write_record(made, record)
    return out


@contextmanager
def appearing(out: Path, trained: Mapping[str, torch.Tensor]) -> Iterator[Path]:
    """A folder to write into, which becomes `out` under one rename.

    Args:
        out: an empty folder, or nothing yet.
        trained: the weights that are written, by their names.

    Raises:
        MergesearchError: a trained weight is not finite.
    """
    broken = [name for name, tensor in trained.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise MergesearchError(f"training left NaN or infinite weights: {', '.join(broken[:5])}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        made = Path(scratch) / "made"
        yield made
        made.rename(out)


def versions() -> dict[str, str]:
    """Of the libraries that have a say in trained weights."""
    return {m: version(m) for m in LIBRARIES if importlib.util.find_spec(m.replace("-", "_"))}


def text_hash(text: str) -> str:
    """SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def settings_hash(folder: Path) -> str:
    """SHA-256 of a model's small files, which say how it tokenises, prompts, pools and normalises, in hexadecimal."""
    small = (f for f in sorted(folder.rglob("*")) if f.suffix in (".json", ".txt", ".model") and f.is_file())
    hashes = {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in small}
    return text_hash(json.dumps(hashes))


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_record` left."""
    record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Leave in `folder` what a model was made of and by which versions, as `mergesearch_training.json`."""
    text = json.dumps({**record, "versions": versions()}, indent=2)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


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

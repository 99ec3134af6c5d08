"""What trainings of experts and of knowledge adapters begin with: settings, and the model as its headers tell it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mergesearch.errors import MergesearchError, Problem, SourceError
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.config import load_config
from mergesearch.sources.layout import build_skeleton
from mergesearch.sources.locate import holds_adapter, locate
from mergesearch.training import harness
from mergesearch.training.adapters import AdapterSettings, adapter_parameters
from mergesearch.training.memory import check_training_memory, training_memory

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig


@dataclass(frozen=True)
class TrainingSettings:
    """What either training is asked.

    Attributes:
        adapter: its shape; None trains the whole model.
        batch_size: examples at a time.
        learning_rate: AdamW's, at its highest.
        max_length: tokens of a text; None for the training's own limit, or as many as the model has positions.
        epochs: passes over the examples, may be a fraction.
        steps: optimizer steps in place of `epochs`.
        seed: of everything that is drawn.
        dtype: of the frozen weights and of the computation: `auto` is bfloat16 on a GPU that has it, else float32.
            What is trained is float32.
        checkpointing: compute activations again in the backward pass, which takes less memory and more time.
    """

    adapter: AdapterSettings | None
    batch_size: int
    learning_rate: float
    max_length: int | None = None
    epochs: float = 1.0
    steps: int | None = None
    seed: int = 0
    dtype: str = "auto"
    checkpointing: bool = False

    above_zero: ClassVar[tuple[str, ...]] = ("max_length", "steps", "epochs", "batch_size", "learning_rate")

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            MergesearchError: naming them.
        """
        harness.require_positive(**{name: getattr(self, name) for name in self.above_zero})
        if self.adapter is not None:
            self.adapter.check()
        harness.torch_dtype(self.dtype, "cpu")


@dataclass(frozen=True)
class Trained:
    """A finished training on judged pairs.

    Attributes:
        folder: of the model or adapter.
        examples: that there were to train on.
        steps: of the optimizer.
        losses: logged losses, the first and the last.
        before: whether it had been finished by an earlier process.
    """

    folder: Path
    examples: int
    steps: int
    losses: tuple[float, float]
    before: bool


@dataclass(frozen=True)
class Base:
    """The model that a training begins with, of which no weight is loaded.

    Attributes:
        location: where others find it, too, if it is not a folder of this machine.
        folder: where it lies here.
        checkpoint: its headers.
        config: its config.
        max_length: tokens of a text.
        dtype: of the frozen weights and of the computation.
        device: as torch names it.
    """

    location: str
    folder: Path
    checkpoint: Checkpoint
    config: PretrainedConfig
    max_length: int
    dtype: torch.dtype
    device: str

    @classmethod
    def open(cls, model: str, settings: TrainingSettings, *, device: str, longest: int) -> Base:
        """Find it and read its headers.

        Args:
            model: as a study file names a source.
            settings: of the training.
            device: as torch names it, or `auto`.
            longest: tokens of a text where the settings do not say.

        Raises:
            MergesearchError: texts longer than the model has positions, or a device that is not there.
            SourceError: it cannot be read, or is an adapter.
        """
        device = harness.pick_device(device)
        folder = locate(model)
        if holds_adapter(folder):
            raise SourceError([Problem("is an adapter; give the model that the new one is to adapt", model)])
        config = load_config(folder)
        positions = harness.positions(build_skeleton(config), config)
        if settings.max_length is not None and settings.max_length > positions:
            raise MergesearchError(f"max_length {settings.max_length} is more than the model's {positions} positions")
        return cls(
            location=str(folder) if harness.is_folder(model) else model,
            folder=folder,
            checkpoint=Checkpoint.open("base", folder),
            config=config,
            max_length=settings.max_length or min(longest, positions),
            dtype=harness.torch_dtype(settings.dtype, device) if settings.adapter else torch.float32,
            device=device,
        )

    def asked(self, kind: str, settings: TrainingSettings, **decided: Any) -> dict[str, Any]:
        """Everything that decides a training's numbers, as plain JSON.

        Args:
            kind: of training.
            settings: of it.
            decided: what else there is; goes before settings of the same name.
        """
        return {
            "kind": kind,
            "base": self.location,
            "base_sha256": self.checkpoint.content_hash,
            **asdict(settings),
            **decided,
            "max_length": self.max_length,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": torch.device(self.device).type,
            "versions": harness.versions(),
        }

    def check_memory(self, settings: TrainingSettings, *, texts: int, head: bool, remedy: str) -> None:
        """Refuse what the device does not hold.

        Args:
            settings: of the training.
            texts: at a time.
            head: whether every token's scores over the vocabulary are computed.
            remedy: options that take fewer texts.

        Raises:
            MemoryPlanError: it does not.
            SourceError: the model has nothing that such an adapter fits.
        """
        encoder = build_skeleton(self.config)
        whole = sum(p.numel() for p in encoder.parameters())
        plan = training_memory(
            encoder,
            self.config,
            trained=adapter_parameters(encoder, settings.adapter) if settings.adapter else whole,
            dtype=self.dtype,
            tokens=texts * self.max_length,
            head=head,
            checkpointing=settings.checkpointing,
        )
        check_training_memory(plan, self.device, f"Take {remedy}, a smaller --max-length or --checkpointing.")

    def arguments(
        self, settings: TrainingSettings, checkpoints: Path, *, steps: int, warmup_steps: int
    ) -> dict[str, Any]:
        """Of a trainer, see `harness.arguments`."""
        made = harness.arguments(
            str(checkpoints),
            device=self.device,
            steps=steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            warmup_steps=warmup_steps,
        )
        return {**made, "bf16": self.dtype == torch.bfloat16}

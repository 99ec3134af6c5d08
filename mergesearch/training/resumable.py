"""Trainings that go on where they were stopped, and end with what they would have ended with.

A training has a work folder beside its result. It holds what the training was asked for, what was prepared for it,
and checkpoints: the trained parameters, the optimizer, the schedule and the state of the random numbers. Data must
come in an order that is a function of the settings alone, and draw no random numbers of the process.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from mergesearch.errors import MergesearchError
from mergesearch.training import harness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from transformers import TrainerCallback

SAVE_EVERY_S = 60.0
"""Seconds of work that a kill may cost, about."""
_ASKED = "asked.json"
_WEIGHTS, _LOSSES = "trained.safetensors", "losses.json"
_WHOLE = "whole"  # written last into a checkpoint: one without it is of a process that was killed while writing
_KEPT = 2
_POINTS = 100  # losses that are noted, about


def work_folder(out: Path) -> Path:
    """Where a training that is to become `out` keeps what it needs to go on."""
    return out.with_name(f".{out.name}.training")


def is_done(out: Path, asked: Mapping[str, Any]) -> bool:
    """Whether `out` is what this training leaves.

    Args:
        out: of the training.
        asked: everything that decides the result, as plain JSON.

    Raises:
        MergesearchError: `out` holds something else; what differs is named.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        record = json.loads((out / harness.RECORD_FILE).read_text(encoding="utf-8"))["asked"]
    except (OSError, ValueError, KeyError, TypeError):
        harness.refuse_existing(out)
        raise
    if differences := _differences(record, asked):
        raise MergesearchError(f"{out} exists and was made with other settings ({differences}); give another --out")
    return True


@contextmanager
def resumable(out: Path, asked: Mapping[str, Any], *, restart: bool = False) -> Iterator[Path]:
    """The work folder of a training, held against other processes; it is removed when the training has left `out`.

    Args:
        out: of the training.
        asked: everything that decides the result, as plain JSON.
        restart: throw away what an earlier process left.

    Raises:
        MergesearchError: another process is at it, or it was begun with other settings (named).
    """
    folder = work_folder(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MergesearchError(f"another process is training {out}; wait for it or stop it") from None
        if restart:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        file = folder / _ASKED
        if file.is_file() and (differences := _differences(json.loads(file.read_text(encoding="utf-8")), asked)):
            if any(folder.rglob(_WHOLE)):
                raise MergesearchError(
                    f"the training of {out} was begun with other settings ({differences}). Give those again to go "
                    "on with it, another --out, or --restart to throw away what was done"
                )
            shutil.rmtree(folder)  # it came no further than reading its data
            folder.mkdir()
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asked, indent=2), encoding="utf-8")
        draft.rename(file)
        yield folder
        if out.exists():
            shutil.rmtree(folder)
            folder.with_suffix(".lock").unlink()


def train_once(
    out: Path,
    asked: Mapping[str, Any],
    check: Callable[[], None],
    train: Callable[[Path], dict[str, Any]],
    *,
    restart: bool = False,
) -> tuple[dict[str, Any], bool]:
    """What a finished training tells of itself, and whether an earlier process finished it.

    Args:
        out: of the training.
        asked: everything that decides the result, as plain JSON.
        check: refuses what cannot be, before anything is written.
        train: given a work folder, goes on with what is in it, leaves `out` and returns its record.
        restart: throw away what an earlier process left.

    Raises:
        MergesearchError: `out` holds something else, another process is at it, or it was begun with other settings.
    """
    if is_done(out, asked):
        return harness.read_record(out), True
    check()
    with resumable(out, asked, restart=restart) as work:
        return train(work), False


def first_and_last(record: Mapping[str, Any]) -> tuple[float, float]:
    """Losses at both ends of a training, by its record."""
    return record["losses"][0]["loss"], record["losses"][-1]["loss"]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two nested settings, in words; empty if nothing does."""
    flat = [_flat(json.loads(json.dumps(settings))) for settings in (before, now)]
    names = sorted(name for name in flat[0].keys() | flat[1].keys() if flat[0].get(name) != flat[1].get(name))
    return ", ".join(f"{n}: {flat[0].get(n)!r}, now {flat[1].get(n)!r}" for n in names)


def _flat(settings: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{start}{name}.") if isinstance(value, dict) else {f"{start}{name}": value}
    return found


class TrainedOnly:
    """For a trainer: its checkpoints hold the parameters that are trained, and the losses so far; nothing frozen.

    Put before a trainer among the bases of a class. What is frozen is read again from where it came from.

    Attributes:
        losses: `step`, and `loss` as the mean over `loss_every` steps up to it.
        loss_every: steps between two entries of `losses`.
    """

    model: Any
    losses: list[dict[str, float]]
    loss_every: int
    _running: Any = 0.0  # sum of losses since the last entry: a tensor on the device, which nobody waits for

    def training_step(self, *positional: Any, **named: Any) -> torch.Tensor:
        """The trainer's, summing up."""
        loss: torch.Tensor = super().training_step(*positional, **named)  # type: ignore[misc]
        self._running = self._running + loss.detach().float()
        return loss

    def note_loss(self, step: int) -> None:
        """To be called after each optimizer step."""
        if step % self.loss_every == 0:
            self.losses.append({"step": step, "loss": float(self._running) / self.loss_every})
            self._running = 0.0

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:  # noqa: ARG002 - the trainer's
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # Copies: parameters that share memory cannot be written.
        trained = {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / _WEIGHTS)
        (folder / _LOSSES).write_text(json.dumps([self.losses, float(self._running)]), encoding="utf-8")

    def _load_from_checkpoint(self, checkpoint: str, *_: object) -> None:
        stored = load_file(Path(checkpoint) / _WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(stored[name])
        self.losses, self._running = json.loads((Path(checkpoint) / _LOSSES).read_text(encoding="utf-8"))


class PlannedBatches(torch.utils.data.Sampler[list[int]]):
    """The batches of a whole training as one pass, so that it is known which comes where.

    Passes may have fewer batches than they announce, and a trainer that goes on counts by what was announced.
    """

    def __init__(self, drawn: Any, n: int) -> None:
        self.batch_size, self.drop_last = drawn.batch_size, drawn.drop_last
        self._batches: list[list[int]] = []
        for number in itertools.count():
            drawn.set_epoch(number)
            before = len(self._batches)
            self._batches += itertools.islice(drawn, n - before)
            if len(self._batches) in (n, before):
                break

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


def train_resumably(
    trainer: Any,
    checkpoints: Path,
    progress: harness.Progress | None = None,
    *,
    save_every_s: float = SAVE_EVERY_S,
) -> list[dict[str, float]]:
    """Run a `TrainedOnly` trainer to its end, from its newest whole checkpoint if there is one.

    Args:
        trainer: made with `harness.arguments(checkpoints, …)`.
        checkpoints: the trainer's output folder.
        progress: called after each step.
        save_every_s: seconds between checkpoints; 0 writes one after each step.

    Returns:
        Some hundred training losses: `step`, and `loss` as the mean since the one before.

    Raises:
        MergesearchError: when the loss is not finite.
    """
    trainer.args.save_total_limit = _KEPT
    trainer.losses, trainer.loss_every = [], max(1, trainer.args.max_steps // _POINTS)
    trainer.add_callback(_saving_callback(trainer, save_every_s))
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / _WHOLE).is_file():  # the trainer would keep it in the place of a whole one
            shutil.rmtree(folder)
    newest = max(
        checkpoints.glob(f"checkpoint-*/{_WHOLE}"), key=lambda p: int(p.parent.name.split("-")[1]), default=None
    )
    harness.train(trainer, progress, resume_from=str(newest.parent) if newest else None)
    losses: list[dict[str, float]] = trainer.losses
    return losses


def _saving_callback(trainer: TrainedOnly, every_s: float) -> TrainerCallback:
    from transformers import TrainerCallback

    class _Save(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.saved_at = time.monotonic()

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.note_loss(state.global_step)
            if time.monotonic() - self.saved_at >= every_s and state.global_step < state.max_steps:
                control.should_save = True

        def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for file in folder.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())  # else a power cut may leave the mark and not the weights
            (folder / _WHOLE).touch()
            self.saved_at = time.monotonic()

    return _Save()

"""What was found out about the sources' tensors, kept as long as they stay the same."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable

Key = tuple[str, ...]

LATEST = 4096
"""How many tensors that do not last are kept."""


VERSION = 1
"""To be raised when the meaning of a key changes."""


class Statistics:
    """Small tensors by key, in memory and, where a folder is given, on disk for the processes to come.

    Keys name the content of the sources. What else decides a statistic is part of a file's name: the version of
    the code, torch's, and the kind of device, whose sums may differ in the last place. A file that cannot be read
    or written costs time and nothing else.

    Args:
        folder: where they are kept; None for memory only.
        device_type: where they are made.
    """

    def __init__(self, folder: Path | None = None, device_type: str = "cpu") -> None:
        self._folder = folder
        self._made_by = (f"version {VERSION}", torch.__version__, device_type)
        self._known: dict[Key, torch.Tensor] = {}
        self._latest: dict[Key, torch.Tensor] = {}

    def recall(self, key: Key, build: Callable[[], torch.Tensor], *, lasting: bool = True) -> torch.Tensor:
        """The tensor of this key, on the CPU; built if it is new.

        Args:
            key: names what it is, and of which content.
            build: makes it.
            lasting: keep it for good; otherwise it stays in memory until `LATEST` others were asked for.
        """
        if not lasting:
            value = self._latest.pop(key, None)
            self._latest[key] = build().detach().cpu() if value is None else value
            if len(self._latest) > LATEST:
                del self._latest[next(iter(self._latest))]
            return self._latest[key]
        if key not in self._known:
            found = self._load(key)
            if found is None:
                found = build().detach().cpu().contiguous()
                self._save(key, found)
            self._known[key] = found
        return self._known[key]

    def _file(self, key: Key) -> Path | None:
        name = hashlib.sha256("\0".join((*self._made_by, *key)).encode()).hexdigest()
        return None if self._folder is None else self._folder / name[:2] / f"{name}.safetensors"

    def _load(self, key: Key) -> torch.Tensor | None:
        file = self._file(key)
        try:
            return None if file is None or not file.is_file() else load_file(file)["value"]
        except (OSError, SafetensorError, KeyError):
            return None

    def _save(self, key: Key, value: torch.Tensor) -> None:
        file = self._file(key)
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(dir=file.parent)
            os.close(handle)
            try:
                save_file({"value": value}, draft)
                os.replace(draft, file)  # noqa: PTH105 (other processes may be writing the same)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
        except (OSError, SafetensorError):
            pass

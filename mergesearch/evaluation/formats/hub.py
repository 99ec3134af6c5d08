"""Rows of Hugging Face data sets: from the hub, or from a local folder in the same layout.

The `datasets` package is an extra (`pip install mergesearch[hf]`) and is imported on first use. A local
folder works offline: its README.md names configs and splits as on the hub.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.formats.builder import CollectionBuilder, Place
from mergesearch.evaluation.formats.files import resolve, write_json_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class HubDataset:
    """One data set and its configs.

    Args:
        name: a hub id such as `mteb/nfcorpus`, or a folder.
        revision: a branch, tag or commit on the hub; must be None for a folder.
        relative_to: the folder that relative paths start from.

    Raises:
        CollectionError: when it is neither a folder nor a data set that can be reached.
    """

    def __init__(self, name: str, revision: str | None, relative_to: Path) -> None:
        self.name = name
        folder = resolve(name, relative_to)
        self.local = folder.is_dir()
        if not self.local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise CollectionError([Problem("there is no such folder", str(folder))])
        if self.local and revision is not None:
            raise CollectionError([Problem("a local folder has no revisions; remove `revision`", str(folder))])
        self._path = str(folder) if self.local else name
        self._revision = revision
        self._datasets = _import_datasets()
        self.configs: list[str] = self._call(self._datasets.get_dataset_config_names, self._path)

    def config(self, kind: str, wanted: Sequence[str]) -> str:
        """The first of the `wanted` configs that exists.

        Raises:
            CollectionError: naming the configs there are.
        """
        for config in wanted:
            if config in self.configs:
                return config
        message = f"no config for {kind}: looked for {', '.join(wanted)}; there are: {', '.join(self.configs)}"
        raise CollectionError([Problem(message, f"data set {self.name!r}")])

    def splits(self, config: str) -> list[str]:
        """Names of the config's splits."""
        found: list[str] = self._call(self._datasets.get_dataset_split_names, self._path, config)
        return found

    def split(self, config: str, wanted: Sequence[str], *, only: bool = False) -> str:
        """The first of the `wanted` splits that exists; with `only`, also a config's single split.

        Raises:
            CollectionError: naming the splits there are.
        """
        splits = self.splits(config)
        for split in wanted:
            if split in splits:
                return split
        if only and len(splits) == 1:
            return splits[0]
        message = f"there is no split {wanted[0]!r}; splits there are: {', '.join(splits) or 'none'}"
        raise CollectionError([Problem(message, f"data set {self.name!r}, config {config!r}")])

    def rows(
        self, config: str, split: str, columns: Sequence[Sequence[str]], builder: CollectionBuilder
    ) -> Iterator[tuple[Place, list[Any]]]:
        """Rows as lists in the order of `columns`.

        Args:
            config: one of `configs`.
            split: one of `splits(config)`.
            columns: for each value the names it may have, the first that exists is taken; an empty string
                among them makes it optional (None where it does not exist).
            builder: where missing columns are reported; then there are no rows.
        """
        table = self._call(self._datasets.load_dataset, self._path, config, split=split)
        what = f"{self.name}[{config}/{split}]"
        there = list(table.column_names)
        names = [next((n for n in names if n in there), None) for names in columns]
        missing = [" or ".join(n) for n, name in zip(columns, names, strict=True) if name is None and "" not in n]
        if missing:
            message = f"missing columns: {', '.join(missing)}; columns there are: {', '.join(there)}"
            builder.error("missing columns", message, what)
            return
        for number, row in enumerate(table, start=1):
            yield Place(what, number), [None if name is None else row[name] for name in names]

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls into `datasets`, turning its errors into ours."""
        if not self.local:
            kwargs["revision"] = self._revision
        try:
            return function(*args, **kwargs)
        # datasets raises its own classes and what huggingface_hub, pyarrow and the network raise below it.
        except (OSError, ValueError, RuntimeError, self._datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            hint = "" if self.local else "; check its name, the network, and `hf auth login` if it is gated"
            raise CollectionError([Problem(f"cannot be read ({reason}){hint}", f"data set {self.name!r}")]) from error


def write_local(
    folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]], *, default: str | None = None
) -> None:
    """Writes a local data set: config to split to rows, as JSON lines, with the README.md that names them.

    Args:
        folder: where to write.
        configs: rows by config and split.
        default: the config that is read when none is named.
    """
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [
            f"- config_name: {config}",
            *(["  default: true"] if config == default else []),
            "  data_files:",
        ]
        for split, rows in splits.items():
            path = f"{config}/{split}.jsonl"
            write_json_lines(folder / path, rows)
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def _import_datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise CollectionError(["this format needs the datasets package: pip install mergesearch[hf]"]) from error

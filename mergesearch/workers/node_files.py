"""What a worker on another machine finds of the files that its specification names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mergesearch.errors import SourceError, WorkerError
from mergesearch.sources.locate import commit_of, hub_id, locate
from mergesearch.workers.evaluator_spec import CollectionSpec, EvaluatorSpec


def files_named(spec: EvaluatorSpec) -> dict[Path, str]:
    """What a specification reads on the machine where it was made, and what for.

    Whether an option of a collection is a path, its format knows; what lies there on this machine is taken for one.
    """
    files = {folder: f"source {name!r}" for name, folder in (*spec.folders.items(), *spec.adapters.items())}
    for collection in spec.collections:
        for value in (*collection.options.values(), *_first_stage_files(collection)):
            with suppress(OSError, RuntimeError, ValueError):  # text that can be no path
                path = collection.relative_to / Path(value).expanduser() if isinstance(value, str) and value else None
                if path is not None and path.exists():
                    files[path] = f"collection {collection.name!r}"
    return files


def _first_stage_files(collection: CollectionSpec) -> Iterator[object]:
    """What a first stage's options name, its placeholders filled in."""
    for value in collection.first_stage.options.values():
        named = {"{collection}": collection.name, "{split}": collection.split}
        for placeholder, name in named.items():
            value = value.replace(placeholder, name) if isinstance(value, str) else value
        yield value


def with_files_here(spec: EvaluatorSpec, files: Mapping[Path, str], node: str) -> EvaluatorSpec:
    """The specification with its sources where this machine has them; hub models are fetched at the same commit.

    Args:
        spec: as another machine made it.
        files: `files_named(spec)` there.
        node: what this machine is called.

    Raises:
        WorkerError: this machine lacks some of the files, one sentence for each.
    """
    found: dict[Path, Path] = {}
    problems: list[str] = []
    for path, what in files.items():
        repo, commit = hub_id(path), commit_of(path)
        try:
            found[path] = locate(repo, revision=commit) if repo and not path.exists() else path
        except SourceError as error:
            problems.append(f"node {node} cannot fetch {what}: {error}")
            continue
        if not found[path].exists():
            or_hub = ", or give the source by its hub name (org/name)" if what.startswith("source") else ""
            remedy = f"Put it on storage that all nodes have at this path{or_hub}."
            problems.append(f"node {node} has no {str(path)!r}, which {what} is read from. {remedy}")
    if problems:
        raise WorkerError("\n".join(problems))
    here = [{n: found.get(f, f) for n, f in folders.items()} for folders in (spec.folders, spec.adapters)]
    return replace(spec, folders=here[0], adapters=here[1])

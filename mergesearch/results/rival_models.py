"""Models that a study's choice has to beat and that are no sources of it, such as one trained on all the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mergesearch.errors import SourceError
from mergesearch.sources.adapter import open_source
from mergesearch.sources.adapter_config import read_adapter_config
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.locate import holds_adapter, locate
from mergesearch.study import Study
from mergesearch.study_schema import SourceEntry

RIVAL = " (rival)"
"""How rivals are told from sources in tables and records."""


def with_rivals(study: Study, rivals: Mapping[str, str]) -> Study:
    """The study with further models in it, to be scored alone as its sources are; the recipes of `study` stay its own.

    Args:
        study: the resolved study.
        rivals: by a name that no source has: a hub id, a folder (relative to the current one), `package:NAME`, or an
            adapter that names its base itself.

    Raises:
        SourceError: a name is taken, a model cannot be opened, or it is not of the template's architecture and
            vocabulary.
    """
    if not rivals:
        return study
    taken = sorted(rivals.keys() & study.folders.keys())
    if taken:
        raise SourceError([f"a source is called {name!r}: give the rival another name" for name in taken])
    opened = {name: _open(name, model) for name, model in rivals.items()}
    content = study.parsed.content
    sources = {**content.sources, **{name: SourceEntry(model=model) for name, model in rivals.items()}}
    beside = replace(
        study,
        parsed=replace(study.parsed, content=content.model_copy(update={"sources": sources})),
        folders={**study.folders, **{name: folder for name, (folder, _) in opened.items()}},
        checkpoints={**study.checkpoints, **{name: checkpoint for name, (_, checkpoint) in opened.items()}},
    )
    template = content.merge.template
    others = [name for name in rivals if beside.own_places(name) != beside.own_places(template)]
    if others:
        raise SourceError(
            f"{name!r} is not of the architecture and vocabulary of {template!r}: score its folder by itself, with "
            f"`mergesearch evaluate {rivals[name]} --on {study.parsed.path.name}`"
            for name in others
        )
    return beside


def _open(name: str, model: str) -> tuple[Path, Checkpoint]:
    """The folder of a rival's model, which is its base's for an adapter, and what it holds."""
    found = locate(model, relative_to=Path.cwd())
    adapter = found if holds_adapter(found) else None
    folder = found if adapter is None else read_adapter_config(adapter).locate_base(Path.cwd())
    return folder, open_source(name, folder, adapter)

"""A study whose sources or collections are gone, as far as its database remembers it.

Names of places, groups and hashes of the sources were recorded; shapes of tensors and texts were not. So the study can
be looked at, and nothing can be encoded. Distances between merges, which break ties between equal scores, count every
place of the model alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mergesearch.errors import CollectionError
from mergesearch.evaluation.collection import Collection
from mergesearch.merging.registry import METHODS
from mergesearch.recipe import MergeRecipe
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.groups import make_groups
from mergesearch.sources.layout import Layout, Parameter, decoder_layer_and_component, layer_and_component
from mergesearch.storage.reader import StudyReader
from mergesearch.storage.record import plain
from mergesearch.study import Study
from mergesearch.study_checks import check_file, given_measurements, search_space
from mergesearch.study_file import ParsedStudy
from mergesearch.study_inputs import collection_specs, grouping


@dataclass(frozen=True, eq=False)
class RememberedCheckpoint(Checkpoint):
    """A source of which only the hash is known."""

    known_hash: str = ""

    @property
    def content_hash(self) -> str:
        """As it was recorded."""
        return self.known_hash


def remembered_study(parsed: ParsedStudy, store: StudyReader) -> Study | None:
    """The recorded study, without weights and without the texts that are gone.

    Args:
        parsed: the study file.
        store: the study's records.

    Returns:
        None where the study file divides the model, or the space, otherwise than what is recorded.

    Raises:
        StudyFileError: the study file is wrong in itself.
    """
    check_file(parsed)
    recorded = store.record.score_relevant
    groups_then: dict[str, dict[str, Any]] = recorded["merge"]["groups"]
    layout = _layout(p for g in groups_then.values() for p in g["places"])
    groups = make_groups(grouping(parsed), layout)
    now = {g.name: {"places": list(g.places), "merged": g.merged} for g in groups}
    if now != groups_then or set(recorded["sources"]) != set(parsed.content.sources):
        return None
    space = search_space(parsed, {g.name: g.depth for g in groups if g.merged})
    if plain(space.to_dict()) != recorded["merge"]["space"]:
        return None
    method = METHODS[parsed.content.merge.method]
    folders = {name: parsed.folder / source.model for name, source in parsed.content.sources.items()}
    checkpoints = {
        name: RememberedCheckpoint(name, folder, {}, {}, (), known_hash=recorded["sources"][name])
        for name, folder in folders.items()
    }
    measured = given_measurements(parsed) or _measured([r for r, _ in store.scored().values()], set(method.measured))
    return Study(
        parsed,
        folders,
        checkpoints,
        layout,
        None,
        method,
        groups,
        space,
        _collections(parsed, recorded),
        None,
        measured,
    )


def _layout(places: Iterable[str]) -> Layout:
    """A model of one weight per place."""
    parameters = {place: Parameter(place, (1,), place) for place in places}
    encoder, decoder = (
        1 + max((found[0] for place in parameters if (found := read(place)) is not None), default=-1)
        for read in (layer_and_component, decoder_layer_and_component)
    )
    return Layout(parameters, {}, (), encoder, "", "", 0, 0, "", n_decoder_layers=decoder)


def _measured(recipes: list[MergeRecipe], names: set[str]) -> dict[str, dict[str, float]]:
    """Losses of the sources, which are part of every recipe of a method that weighs by them."""
    for recipe in recipes:
        for group in recipe.groups:
            found = {k: dict(v) for k, v in group.coefficients.items() if k in names and not isinstance(v, float | int)}
            if found:
                return found
    return {}


def _collections(parsed: ParsedStudy, recorded: Mapping[str, Any]) -> tuple[Collection, ...]:
    """Those that are still there, and as they were: other texts are not what was scored."""
    then = recorded["evaluation"]["collections"]
    found = []
    for spec in collection_specs(parsed):
        try:
            collection = spec.load()
        except (CollectionError, OSError):
            continue
        if collection.content_hash == then.get(spec.name, {}).get("content"):
            found.append(collection)
    return tuple(found)

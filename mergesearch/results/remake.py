"""An export made again from its recipe alone: no study file, no database, the same weights.

Sources are found where the recipe says they lay, at the revision it says, or where the user says they lie now; what
they hold has to be what was merged.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mergesearch.errors import ExportError, MergesearchError, unknown
from mergesearch.evaluation.rerank_settings import RerankSettings
from mergesearch.merging.registry import get_method
from mergesearch.recipe import MergeRecipe
from mergesearch.results.folder import RECIPE_FILE, check_destination
from mergesearch.results.licences import concerns
from mergesearch.results.provenance import FORMAT, SETTINGS, licences_of
from mergesearch.results.unscored import save_unscored
from mergesearch.sources.adapter import open_source
from mergesearch.sources.adapter_config import read_adapter_config
from mergesearch.sources.alignment import share_tokens
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.layout import EMBEDDINGS, HEAD, read_layout
from mergesearch.sources.locate import holds_adapter, locate
from mergesearch.sources.vocabulary import hash_of_shared
from mergesearch.versions import versions
from mergesearch.workers.evaluator_spec import EvaluationSettings, EvaluatorSpec


@dataclass(frozen=True)
class Remade:
    """What was made; `same` is whether a recorded fingerprint of the weights was there and is met."""

    folder: Path
    weights: str
    same: bool
    warnings: tuple[str, ...] = ()


def merge_recipe(
    file: Path,
    out: Path,
    *,
    sources: Mapping[str, str] | None = None,
    device: str | None = None,
    trusted: Collection[str] = (),
    force: bool = False,
) -> Remade:
    """Make the model of a recipe.

    Args:
        file: `mergesearch.json` of an export, or a recipe alone (`MergeRecipe.to_dict` as JSON).
        out: the folder to make.
        sources: source name to where it lies now: a hub id, a folder or `package:NAME`.
        device: where to merge; by default that of the export, as last bits may depend on it, and the CPU where the
            file does not say.
        trusted: sources whose own Python code may be run.
        force: replace `out` when it is an earlier export, or empty.

    Raises:
        ExportError: the file is no recipe; sources are not there or hold something else; the weights are not those
            that the file tells; `out` cannot be made.
    """
    found = read_provenance(file)
    recipe = MergeRecipe.from_dict(found["recipe"])
    here = _Sources(recipe, sources or {}, found.get("sources", {}), frozenset(trusted))
    check_destination(out, force=force, needed=[*here.folders.values(), *here.adapters.values()])
    on = {"device": "cpu", "threads": torch.get_num_threads(), **found.get("made_on", {})}
    on["device"] = device or on["device"]
    _check_device(on["device"])
    settings = {name: found.get("settings", {}).get(name) for name in SETTINGS}
    rerank = _rerank_settings(found, recipe)
    spec = EvaluatorSpec(
        folders=here.folders,
        adapters=here.adapters,
        template=recipe.template,
        merged_places=here.places,
        collections=(),
        evaluation=EvaluationSettings(**settings, dtype=recipe.dtype, device=on["device"], rerank=rerank),
        threads=on["threads"],
        trusted=here.trusted,
        shared_tokens=here.shared_tokens,
    )

    def told(made: dict[str, Any]) -> dict[str, Any]:
        """What the file tells, and what it may have left out: earlier versions wrote less of it."""
        before = found.get("sources", {})
        return {
            **found,
            **made,
            "sources": {name: {**said, **before.get(name, {})} for name, said in made["sources"].items()},
            **{key: {**made[key], **found.get(key, {})} for key in ("encoding", "reranking") if key in made},
            "versions": {**found.get("versions", {}), **made["versions"]},
        }

    made = save_unscored(
        recipe,
        spec,
        here.checkpoints,
        out,
        force=force,
        told=told,
        check=lambda fingerprint: _check_same(found, fingerprint, spec),
        describing=_lacking(file),
    )
    return Remade(out, made["weights"], "weights" in found, tuple(concerns(licences_of(made))))


def read_provenance(file: Path) -> dict[str, Any]:
    """What `file` holds, as far as it is there: at least `format`, `fingerprint` and `recipe`.

    Raises:
        ExportError: it cannot be read, or holds no recipe that could be followed.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ExportError(f"{file} is no JSON: {error}") from error
    bare = isinstance(content, dict) and "recipe" not in content
    found = {"format": FORMAT, "recipe": content} if bare else content
    try:
        recipe = MergeRecipe.from_dict(found["recipe"])
        get_method(recipe.method)
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{file} is neither {RECIPE_FILE} of an export nor a recipe: {error}") from error
    except MergesearchError as error:
        raise ExportError(f"{file}: {error}") from error
    if found.get("format") != FORMAT:
        raise ExportError(f"{file} has format {found.get('format')!r}, expected {FORMAT}: was a newer version at work?")
    if found.setdefault("fingerprint", recipe.fingerprint) != recipe.fingerprint:
        raise ExportError(
            f"{file}: the recipe was changed: its fingerprint is {recipe.fingerprint[:12]}…, the file says "
            f"{found['fingerprint'][:12]}…. Merge from the file as it was exported, or from the recipe alone"
        )
    return found


def _rerank_settings(found: Mapping[str, Any], recipe: MergeRecipe) -> RerankSettings | None:
    """How a re-ranker was used; of a recipe alone its places tell that it is one."""
    said = found.get("settings", {}).get("rerank")
    if said is not None:
        return RerankSettings(**{**said, "tokens": None if said["tokens"] is None else tuple(said["tokens"])})
    whole = any(p == HEAD or p.startswith("decoder.") for g in recipe.groups for p in g.places)
    return RerankSettings() if whole else None


@contextmanager
def _lacking(file: Path) -> Iterator[None]:
    """What the card is written from, and the file has not."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{file} tells too little for a model card ({type(error).__name__}: {error}): was it made by an earlier "
            "version, or changed? Merge from its `recipe` alone, as a file of its own"
        ) from error


def _check_device(device: str) -> None:
    """Refuse a device that torch has not here."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ExportError(
            f"the merge is to be made on {device}, and torch sees no CUDA GPU here: give --device cpu. Should the last "
            "bits differ then, merge from the recipe alone"
        )


def _adapter_bases(described: Mapping[str, Any]) -> dict[str, str]:
    """Adapter to the source that is its base, where that is a source."""
    return {name: s["base"]["source"] for name, s in described.items() if (s.get("base") or {}).get("source")}


def _lay_in_a_folder(described: Mapping[str, Any] | None) -> bool:
    """Whether the export says that a source was not of the hub."""
    return described is not None and described.get("hub", "") is None


def _is_no_place(location: str) -> bool:
    return not location.startswith("package:") and not Path(location).expanduser().is_dir()


class _Sources:
    """The sources of a recipe, found and compared with what was merged.

    Raises:
        ExportError: naming every source that is not there, or holds something else.
    """

    def __init__(
        self, recipe: MergeRecipe, moved: Mapping[str, str], described: Mapping[str, Any], trusted: frozenset[str]
    ) -> None:
        self.recipe, self.trusted = recipe, trusted
        self.located: dict[str, Path] = {}
        self.folders: dict[str, Path] = {}
        self.adapters: dict[str, Path] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        bases = _adapter_bases(described)
        names = [ref.name for ref in recipe.sources]
        problems = [unknown("source", name, names) for name in (*moved, *trusted) if name not in names]
        for ref in recipe.sources:
            where = moved.get(ref.name, ref.location)
            hint = "" if ref.name in moved else f" Say where it lies now: --source {ref.name}=FOLDER."
            if ref.name not in moved and _lay_in_a_folder(described.get(ref.name)) and _is_no_place(where):
                # The hub is not asked: what has the same name there is somebody else's.
                problems.append(f"source {ref.name!r} lay in a folder, and there is no {where!r} here.{hint}")
                continue
            try:
                commit = ref.revision if where == ref.location and not Path(where).expanduser().is_dir() else None
                self.located[ref.name] = locate(where, revision=commit)
            except MergesearchError as error:
                problems.append(f"source {ref.name!r}: {error}{hint}")
        for name, found in self.located.items():
            try:
                self._open(name, found, self.located.get(bases.get(name, "")))
            except MergesearchError as error:
                problems.append(f"source {name!r}: {error}")
        if not problems:
            problems = self._differences()
        if problems:
            raise ExportError("\n".join(["the sources of the recipe are not at hand:", *problems]))

    def _open(self, name: str, found: Path, base: Path | None) -> None:
        folder = found
        if holds_adapter(found) or base is not None:
            folder = base or read_adapter_config(found).locate_base(Path())
            self.adapters[name] = found
        self.checkpoints[name] = open_source(name, folder, self.adapters.get(name))
        self.folders[name] = folder

    @cached_property
    def places(self) -> dict[str, frozenset[str]]:
        """Source to the places that are read from it."""
        merged = [p for g in self.recipe.groups if g.copy_from is None for p in g.places]
        found = {name: set(merged) for name in self.folders}
        for group in self.recipe.groups:
            if group.copy_from is not None and group.copy_from != self.recipe.template:
                found[group.copy_from] |= set(group.places)
        return {name: frozenset(places) for name, places in found.items()}

    @cached_property
    def shared_tokens(self) -> bool:
        """Whether word embeddings were merged over shared tokens: the recipe's hashes tell, and nothing else does."""
        plain = {ref.name: self.checkpoints[ref.name].content_hash for ref in self.recipe.sources}
        if EMBEDDINGS not in self.places[self.recipe.template]:
            return False
        return all(ref.content_hash != plain[ref.name] for ref in self.recipe.sources)

    def _differences(self) -> list[str]:
        template = self.recipe.template
        hashes = {name: c.content_hash for name, c in self.checkpoints.items()}
        if self.shared_tokens:
            layout = read_layout(self.folders[template], trust_remote_code=template in self.trusted)
            try:
                shared = share_tokens(self.checkpoints, template=template, layout=layout)
            except MergesearchError:  # they are other models, then, with nothing in common
                shared = None
            if shared is not None:
                hashes = {name: hash_of_shared(hashes[name], shared.rows[name]) for name in hashes}
        return [
            f"source {ref.name!r} in {self.located[ref.name]} holds something else than what was merged: its content "
            f"is {hashes[ref.name][:12]}…, the recipe's {ref.content_hash[:12]}…"
            + (f" (revision {ref.revision})." if ref.revision else ".")
            for ref in self.recipe.sources
            if hashes[ref.name] != ref.content_hash
        ]


def _check_same(found: Mapping[str, Any], fingerprint: str, spec: EvaluatorSpec) -> None:
    """Refuse weights that are not those that the file tells."""
    if found.get("weights", fingerprint) == fingerprint:
        return
    then, ours = found.get("versions", {}).get("export", {}), versions()
    other = [f"{name} {then[name]} → {ours.get(name, 'none')}" for name in then if then[name] != ours.get(name)]
    on = found.get("made_on", {})
    raise ExportError(
        f"the sources are those of the recipe, but the weights are not: {fingerprint[:12]}… here, "
        f"{found['weights'][:12]}… in the export. Last bits may depend on versions and on the device. Versions that "
        f"differ: {', '.join(other) or 'none'}; made on {on.get('device', 'an unknown device')}, here on "
        f"{spec.evaluation.device}. Take the same (--device), or merge from the recipe alone, without its fingerprint"
    )

"""`ResidentMerger`: sources stay where they are, and one model is overwritten in place, group by group."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from mergesearch.errors import MergeError, unknown
from mergesearch.merging.kernel import Part, Site, Workspace
from mergesearch.merging.registry import get_method
from mergesearch.merging.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.merging.declared import Bound
    from mergesearch.merging.method import MergeMethod
    from mergesearch.recipe import CoefficientValue, GroupRecipe, MergeRecipe

Content: TypeAlias = tuple[object, ...]

CHUNK_ELEMENTS = 1 << 18
"""Elements that a kernel sees at once: many enough to hide the cost of a call, few for a cache."""
GPU_CHUNK_ELEMENTS = 1 << 22
"""The same on other devices, where a call costs about as much and the work on an element far less."""
MAX_BUFFER_BYTES = 192 << 20
"""The most that a workspace's buffers take together."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What sources may be stored in."""


class ResidentMerger:
    """Overwrites the parameters of one model with merges of sources that are kept in memory.

    What is computed is float32 whatever the sources hold, and rounded once, to the target's dtype. Where the
    target is float32, results are written straight into it. Every parameter is merged on the device where it lies, and
    the model may lie on several of one kind. Sources that lie elsewhere come there part by part, in the dtype they are
    stored in. Memory beyond sources and target is a few chunks (see
    `merging/plan.py`), with two exceptions: of a tensor in `rows`, the merged rows are kept a second time in the
    target's dtype, and the option `arithmetic: mergekit` takes several copies of the largest tensor for each source.

    Between calls nobody else may write to target or sources. Not safe for use from several threads at once.

    Args:
        target: canonical name to the live, contiguous, floating-point parameter of the one model. It holds
            the template's weights at this point.
        sources: source name to its tensors by canonical name, in the dtype they are stored in; only what some
            group needs.
        places: canonical name to the part of the model it belongs to; groups are made of such places.
        rows: canonical name to the rows (int64) that are merged; of these tensors sources hold as many rows and no
            others. Rows that are not named stay as they are.
        chunk_elements: how many elements a kernel sees at once, unless a single row has more; None for what suits
            the device.
        statistics: folder that keeps what kernels found out about the sources, for later processes.

    Raises:
        MergeError: listing tensors that hold NaN or inf, do not have the target's shape, or share its memory.
    """

    def __init__(
        self,
        target: Mapping[str, torch.Tensor],
        sources: Mapping[str, Mapping[str, torch.Tensor]],
        places: Mapping[str, str],
        *,
        rows: Mapping[str, torch.Tensor] | None = None,
        chunk_elements: int | None = None,
        statistics: Path | None = None,
    ) -> None:
        self._model = {name: tensor.detach() for name, tensor in target.items()}
        self._rows = {name: chosen.to(self._model[name].device) for name, chosen in (rows or {}).items()}
        # What merges are written to: the model itself, or some rows of it on their own.
        self._target = self._model | {n: self._model[n].index_select(0, chosen) for n, chosen in self._rows.items()}
        self._sources = {
            source: {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            for source, tensors in sources.items()
        }
        self._names_in: dict[str, list[str]] = {}
        for name in self._target:
            self._names_in.setdefault(places[name], []).append(name)
        device = next(iter(self._target.values())).device
        self._chunk_elements = chunk_elements or chunk_for(device, len(self._sources))
        self._work = {d: Workspace(self._chunk_elements, d) for d in {t.device for t in self._target.values()}}
        self._statistics = Statistics(statistics, device.type)
        # What decided the content of each place; nothing is known of it after a failure.
        self._content: dict[str, Content] = {}
        # Places that hold what they held when the model was handed over: the template.
        self._untouched = set(self._names_in)
        self._check_tensors()
        self._largest = self._largest_element()

    @property
    def places(self) -> Mapping[str, Sequence[str]]:
        """The canonical names of the parameters at every place."""
        return self._names_in

    @property
    def workspace_bytes(self) -> int:
        """Scratch memory that is kept between calls, on all devices."""
        return sum(work.n_bytes for work in self._work.values())

    def apply(self, recipe: MergeRecipe) -> tuple[str, ...]:
        """Make the target what the recipe says, leaving groups alone that are so already.

        If it fails half-way, the places it was writing count as unknown and are written next time.

        Args:
            recipe: names only sources that were given, and groups that cover every place exactly once.

        Returns:
            Names of the groups that were written, in the recipe's order.

        Raises:
            MergeError: for a recipe that cannot be followed, before anything is written; or for results that
                are not finite in the target's dtype, naming the tensors.
        """
        method = get_method(recipe.method)
        decided_by = _decided_by(recipe)
        changed = [group for group in recipe.groups if self._differs(group, decided_by[group.name])]
        bound = self._check_recipe(method, recipe, changed)
        written = []
        for group in changed:
            if not self._holds_template(group, recipe):
                for place in group.places:
                    self._content.pop(place, None)
                    self._untouched.discard(place)
                if group.copy_from is None:
                    self._merge(method, bound[group.name], group, recipe)
                else:
                    self._copy(group, group.copy_from)
                for name in self._rows.keys() & set(self._names(group)):
                    self._model[name].index_copy_(0, self._rows[name], self._target[name])
                written.append(group.name)
            self._content.update(dict.fromkeys(group.places, decided_by[group.name]))
        return tuple(written)

    def fingerprint(self) -> str:
        """SHA-256 of the target as it is: names in order, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for name in sorted(self._model):
            tensor = self._model[name]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def _copy(self, group: GroupRecipe, source: str) -> None:
        for name in self._names(group):
            for out, piece in zip(*map(self._flat, (self._target[name], self._sources[source][name])), strict=True):
                out.copy_(_at(out.device, piece))
        self._refuse_non_finite(group, growth=1.0)

    @torch.no_grad()
    def _merge(self, method: MergeMethod, bound: Bound, group: GroupRecipe, recipe: MergeRecipe) -> None:
        sources = method.sources_of(recipe)
        content = {source.name: source.content_hash for source in recipe.sources}
        pair = bound.interpolation
        for name in self._names(group):
            whole = self._target[name]
            if not whole.numel():
                continue
            work = self._work[whole.device]
            stored = [self._sources[source][name] for source in sources]
            base = None if recipe.base is None else self._sources[recipe.base][name]
            if bound.as_mergekit:
                whole.copy_(_as_mergekit(method, bound, stored, base, whole.device))
                continue
            if pair:
                self._interpolate(whole, stored if base is None else (*stored, base), *pair, work)
                continue

            def read(
                stored: Sequence[torch.Tensor] = stored, base: torch.Tensor | None = base, work: Workspace = work
            ) -> Iterator[Part]:
                return self._parts(method, stored, base, work)

            shape, statistics = tuple(whole.shape), self._statistics
            site = Site(name, shape, sources, recipe.base, recipe.seed, read, statistics, content)
            prepared = method.prepare_for(site, bound.arguments, work)
            for view, part in zip(self._pieces(method, whole), read(), strict=True):
                out = view if view.dtype == torch.float32 else work.take(view)
                result = method.call(bound.arguments, part, out, work, site, prepared)
                if result.shape != view.shape:
                    raise TypeError(f"{method.name} made {result.shape} of {view.shape} in {name}")
                if result is not view:
                    view.copy_(result)
        # What mergekit rounds on the way may overflow where an exact merge does not.
        self._refuse_non_finite(group, math.inf if bound.as_mergekit else bound.growth)

    def _interpolate(
        self, whole: torch.Tensor, stored: Sequence[torch.Tensor], i: int, j: int, t: float, work: Workspace
    ) -> None:
        """Write a merge that is one lerp, in one pass over memory where nothing has to be moved or converted.

        torch computes a lerp in float32 and rounds it once, so whether it takes parts has no say in the result.
        """
        first, second = stored[i], stored[j]
        if first.dtype == second.dtype == whole.dtype and first.device == second.device == whole.device:
            torch.lerp(first, second, t, out=whole)
            return
        for out, *pieces in zip(*map(self._flat, (whole, first, second)), strict=True):
            work.release()
            x, y = (_as_float32(piece, work) for piece in pieces)
            written = out if out.dtype == torch.float32 else work.take(out)
            torch.lerp(x, y, t, out=written)
            if written is not out:
                out.copy_(written)

    def _flat(self, whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(whole.view(-1), self._chunk_elements)

    def _pieces(self, method: MergeMethod, whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One tensor in flat pieces, or in blocks of whole rows."""
        if not method.by_rows:
            return self._flat(whole)
        columns = whole.shape[-1] if whole.dim() else 1
        return torch.split(whole.view(-1, columns), max(1, self._chunk_elements // columns))

    def _parts(
        self, method: MergeMethod, stored: Sequence[torch.Tensor], base: torch.Tensor | None, work: Workspace
    ) -> Iterator[Part]:
        start = 0
        everything = stored if base is None else (*stored, base)
        for pieces in zip(*(self._pieces(method, tensor) for tensor in everything), strict=True):
            work.release()
            tensors = [_as_float32(piece, work) for piece in pieces]
            yield Part(tensors, None if base is None else tensors.pop(), start)
            start += pieces[0].numel()

    def _refuse_non_finite(self, group: GroupRecipe, growth: float) -> None:
        """Look for NaN and inf in what was written, unless arithmetic alone shows that there are none.

        Args:
            group: what was written.
            growth: no element is larger than `growth` times the largest of the sources.
        """
        names = self._names(group)
        limit = min(torch.finfo(self._target[name].dtype).max for name in names)
        # The factor covers intermediate results, such as the difference of two large numbers, and rounding.
        if 4 * growth * self._largest < limit:
            return
        bad = [name for name in names if not _finite(self._flat(self._target[name]))]
        if bad:
            dtype = str(self._target[bad[0]].dtype).removeprefix("torch.")
            raise MergeError(
                f"group {group.name!r}: the merge is NaN or infinite in {dtype} in {', '.join(bad)}. "
                f"Coefficients were {dict(group.coefficients)}; take smaller ones or a dtype of wider range."
            )

    def _names(self, group: GroupRecipe) -> list[str]:
        return [name for place in group.places for name in self._names_in[place]]

    def _holds_template(self, group: GroupRecipe, recipe: MergeRecipe) -> bool:
        """Whether the group is the template's, as the target was when it was handed over."""
        return group.copy_from == recipe.template and self._untouched.issuperset(group.places)

    def _differs(self, group: GroupRecipe, decided_by: Content) -> bool:
        return any(self._content.get(place) != decided_by for place in group.places)

    def _check_recipe(
        self, method: MergeMethod, recipe: MergeRecipe, changed: Sequence[GroupRecipe]
    ) -> dict[str, Bound]:
        """Everything that can be known to be wrong before the first byte is written."""
        bound = method.check(replace(recipe, groups=tuple(changed)))
        problems: list[str] = []
        covered = [place for group in recipe.groups for place in group.places]
        twice = sorted({place for place in covered if covered.count(place) > 1})
        problems += [f"place {place!r} belongs to more than one group." for place in twice]
        names = [group.name for group in recipe.groups]
        problems += [f"two groups are called {name!r}." for name in sorted({n for n in names if names.count(n) > 1})]
        problems += [f"place {place!r} belongs to no group." for place in self._names_in if place not in covered]
        problems += [unknown("place", place, self._names_in) for place in sorted(set(covered) - self._names_in.keys())]
        for name, tensor in self._target.items():
            if tensor.dtype != getattr(torch, recipe.dtype):
                problems.append(f"the recipe asks for {recipe.dtype}, but the model holds {name} in {tensor.dtype}.")
                break
        for group in changed if not problems else ():
            problems += self._missing(group, recipe)
        if problems:
            raise MergeError("\n".join(problems))
        return bound

    def _missing(self, group: GroupRecipe, recipe: MergeRecipe) -> list[str]:
        if self._holds_template(group, recipe):
            return []
        needed = [group.copy_from] if group.copy_from else [source.name for source in recipe.sources]
        names = self._names(group)
        gone = {source: [n for n in names if n not in self._sources.get(source, {})] for source in needed}
        return [
            f"group {group.name!r} needs tensors of source {source!r} that were not given: {lacking}."
            for source, lacking in gone.items()
            if lacking
        ]

    def _check_tensors(self) -> None:
        problems = [
            f"target {name} must hold contiguous floats; it is {tensor.dtype} with strides {tensor.stride()}."
            for name, tensor in self._target.items()
            if not (tensor.is_floating_point() and tensor.is_contiguous())
        ]
        written = {tensor.untyped_storage().data_ptr() for tensor in self._model.values() if tensor.numel()}
        for source, tensors in self._sources.items():
            for name, tensor in tensors.items():
                if name not in self._target:
                    problems.append(f"source {source!r} has {name}, which the target has not.")
                elif tensor.shape != self._target[name].shape:
                    want = tuple(self._target[name].shape)
                    problems.append(f"source {source!r}: {name} is {tuple(tensor.shape)}, the target's is {want}.")
                if tensor.dtype not in FLOATS:
                    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
                    problems.append(f"source {source!r}: {name} is {tensor.dtype}; what is merged is {dtypes}.")
                if tensor.untyped_storage().data_ptr() in written:
                    problems.append(f"source {source!r}: {name} shares memory with the model that is overwritten.")
        if problems:
            raise MergeError("\n".join(problems))

    def _largest_element(self) -> float:
        """Largest absolute value in any source; refuses NaN and inf, which would spread to every merge."""
        largest, problems = 0.0, []
        for source, tensors in self._sources.items():
            for name, tensor in tensors.items():
                if tensor.numel():
                    low, high = torch.stack(tensor.aminmax()).double().tolist()
                    if not max(-low, high) < float("inf") or low != low:
                        problems.append(f"source {source!r}: {name} holds NaN or inf.")
                    largest = max(largest, -low, high)
        if problems:
            raise MergeError("\n".join(problems))
        return largest


def chunk_for(device: torch.device, n_sources: int) -> int:
    """Elements that a kernel sees at once: fewer where buffers of many sources would pass `MAX_BUFFER_BYTES`."""
    most = CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS
    fitting = MAX_BUFFER_BYTES // (4 * most_buffers(n_sources))
    return min(most, 1 << fitting.bit_length() - 1)


def most_buffers(n_sources: int) -> int:
    """The most workspace buffers that any method takes, when all sources have to be converted; a test says so."""
    return 3 * n_sources + 8


def _as_mergekit(
    method: MergeMethod,
    bound: Bound,
    stored: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """The whole tensor as mergekit makes it of sources whose dtypes differ: in the one that holds them all."""
    assert method.mergekit is not None
    everything = stored if base is None else (*stored, base)
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in everything))
    tensors = [tensor.to(device, dtype) for tensor in everything]
    if base is None:
        return method.mergekit(tensors, **bound.arguments)
    return method.mergekit(tensors[:-1], tensors[-1], **bound.arguments)


def _as_float32(stored: torch.Tensor, work: Workspace) -> torch.Tensor:
    """The same on the workspace's device."""
    here = _at(work.device, stored)
    return here if here.dtype == torch.float32 else work.take(here).copy_(here)


def _at(device: torch.device, stored: torch.Tensor) -> torch.Tensor:
    """The same on a device, in the same dtype: conversion is faster there, and less to transfer.

    From page-locked memory this does not wait, so transfers are queued while the device works. Sources are
    never written to, so nothing can come too early.
    """
    return stored.to(device, non_blocking=True)


def _decided_by(recipe: MergeRecipe) -> dict[str, Content]:
    """Group name to everything that decides what is written there.

    Equal entries mean equal content. Comparing is many times faster than hashing, which matters where many
    groups merge in a few milliseconds, and lets groups be cut differently.
    """
    sources = tuple((source.name, source.content_hash) for source in recipe.sources)
    options = tuple(sorted(recipe.options.items()))
    shared = (recipe.method, options, sources, recipe.template, recipe.base, recipe.dtype, recipe.seed)
    return {group.name: (shared, group.copy_from, _frozen(group.coefficients)) for group in recipe.groups}


def _frozen(coefficients: Mapping[str, CoefficientValue]) -> tuple[object, ...]:
    return tuple(
        sorted(
            (name, tuple(sorted(value.items())) if isinstance(value, Mapping) else value)
            for name, value in coefficients.items()
        )
    )


def _finite(pieces: Sequence[torch.Tensor]) -> bool:
    # NaN and inf survive any sum, and summing is many times faster than looking at each element. Large finite
    # elements may overflow in a sum, so an infinite one is looked into. A sum in another dtype makes a copy of
    # what it sums: hence pieces.
    sums = torch.stack([piece.sum(dtype=torch.float32) for piece in pieces]).isfinite().tolist()
    return all(fine or bool(piece.isfinite().all()) for fine, piece in zip(sums, pieces, strict=True))

"""Strategies that propose whole generations.

Nothing about a generation is stored. It is replayed from the history: the algorithm starts from its seed, its
members are looked up among the trials, and once all have a score the algorithm is told and makes the next
generation. A member that anybody has scored already (an anchor, another strategy, an earlier generation)
costs no trial; one whose trial is in flight is waited for; the first that nobody evaluates is the proposal.
So parallel workers never produce a trial that the algorithm throws away, and a killed process leaves nothing
to repair.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from mergesearch.search.ledger import IN_FLIGHT, Ledger, score
from mergesearch.search.strategy import Proposal, Strategy, StrategyOptions, proposal_attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import FrozenTrial

    from mergesearch.search.points import Params, SearchSpace

IDLE_GENERATIONS = 100
"""After so many generations in a row without a point that is new, the algorithm has converged."""

GENE_CHARACTERS = 3_600
"""The most that a trial stores of its genes (675 numbers): storages limit what an attribute may weigh."""


@dataclass(frozen=True)
class Member:
    """One individual of a generation.

    Attributes:
        params: the point it is evaluated at.
        genes: what the algorithm itself works with beyond the point: float32 numbers, so that they come back
            from a storage as they were. Too many of them are not stored: an algorithm has to do without.
    """

    params: Params
    genes: tuple[float, ...] = ()


Scores = tuple[float, ...]


class Algorithm(ABC):
    """A generational optimizer, deterministic in its seed and in what it is told. Values are maximised."""

    @abstractmethod
    def generation(self, index: int, given: Mapping[int, Member]) -> list[Member]:
        """The members of the next generation.

        Args:
            index: counts generations from 0; all randomness of this call derives from it and the seed.
            given: members that exist already, by position; they stand for what would be drawn there. (Linear
                algebra may draw differently on another machine: what was evaluated is what counts.) Those
                whose genes were not stored have none.
        """

    @abstractmethod
    def tell(self, members: Sequence[Member], values: Sequence[Scores], *, new: bool) -> None:
        """The scores of a generation, in the order of its members.

        Args:
            members: as `generation` returned them.
            values: finite; one each, or one per objective for strategies that seek a front.
            new: whether any of them needed a trial; if not, the algorithm walks on trodden paths.
        """

    def converged(self) -> bool:
        """Whether another generation would bring nothing."""
        return False


@dataclass
class _Replay:
    """The replay so far, kept to save time; it is dropped as soon as the history contradicts it."""

    algorithm: Algorithm
    adopted: list[int]
    told: list[tuple[list[Member], list[Scores | None]]] = field(default_factory=list)
    current: list[Member] | None = None
    idle: int = 0


@dataclass(frozen=True)
class _View:
    """What a strategy sees in a history."""

    ledger: Ledger
    own: dict[tuple[int, int], FrozenTrial]
    adopted: list[FrozenTrial]
    adopted_in_flight: bool


class PopulationStrategy(Strategy):
    """A strategy that runs an `Algorithm` by whole generations.

    A member whose trial failed counts as slightly worse than the worst of its generation. A generation in
    which everything failed teaches nothing: another is drawn from the same distribution.
    """

    adopts: bool = False
    """Whether the start depends on earlier trials; it then waits for those in flight."""

    def __init__(self, space: SearchSpace, options: StrategyOptions, seed: int) -> None:
        super().__init__(space, options, seed)
        words = [self.name, seed, options.model_dump(mode="json"), [d.to_dict() for d in space.dimensions]]
        self._key = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:8]
        self._memo: _Replay | None = None

    @property
    def seeks_front(self) -> bool:
        """Whether the algorithm is told every objective of a study that has several, rather than their mean."""
        return False

    def told_of(self, value: float, objectives: Scores | None) -> Scores:
        """What the algorithm is told of a trial; where it has no objectives its score is each of them."""
        if not self.seeks_front or self.objectives is None:
            return (value,)
        return objectives or (value,) * len(self.objectives.names)

    @abstractmethod
    def start(self, adopted: Sequence[FrozenTrial]) -> Algorithm:
        """The algorithm in its first state.

        Args:
            adopted: scored trials of the space from before this strategy's first, in number order; none
                unless `adopts`.
        """

    def founders(self, adopted: Sequence[FrozenTrial]) -> list[Params]:  # noqa: ARG002
        """Points of earlier trials that open generation 0."""
        return []

    def propose(self, history: Sequence[FrozenTrial], number: int) -> Proposal | None:  # noqa: ARG002
        """The first member of the current generation that nobody evaluates."""
        step = self._step(history)
        if isinstance(step, Ending):
            return None
        generation, position, member = step
        attrs: dict[str, Any] = {"strategy": self.name, "key": self._key}
        attrs |= {"generation": generation, "member": position}
        genes = pack_genes(member.genes)
        if genes and len(genes) <= GENE_CHARACTERS:
            attrs["genes"] = genes
        return Proposal(dict(member.params), attrs, f"{self.name}:{self._key}:{generation}:{position}")

    def exhausted(self, history: Sequence[FrozenTrial]) -> bool:
        """Whether the algorithm has converged, or the space is used up."""
        return self._step(history) is Ending.CONVERGED

    def _step(self, history: Sequence[FrozenTrial]) -> tuple[int, int, Member] | Ending:
        view = self._view(history)
        if view.adopted_in_flight:
            return Ending.WAIT
        if self._used_up(view.ledger):
            return Ending.WAIT if view.ledger.in_flight else Ending.CONVERGED
        if not self.space.free:
            return 0, 0, Member(self.space.snap({d.name: d.low for d in self.space.dimensions}))
        if self._memo is None or not self._holds(self._memo, view):
            self._memo = _Replay(self.start(view.adopted), [t.number for t in view.adopted])
        return self._advance(self._memo, view)

    def _advance(self, replay: _Replay, view: _View) -> tuple[int, int, Member] | Ending:
        while True:
            index = len(replay.told)
            if replay.current is None:
                if replay.algorithm.converged() or replay.idle >= IDLE_GENERATIONS:
                    return Ending.CONVERGED
                replay.current = replay.algorithm.generation(index, self._given(index, view))
            members = replay.current
            waiting = False
            for position, member in enumerate(members):
                record = view.ledger.at(self.space.find(member.params))
                if not record.scored and record.in_flight:
                    waiting = True
                elif not record.scored and (index, position) not in view.own:
                    return index, position, member
            if waiting:
                return Ending.WAIT
            values = self._values(members, view)
            new = any((index, position) in view.own for position in range(len(members)))
            replay.idle = 0 if new else replay.idle + 1
            known = [v for v in values if v is not None]
            if known:
                failed = tuple(math.nextafter(min(column), -math.inf) for column in zip(*known, strict=True))
                replay.algorithm.tell(members, [failed if v is None else v for v in values], new=new)
            replay.told.append((members, values))
            replay.current = None

    def _view(self, history: Sequence[FrozenTrial]) -> _View:
        own: dict[tuple[int, int], FrozenTrial] = {}
        for trial in history:
            attrs = proposal_attrs(trial)
            if attrs.get("key") == self._key and self.space.find(trial.params) is not None:
                own.setdefault((int(attrs["generation"]), int(attrs["member"])), trial)
        adopted: list[FrozenTrial] = []
        in_flight = False
        if self.adopts:
            first = min((t.number for t in own.values()), default=None)
            before = [t for t in history if first is None or t.number < first]
            inside = [t for t in before if self.space.find(t.params) is not None]
            adopted = [t for t in inside if score(t) is not None]
            in_flight = first is None and any(t.state in IN_FLIGHT for t in inside)
        return _View(Ledger(self.space, history), own, adopted, in_flight)

    def _used_up(self, ledger: Ledger) -> bool:
        return self.space.size() is not None and len(ledger.closed(retries=0)) == self.space.size()

    def _given(self, index: int, view: _View) -> dict[int, Member]:
        """Members of a generation that are fixed: founders, and what was proposed for it before."""
        founders = self.founders(view.adopted) if index == 0 else []
        given = {position: Member(params) for position, params in enumerate(founders)}
        for (generation, position), trial in view.own.items():
            if generation == index:
                genes = unpack_genes(proposal_attrs(trial).get("genes", ""))
                given[position] = Member(self.space.snap(trial.params), genes)
        return given

    def _values(self, members: Sequence[Member], view: _View) -> list[Scores | None]:
        found = [view.ledger.at(self.space.find(m.params)) for m in members]
        return [None if record.value is None else self.told_of(record.value, record.objectives) for record in found]

    def _holds(self, replay: _Replay, view: _View) -> bool:
        """Whether replaying the history from the start would lead where the memo is."""
        if replay.adopted != [t.number for t in view.adopted]:
            return False
        if any(self._values(members, view) != values for members, values in replay.told):
            return False
        generations = [members for members, _ in replay.told] + ([replay.current] if replay.current else [])
        return all(
            generation < len(generations)
            and position < len(generations[generation])
            and self.space.find(trial.params) == self.space.find(generations[generation][position].params)
            for (generation, position), trial in view.own.items()
        )


def pack_genes(genes: Sequence[float]) -> str:
    """Numbers as text: little-endian float32 in base64, a third of the characters of decimals."""
    return base64.b64encode(struct.pack(f"<{len(genes)}f", *genes)).decode()


def unpack_genes(packed: Any) -> tuple[float, ...]:
    """What `pack_genes` packed; none where an attribute holds something else."""
    try:
        data = base64.b64decode(packed, validate=True)
        return struct.unpack(f"<{len(data) // 4}f", data)
    except (TypeError, ValueError, binascii.Error, struct.error):
        return ()


class Ending(Enum):
    """Why there is no proposal."""

    WAIT = auto()
    CONVERGED = auto()

"""The contract between a search strategy and whoever drives it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial

    from mergesearch.evaluation.objectives import Objectives
    from mergesearch.search.points import Params, SearchSpace
    from mergesearch.surrogate.report import ScreeningReport
from mergesearch.surrogate.screening import Screening

PROPOSAL_ATTR = "proposal"
"""The trial user attribute that holds `Proposal.attrs`."""

SOURCE_ATTR = "source_alone"
"""The trial user attribute of a source that was evaluated alone: the source's name."""


class StrategyOptions(BaseModel):
    """What a study file may say beside a strategy's name. Closed: unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


@dataclass(frozen=True)
class Proposal:
    """A point to evaluate.

    Attributes:
        params: dimension name to value; always a point of the strategy's space.
        attrs: stored with the trial under `PROPOSAL_ATTR` (plain JSON, small). A strategy finds its own
            trials by it again.
        shown: further attributes of the trial, for people: each under its own name.
        slot: the proposal's name within the study. Two coordinators that ask with the same history are given
            the same slot, and only one of them may create its trial.
    """

    params: Params
    attrs: dict[str, Any] = field(default_factory=dict)
    slot: str = ""
    shown: dict[str, float] = field(default_factory=dict)


class Strategy(ABC):
    """Decides which point is evaluated next. Values are maximised.

    A strategy is a pure function of its space, options, seed and the history it is shown: instances keep only
    memos that change nothing but speed, so a fresh process goes on where another was killed. It is asked by
    one thread at a time.

    The history that a caller shows holds ALL trials of the study in number order: COMPLETE (with a value),
    PRUNED (with a value where one is known), FAIL, and RUNNING or WAITING (in flight). Trials that carry no
    parameters, or parameters that are no point of the space, are anchors from outside; strategies pass over
    them. Trials that another strategy proposed may occur and are learned from.

    An implementation guarantees:
      - every proposal is a point of the space;
      - equal history and number (and point that is near) give an equal proposal, in every process;
      - `propose` returns None only while a trial of the history is in flight, or when `exhausted` is True;
      - it raises StudyFileError from the constructor when it cannot search this space with these options.
    """

    name: ClassVar[str]
    """What study files call it."""
    title: ClassVar[str]
    """For people: one line."""
    paper: ClassVar[str] = ""
    """URL of what it follows."""
    finite: ClassVar[bool] = False
    """Whether it comes to an end by itself in every space that it accepts, so that a study needs no budget."""
    ends_early: ClassVar[bool] = False
    """Whether it may stop before its budget or its `planned` points are used up."""
    exhausted_because: ClassVar[str] = "the search space is exhausted"
    """What people are told when there will be no further proposal."""
    started: ClassVar[Mapping[str, Any]] = {}
    """Options that have other defaults where a study starts from another one's trials."""
    needs_embeddings: ClassVar[bool] = False
    """Whether it predicts from the embeddings of evaluated merges, which workers then keep. It is given a
    `screener` before it is asked for a proposal."""
    screener: Callable[[Screening], ScreeningReport] | None = None
    """Works out on a worker what the strategy predicts from; it blocks, and has one answer for equal questions."""
    workers: int = 1
    """How many trials may be in flight, for strategies that propose several at a time."""
    metric: str = "ndcg@10"
    """What trials are scored by, for strategies that predict it."""
    objectives: Objectives | None = None
    """The study's objectives and guards, for strategies that seek a whole Pareto front or predict scores per
    collection. What others are told of a trial, its value less a penalty, holds the guards already."""
    Options: ClassVar[type[StrategyOptions]]
    """Its options, typed, documented, with a vetted default each."""

    def __init__(self, space: SearchSpace, options: StrategyOptions, seed: int) -> None:
        self.space = space
        self.options = options
        self.seed = seed

    @abstractmethod
    def propose(self, history: Sequence[FrozenTrial], number: int) -> Proposal | None:
        """The next point, or None to wait for trials in flight.

        Args:
            history: all trials so far, in number order.
            number: of the trial that the proposal will become.
        """

    def propose_near(self, history: Sequence[FrozenTrial], number: int, near: Params | None) -> Proposal | None:  # noqa: ARG002
        """Like `propose`, for a worker that evaluated the point `near` last.

        A worker is faster where its points agree in their first dimensions. This may change the order of proposals,
        never what is proposed.
        """
        return self.propose(history, number)

    @property
    def repeated_prefixes(self) -> int:
        """Between how many prefixes (values of the first dimensions) its proposals go to and fro; 0 if they share none.

        Workers keep the hidden states of so many, where there is room.
        """
        return 0

    def exhausted(self, history: Sequence[FrozenTrial]) -> bool:  # noqa: ARG002
        """Whether there will be no further proposal, whatever trials in flight bring."""
        return False

    def planned(self) -> int | None:
        """How many points it will propose on its own account at most; None for as many as the budget allows."""
        return None

    def plans(self, params: Params) -> bool:  # noqa: ARG002
        """Whether a point is certainly among those that `planned` counts."""
        return False


def proposal_attrs(trial: FrozenTrial) -> Mapping[str, Any]:
    """What `Proposal.attrs` was when the trial was proposed; empty for anchors."""
    attrs = trial.user_attrs.get(PROPOSAL_ATTR)
    return attrs if isinstance(attrs, Mapping) else {}

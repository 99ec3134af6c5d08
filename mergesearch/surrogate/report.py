"""What `screen` answers: plain numbers only, so that `dataclasses.asdict` makes JSON of it."""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[float, ...]
"""A position in the unit cube [0, 1]^D."""


@dataclass(frozen=True)
class Pick:
    """A point to evaluate.

    Attributes:
        point: its coordinates.
        mean: predicted dev score.
        sd: standard deviation of the prediction.
        objective: predicted objective.
        acquisition: objective plus exploration times s.d., when it was picked.
    """

    point: Point
    mean: float
    sd: float
    objective: float
    acquisition: float


@dataclass(frozen=True)
class LeftOut:
    """An evaluated merge, and what the others say about it.

    Attributes:
        key: what it is called.
        measured: its dev score.
        predicted: the same, predicted from the other merges.
        sd: standard deviation of that prediction.
        embedding_error: root mean square distance of its embeddings from the predicted ones, per text; of its logits,
            per pair, see `PairBank.gram`.
    """

    key: str
    measured: float
    predicted: float
    sd: float
    embedding_error: float


@dataclass(frozen=True)
class Landscape:
    """Predicted dev scores over the coordinates that matter most, elsewhere at the best point known or predicted.

    Attributes:
        coordinates: indices of one or two coordinates, the most important first; none without coordinates.
        positions: the grid's positions per coordinate.
        means: predicted dev scores, the last coordinate varying fastest.
        importance: per coordinate of the space, the variance of predicted scores as it alone varies.
    """

    coordinates: tuple[int, ...]
    positions: tuple[tuple[float, ...], ...]
    means: tuple[float, ...]
    importance: tuple[float, ...]


@dataclass(frozen=True)
class ScreeningReport:
    """What a screening found.

    Attributes:
        picks: points to evaluate, in this order; fewer than asked for, or none, where a lattice is used up.
        left_out: calibration, one row per evaluated merge.
        lengths: length scale per coordinate.
        n_screened: candidates that were scored.
        best_measured: the highest measured dev score.
        improvement: predicted dev score of the best prediction among open candidates, less `best_measured`. The
            best is that of the highest objective; may be negative; -inf where nothing is open.
        noise: standard error of that difference, paired over queries.
        optimism: how much the highest of all predicted and measured dev scores is expected to overstate itself.
        replay_error: mean absolute difference between dev scores measured and computed here from the same embeddings:
            rounding and ties; more means that points, embeddings and scores do not belong together.
        landscape: for a figure.
    """

    picks: tuple[Pick, ...]
    left_out: tuple[LeftOut, ...]
    lengths: Point
    n_screened: int
    best_measured: float
    improvement: float
    noise: float
    optimism: float
    replay_error: float
    landscape: Landscape

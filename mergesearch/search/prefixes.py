"""Where trials of a search repeat the lower part of a model, and what it saves not to run it again.

A boundary S lies below layer S (from 0): the hidden states there depend on the embeddings and on layers 0 … S−1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergesearch.search.prompts import of_documents

if TYPE_CHECKING:
    from mergesearch.search.dimension import Dimension
    from mergesearch.search.points import SearchSpace
    from mergesearch.search.strategy import Strategy


def useful_boundaries(strategy: Strategy, lowest: Mapping[str, float], n_layers: int) -> tuple[int, ...]:
    """The boundaries at which hidden states of one trial may serve another, in ascending order.

    That is where something is searched above only, and either nothing is searched below or the strategy repeats what
    lies below on purpose. It does so by the order of dimensions: those that act above have to come last.

    Args:
        strategy: with its space.
        lowest: the lowest layer of every merged group; -1 for embeddings, infinite for what follows the layers.
        n_layers: transformer blocks of the model.
    """
    acts_from = list(lowest_layers(strategy.space, lowest).values())
    found = []
    for boundary in sorted({int(min(layer, n_layers)) for layer in acts_from}):
        above = [layer >= boundary for layer in acts_from]
        if boundary > 0 and (all(above) or (strategy.repeated_prefixes and above == sorted(above))):
            found.append(boundary)
    return tuple(found)


def lowest_layers(space: SearchSpace, lowest: Mapping[str, float]) -> dict[str, float]:
    """The lowest layer that every dimension with a choice acts on, in their order; `lowest` as above.

    Prompts act on no layer, but another text before documents makes other documents. One before queries leaves all
    hidden states of documents as they are: as if it acted above the last layer.
    """

    def acts_from(dimension: Dimension) -> float:
        groups = [lowest[g] for b in space.bindings if b.shares.get(dimension.name) for g in b.groups]
        return min(groups, default=-1 if of_documents(dimension) else math.inf)

    return {d.name: acts_from(d) for d in space.free}


def share_run(space: SearchSpace, lowest: Mapping[str, float], boundaries: tuple[int, ...], n_layers: int) -> float:
    """The share of all layers that one worker runs for a grid in the order of prefixes, between 0 and 1.

    The layers between two boundaries are run once for every combination of values that act below the upper one. That
    queries are run again behind another prompt is left out: they are few beside the documents.
    """
    acts_from = lowest_layers(space, lowest)
    run = 0.0
    for start, end in zip((0, *boundaries), (*boundaries, math.inf), strict=True):
        below = [len(d.choices() or ()) for d in space.free if acts_from[d.name] < end]
        run += (min(end, n_layers) - start) * math.prod(below)
    return run / (n_layers * math.prod(len(d.choices() or ()) for d in space.free))

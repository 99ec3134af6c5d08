"""What the comparison will cost, before any of it is paid for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from mergesearch.planning import Table, make_plan
from mergesearch.protocols.limited_data import RIVAL, LimitedDataProtocol, is_fixed
from mergesearch.token_counts import count_tokens

BACKWARD = 3
"""Training a text costs about as much as encoding it three times: forward, and back through every frozen layer."""


@dataclass(frozen=True)
class Step:
    """One kind of work.

    Attributes:
        what: in words.
        times: how often it is done, at most.
        tokens: that each encodes, about.
        seconds: that each takes, about.
    """

    what: str
    times: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The work in its order, and what an earlier process has done of it is not taken off."""

    steps: tuple[Step, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"steps": [asdict(s) for s in self.steps], "seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Of everything, about and at most."""
        return sum(s.times * s.seconds for s in self.steps)

    def table(self) -> Table:
        """Steps with their cost."""
        rows: list[tuple[Any, ...]] = [
            (s.what, s.times, f"{s.tokens:,}", _minutes(s.seconds), _minutes(s.times * s.seconds)) for s in self.steps
        ]
        rows.append(("everything, at most", "", "", "", _minutes(self.seconds)))
        return "plan, from nothing", ["what", "times", "tokens each", "minutes each", "minutes"], rows


def plan_limited_data(protocol: LimitedDataProtocol) -> Plan:
    """Count and estimate; loads no weights, runs for seconds."""
    return Plan((*_dev(protocol), *_training(protocol), _test(protocol)))


def _dev(protocol: LimitedDataProtocol) -> Iterator[Step]:
    for study in protocol.studies:
        plan = make_plan(study)
        seconds = plan.seconds_per_trial * (plan.layer_share or 1) / plan.workers
        tokens, trials = sum(plan.tokens_per_trial.values()), plan.trials or 0
        yield Step(f"{study.name}: trials on all dev queries", trials, tokens, seconds)
        if not is_fixed(study):
            repeats = protocol.settings.repeats
            yield Step(f"{study.name}: trials on {repeats} samples", trials * repeats, tokens, seconds)


def _training(protocol: LimitedDataProtocol) -> Iterator[Step]:
    """Up to all passes over 80% of the examples, and as many over all of them."""
    settings, first = protocol.settings, protocol.first
    expert = settings.rival.expert
    tokens, per_token = _of_a_trial(protocol)
    texts = sum(len(c.query_ids) + len(c.doc_ids) for c in first.collections)
    per_example = tokens / texts * (2 + expert.negatives)
    everything = sum(len(c.query_ids) for c in first.collections)
    few = settings.queries * len(first.collections)
    for queries, times in ((everything, 1), (few, settings.repeats)):
        trained = round(1.8 * expert.epochs * queries * expert.positives * per_example)
        what = f"{RIVAL}: two trainings on {queries} queries"
        yield Step(what, times, trained, BACKWARD * trained * per_token)


def _test(protocol: LimitedDataProtocol) -> Step:
    settings, first = protocol.settings, protocol.first
    held_out = tuple(spec.load() for spec in first.collection_specs(test=True))
    tokens = sum(c.tokens for c in count_tokens(replace(first, collections=held_out)).values())
    choices = len(settings.rules) * len(protocol.numbers)
    models = 1 + len(protocol.numbers)
    for study in protocol.studies:
        points = study.planned_trials if is_fixed(study) else None
        models += min(choices, points or choices)
    return Step("test: models, each read once", models, tokens, tokens * _of_a_trial(protocol)[1])


def _of_a_trial(protocol: LimitedDataProtocol) -> tuple[int, float]:
    """Tokens, and seconds for each."""
    plan = make_plan(protocol.first)
    tokens = sum(plan.tokens_per_trial.values())
    return tokens, plan.seconds_per_trial / tokens


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"

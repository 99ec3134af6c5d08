"""The outcome of a study in a sentence, for a reader who reads no further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mergesearch.evaluation.labels import PSEUDO
from mergesearch.results.report.cautions import ALPHA, sentence
from mergesearch.results.report.held_out import HeldOut
from mergesearch.results.tested import shown_p
from mergesearch.results.view import StudyView
from mergesearch.study_recipes import UNIFORM_AVERAGE

Tone = Literal["good", "open", "bad"]


@dataclass(frozen=True)
class Answer:
    """The headline of a report.

    Attributes:
        sentence: what was found.
        more: what it rests on, in a sentence or two.
        tone: `good` where the merge is clearly better, `bad` where it is not to be used, `open` in between.
    """

    sentence: str
    more: str
    tone: Tone


def answer(view: StudyView, tests: Sequence[HeldOut]) -> Answer:
    """By the rule of `choose` on dev queries and, where they were read, by test queries."""
    choice = view.choice
    if choice is None:
        return Answer("Nothing has been scored yet.", "Run the study, then make the report again.", "open")
    if choice.verdict == "source":
        return Answer(f"Keep {choice.label}.", sentence(choice.reason()), "bad")
    if choice.verdict == "unknown":
        highest = f"Trial {choice.number} scores highest, and nothing says that merging helped."
        return Answer(highest, sentence(choice.reason()), "open")
    if not tests:
        recommended = f"The search recommends the merge of trial {choice.number}."
        kind = f" ({PSEUDO})" if choice.on_queries else ""
        more = f"On the dev queries{kind} {choice.reason()}. Whether that holds on test queries is not known yet."
        return Answer(recommended, more, "open")
    return _tested(choice.number, [t for t in tests if t.split == tests[0].split])


def _tested(number: int, tests: Sequence[HeldOut]) -> Answer:
    """What the test queries say of a recommended merge."""
    where = " and ".join(t.where for t in tests)
    against = [t for read in tests for t in read.tests]
    sources = [t for t in against if t.against.endswith(" alone")]
    averages = [t for t in against if t.against == UNIFORM_AVERAGE]
    plain = ""
    if any(t.comparison.mean_difference < 0 and t.p_holm < ALPHA for t in averages):
        plain = " Plain averaging, without any search, is better still."
    elif any(t.p_holm >= ALPHA for t in averages):
        plain = " It is not clearly different from plain averaging, which needs no search."
    worse = [t for t in sources if t.comparison.mean_difference < 0]
    clear = all(t.comparison.mean_difference > 0 and t.p_holm < ALPHA for t in sources)
    if not sources and not any(read.same for read in tests):
        few = f"The merge of trial {number} was read on too few test queries to compare it with a source."
        return Answer(few, f"A paired test on {where} needs two or more." + plain, "open")
    if not sources:
        same = f"The merge of trial {number} scores the same as a source on {where}."
        return Answer(same, "Nothing is left to test." + plain, "open")
    if any(t.p_holm < ALPHA for t in worse):
        names = " and ".join(dict.fromkeys(t.against for t in worse if t.p_holm < ALPHA))
        return Answer(f"The merge of trial {number} is worse than {names} on test queries.", plain.strip(), "bad")
    if clear:
        better = f"The merge of trial {number} is better than every source alone."
        least = min(t.comparison.mean_difference for t in sources)
        p = shown_p(max(t.p_holm for t in sources))
        p = f"p {p}" if p.startswith("<") else f"p = {p}"
        more = (
            f"On test queries of {where} it gains {least:.4f} or more over each of them ({p} or less, Holm-corrected)."
        )
        return Answer(better, more + plain, "good" if not plain else "open")
    if worse:
        names = " and ".join(dict.fromkeys(t.against for t in worse))
        lower = f"On test queries {names} scores higher than the merge of trial {number}."
        return Answer(lower, "The difference may be luck." + plain, "bad")
    unclear = f"The merge of trial {number} scores higher than every source, but not clearly so."
    return Answer(unclear, f"On test queries of {where} luck alone may explain a difference." + plain, "open")

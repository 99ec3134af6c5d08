"""What to keep in mind before the outcome of a study is believed, in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mergesearch.results.readings import times_read
from mergesearch.results.report.held_out import HeldOut
from mergesearch.results.report.stability import Candidate
from mergesearch.results.tested import shown_p
from mergesearch.results.view import StudyView, TrialView
from mergesearch.study import FEW_QUERIES

DOMINATES = 0.8
"""Share of the gain, or of the weight, from which on one collection decides alone."""
WAVERS = 0.5
"""The choice is called unsure where fewer of the resamples choose the same."""
ALPHA = 0.05
EQUAL = 1e-9
NEAR_BORDER = 1e-6
"""Of a range's width."""


@dataclass(frozen=True)
class Caution:
    """One thing to keep in mind.

    Attributes:
        title: a few words.
        text: a sentence or two, with what to do.
        serious: it may overturn the conclusion.
    """

    title: str
    text: str
    serious: bool = False


def cautions(view: StudyView, tests: Sequence[HeldOut], candidates: Sequence[Candidate]) -> tuple[Caution, ...]:
    """Everything that speaks against trusting the outcome, serious things first."""
    found = [
        *_of_the_choice(view, tests),
        *_of_the_test(view, tests),
        *_of_pseudo_queries(view, tests),
        *_of_the_queries(view),
        *_of_stability(view, candidates),
        *_of_the_space(view),
        *_of_collections(view),
        *_of_trials(view),
    ]
    return tuple(sorted(found, key=lambda c: not c.serious))


def _of_the_choice(view: StudyView, tests: Sequence[HeldOut]) -> Iterator[Caution]:
    choice = view.choice
    if choice is None:
        yield Caution("Nothing is scored yet", "No trial has a score, so there is nothing to conclude.", serious=True)
        return
    values = {t.value for t in view.scored if t.value is not None}
    if len(view.scored) > 1 and max(values) - min(values) < EQUAL:
        text = "Every merge scores the same on the dev queries, so they cannot tell merges apart."
        yield Caution("All trials are equal", text, serious=True)
        return
    if choice.verdict == "unknown":
        text = (
            "No source alone was evaluated, so nothing says that merging gained anything. Run the study on with "
            "`search: {enqueue: [sources, uniform]}`."
        )
        yield Caution("No source to compare with", text, serious=True)
    elif choice.verdict == "source":
        yield Caution("No merge beats the best source by more than luck", sentence(choice.reason()), serious=True)
    elif choice.gain_interval is not None and choice.gain_interval[0] <= 0:
        title = "The winner is within the noise of a source" + (" on dev queries" if tests else "")
        yield Caution(title, sentence(choice.reason()), serious=not tests)  # test queries say more
    uniform = view.uniform
    plain = uniform is not None and uniform.value is not None and uniform.number != choice.number
    if plain and uniform is not None and choice.verdict == "merge" and (uniform.value or 0.0) >= choice.expected:
        text = (
            f"Equal weights score {uniform.value:.4f} on the dev queries without any search; {choice.expected:.4f} is "
            "to be expected of the chosen merge once its luck is taken off."
        )
        yield Caution("Plain averaging may do as well", text)


def _of_the_test(view: StudyView, tests: Sequence[HeldOut]) -> Iterator[Caution]:
    if view.choice is not None and not tests:
        text = (
            "All scores below come from the queries that chose the merge. `mergesearch evaluate "
            f"{view.study.parsed.path.name}` scores it, every source and the uniform average on the test split."
        )
        yield Caution("The test split was not read", text, serious=True)
    merged = view.choice is not None and view.choice.verdict != "source"
    what = "merge" if merged else "choice"
    for t in tests:
        for test in t.tests:
            c = test.comparison
            p = shown_p(test.p_holm)
            p = f"p {p}" if p.startswith("<") else f"p = {p}"
            numbers = f"{c.mean_difference:+.4f} ({p} after Holm's correction)".replace("-", "−")
            if c.mean_difference < 0 and test.p_holm < ALPHA:
                title = f"On {t.split} queries of {t.scores.collection} the {what} is worse than {test.against}"
                yield Caution(title, f"The difference is more than luck: {numbers}.", serious=True)
            elif test.p_holm >= ALPHA and merged:
                title = f"No clear difference from {test.against} on {t.split} queries"
                yield Caution(title, f"On {t.scores.collection} the merge gains {numbers}: luck alone may explain it.")
    entries = view.study.parsed.content.evaluation.collections
    pooled = [c.name for c in entries if c.pool is not None and c.pool.test_negatives is None]
    if tests and pooled:
        text = (
            f"Dev queries of {', '.join(pooled)} rank a smaller corpus (`pool`), test queries the whole one. Each "
            "split compares models by itself; the distance between a dev and a test score says nothing."
        )
        yield Caution("Dev and test scores are on different scales", text)
    times = times_read(view.readings)
    if times > 1:
        text = (
            f"This study's test split has been read {times} times. Each choice that was made with these scores in mind "
            "wears it out: the next score is a little more of a selection score."
        )
        yield Caution(f"The test split was looked at {times} times", text)


def _of_pseudo_queries(view: StudyView, tests: Sequence[HeldOut]) -> Iterator[Caution]:
    names = [c.name for c in view.study.collection_specs() if c.pseudo_queries]
    if view.choice is None or not names:
        return
    text = (
        f"The queries of {' and '.join(names)} were made from its documents. A merge that finds a document by "
        "its own words need not find what users ask for: judged queries, be they few, say more (docs/pseudo.md)."
    )
    judged = [t for t in tests if not t.pseudo]
    yield Caution(f"The merge was chosen{view.choice.on_queries}", text, serious=not judged)


def _of_the_queries(view: StudyView) -> Iterator[Caution]:
    if view.chosen is None or view.chosen.result is None:
        return
    n = sum(len(c.query_ids) for c in view.chosen.result.collections)
    if n < FEW_QUERIES:
        text = (
            f"The merge was chosen on {n} queries. Below {FEW_QUERIES} the best of many trials owes much of its score "
            "to luck; more judged queries help more than more trials."
        )
        yield Caution("Few dev queries", text)


def _of_stability(view: StudyView, candidates: Sequence[Candidate]) -> Iterator[Caution]:
    mine = next((c for c in candidates if view.choice is not None and c.trial.number == view.choice.number), None)
    if mine is not None and mine.chosen < WAVERS:
        text = (
            f"Other dev queries of the kind would have chosen the same merge in {mine.chosen:.0%} of cases. Which of "
            "several good merges it is matters little; that its coefficients mean something should not be concluded."
        )
        yield Caution("The choice is not stable", text)


def _of_the_space(view: StudyView) -> Iterator[Caution]:
    if view.chosen is None or (view.choice is not None and view.choice.distance == 0):
        return
    for dimension in view.study.space.free:
        value = view.chosen.params.get(dimension.name)
        if not isinstance(value, int | float) or dimension.names:
            continue
        width = dimension.high - dimension.low
        for end, word, beyond in ((dimension.low, "lower", "down"), (dimension.high, "upper", "up")):
            if abs(value - end) > NEAR_BORDER * width:
                continue
            shown = dimension.shown(end)
            if _allowed_beyond(view, dimension.name, end, beyond):
                advice = "The best value may lie beyond: widen the range under another study name."
            else:
                advice = f"{view.study.method.name} allows no value beyond it."
            text = f"The chosen {dimension.name} is {shown}, the {word} end of its range. {advice}"
            yield Caution(f"On the border of the space: {dimension.name}", text)


def _allowed_beyond(view: StudyView, dimension: str, end: float, way: str) -> bool:
    """Whether the method takes values beyond the end of a range; yes where it is not known."""
    method, name = view.study.method, dimension.split(".")[0]
    declared = method.coefficients.get(name) or method.shorthands.get(name)
    if declared is None:
        return True
    return end > declared.low if way == "down" else end < declared.high


def _of_collections(view: StudyView) -> Iterator[Caution]:
    chosen, choice = view.chosen, view.choice
    if chosen is None or chosen.result is None or choice is None or len(chosen.result.collections) < 2:
        return
    total = sum(c.weight for c in chosen.result.collections)
    heaviest = max(chosen.result.collections, key=lambda c: c.weight)
    if heaviest.weight / total >= DOMINATES:
        share = heaviest.weight / total
        text = f"{heaviest.collection} has {share:.0%} of the weight, so the others hardly have a say in the choice."
        yield Caution("One collection decides", text)
    source = next((t for t in view.scored if t.number == choice.source_number), None)
    if source is None or source.result is None or source.number == chosen.number:
        return
    gains = {
        mine.collection: (mine.weight / total) * (mine.mean - theirs.mean)
        for mine, theirs in zip(chosen.result.collections, source.result.collections, strict=True)
    }
    gained = sum(g for g in gains.values() if g > 0)
    most = max(gains, key=lambda name: gains[name])
    if gained > 0 and gains[most] / gained >= DOMINATES and heaviest.weight / total < DOMINATES:
        text = f"{gains[most] / gained:.0%} of what the merge gains over {source.label} it gains on {most}."
        yield Caution("The gain comes from one collection", text)
    for name, gain in gains.items():
        if gain < 0:
            text = (
                f"There the chosen merge scores {-gain * total / _weight(chosen, name):.4f} less than {source.label}."
            )
            yield Caution(f"{name} loses by the merge", text)


def _weight(trial: TrialView, collection: str) -> float:
    assert trial.result is not None
    return next(c.weight for c in trial.result.collections if c.collection == collection)


def _of_trials(view: StudyView) -> Iterator[Caution]:
    states = Counter(t.state for t in view.trials)
    n = len(view.trials)
    if states["fail"]:
        reasons = Counter(t.failure or "no reason was recorded" for t in view.trials if t.state == "fail")
        (reason, times), *_ = reasons.most_common(1)
        text = f"The commonest reason ({times} of {states['fail']}): {sentence(reason)}"
        yield Caution(f"{states['fail']} of {n} trials failed", text, serious=2 * states["fail"] >= n)
    if states["pruned"]:
        text = "They could not win and were stopped before their last query, so their scores are estimates."
        yield Caution(f"{states['pruned']} of {n} trials were stopped early", text)
    if view.choice is not None and view.choice.set_aside:
        names = ", ".join(f"{name} (at most {lost:g})" for name, lost in view.study.objectives.allowances.items())
        text = f"Against {view.study.objectives.template} alone they lose more than they may on {names}."
        yield Caution(f"{view.choice.set_aside} merges are set aside", text)
    if states["running"]:
        text = "They have not ended: the study is going on, or was interrupted. Running it again goes on with them."
        yield Caution(f"{states['running']} of {n} trials are unfinished", text)
    for _, event, detail in view.history:
        versions = sorted(
            p.removeprefix("versions.") for p in detail.get("changed", {}) if str(p).startswith("versions.")
        )
        if event == "resumed with changes" and versions:
            text = f"Versions of {', '.join(versions)} changed between runs; scores may differ by .0005 for that alone."
            yield Caution("The study was gone on with under other versions", text)


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")

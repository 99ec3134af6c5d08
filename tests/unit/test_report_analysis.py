"""What reports work out, by properties: stability, queries, costs, answers, and text of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergesearch import load_study
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.evaluation.significance import Comparison
from mergesearch.evaluation_schema import PoolEntry
from mergesearch.results.readings import times_read
from mergesearch.results.report.answer import answer
from mergesearch.results.report.cautions import cautions
from mergesearch.results.report.costs import costs, elapsed, strategies
from mergesearch.results.report.held_out import HeldOut, held_out, mean_score
from mergesearch.results.report.queries import queries
from mergesearch.results.report.recipes import parts
from mergesearch.results.report.stability import stability
from mergesearch.results.report.text import REPLACED, readable
from mergesearch.results.tested import PairedTest, paired_tests
from mergesearch.results.view import StudyView, TrialView, read_view
from mergesearch.storage.reader import Reading
from mergesearch.storage.store import StudyStore
from tests.tiny_studies import TinyStudy

START = datetime(2026, 1, 1)


@pytest.fixture(scope="module")
def view(grid_study: TinyStudy) -> Iterator[StudyView]:
    with StudyStore.open(grid_study.storage, "tiny", None, exclusive=False) as store:
        yield read_view(load_study(grid_study.file), store)


def with_scores(view: StudyView, changed: dict[int, Sequence[float]]) -> StudyView:
    """The study as if trials had scored otherwise; what it chose stays."""

    def other(trial: TrialView) -> TrialView:
        if trial.number not in changed or trial.result is None:
            return trial
        (scores,) = trial.result.collections
        result = replace(trial.result, collections=(replace(scores, scores=np.array(changed[trial.number])),))
        return replace(trial, result=result, value=result.value)

    return replace(view, trials=tuple(map(other, view.trials)))


def scores(values: Sequence[float], name: str = "made", weight: float = 1.0) -> CollectionScores:
    return CollectionScores(name, "ndcg@10", tuple(map(str, range(len(values)))), np.array(values), weight)


def test_resamples_choose_somebody_each_time(view: StudyView) -> None:
    found = stability(view)
    assert sum(c.highest for c in found) == pytest.approx(1)
    assert sum(c.chosen for c in found) == pytest.approx(1)
    assert view.choice is not None
    assert view.choice.number in {c.trial.number for c in found}
    for c in found:
        assert c.trial.value is not None
        assert c.interval[0] <= c.trial.value <= c.interval[1]
    assert found == stability(view)


def test_what_scores_higher_on_every_query_is_always_highest(view: StudyView) -> None:
    assert view.choice is not None
    n = len(view.scored[0].result.collections[0].scores) if view.scored[0].result else 0
    best = view.choice.best_number
    changed = with_scores(view, {t.number: [1.0 if t.number == best else 0.5] * n for t in view.scored})
    found = {c.trial.number: c for c in stability(changed)}
    assert found[best].highest == 1


def test_every_query_is_counted_once(view: StudyView) -> None:
    found = queries(view)
    assert found is not None
    assert view.chosen is not None
    assert view.chosen.result is not None
    assert found.won + found.lost + found.same == len(found.rows)
    assert [q.after for q in found.rows] == view.chosen.result.collections[0].scores.tolist()
    template = view.sources["retriever"].result
    assert template is not None
    assert [q.before for q in found.rows] == template.collections[0].scores.tolist()
    for q in found.rows:
        assert q.best >= max(q.after, q.before or 0.0)
    assert [q.change for q in found.most_won(50)] == sorted(
        (q.change for q in found.rows if q.change > 0), reverse=True
    )
    assert len(found.most_lost(50)) == found.lost
    assert len(found.hardest(3)) == 3
    assert found.hopeless <= found.hard


def test_scores_of_the_template_may_be_given(view: StudyView) -> None:
    assert view.chosen is not None
    assert view.chosen.result is not None
    found = queries(view, view.chosen.result.collections)
    assert found is not None
    assert (found.won, found.lost, found.same) == (0, 0, len(found.rows))


def test_costs_are_those_of_all_trials(view: StudyView) -> None:
    found, by = costs(view), strategies(view)
    assert sum(s.trials for s in by) == found.trials == len(view.trials)
    assert sum(s.tokens for s in by) == found.tokens == sum(t.tokens for t in view.trials)
    assert [s.name for s in by] == ["enqueued", "grid"]
    first, last = view.best_so_far()[0], view.best_so_far()[-1]
    assert sum(s.gained for s in by) == pytest.approx(last[1] - first[1])
    assert max(s.best.value for s in by if s.best is not None and s.best.value is not None) == last[1]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 100)), max_size=12), st.randoms())
def test_time_with_a_trial_running_is_the_union_of_the_spans(
    spans: list[tuple[int, int]], random: np.random.Generator
) -> None:
    seconds = {second for start, length in spans for second in range(start, start + length)}
    trials = [
        TrialView(
            i,
            "complete",
            "",
            {},
            None,
            None,
            None,
            None,
            "",
            None,
            None,
            False,
            0,
            {},
            0.0,
            *_times(start, length),
            None,
        )
        for i, (start, length) in enumerate(spans)
    ]
    random.shuffle(trials)  # type: ignore[arg-type]
    assert elapsed(trials) == timedelta(seconds=len(seconds))


def _times(start: int, length: int) -> tuple[datetime, datetime]:
    return START + timedelta(seconds=start), START + timedelta(seconds=start + length)


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.floats(0.1, 5))
def test_a_mean_lies_in_its_interval(values: list[float], weight: float) -> None:
    found = mean_score([scores(values, weight=weight), scores([0.5] * 4, "other")])
    assert found.value == pytest.approx((weight * np.mean(values) + 0.5) / (weight + 1))
    low, high = found.interval
    assert low - 1e-9 <= found.value <= high + 1e-9


@given(st.text(st.characters(), max_size=60))
def test_any_text_can_be_written_and_is_not_changed_where_it_is_text(text: str) -> None:
    shown = readable(text)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert len(shown) == len(text)
    assert all(a in (b, REPLACED) for a, b in zip(shown, text, strict=True))
    assert "\0" not in shown
    assert len(readable(text, 10)) <= 10


def test_paired_tests_are_corrected_together() -> None:
    rng = np.random.default_rng(0)
    winner = scores(rng.random(40).tolist())
    others = {f"m{i}": scores(rng.random(40).tolist()) for i in range(2)}
    together, alone = paired_tests(winner, others), [paired_tests(winner, {k: o})[0] for k, o in others.items()]
    assert [t.comparison for t in together] == [t.comparison for t in alone]
    assert all(t.p_holm >= t.comparison.p_ttest for t in together)
    assert all(t.p_holm == t.comparison.p_ttest for t in alone)
    assert paired_tests(scores([0.5]), {"m": scores([0.4])}) == ()


def reading(**differences: tuple[float, float]) -> HeldOut:
    """A reading in which the merge gains so much over each, with such a p-value."""
    names = {name.replace("_", " "): pair for name, pair in differences.items()}
    tests = tuple(
        PairedTest("made", n, Comparison(d, (d - 0.1, d + 0.1), p, p, 50), p, "ndcg@10", 1)
        for n, (d, p) in names.items()
    )
    others = {n: scores([0.5, 0.5]) for n in names}
    return HeldOut("test", scores([0.5, 0.5]), others, tests, (), START, 1)


@pytest.mark.parametrize(
    ("differences", "tone", "words"),
    [
        (
            {"a_alone": (0.05, 0.001), "b_alone": (0.04, 0.01), "uniform_average": (0.03, 0.02)},
            "good",
            "better than every",
        ),
        ({"a_alone": (0.05, 0.001), "uniform_average": (0.001, 0.9)}, "open", "better than every source"),
        ({"a_alone": (0.05, 0.001), "b_alone": (0.01, 0.4)}, "open", "not clearly so"),
        ({"a_alone": (0.05, 0.001), "b_alone": (-0.01, 0.4)}, "bad", "b alone scores higher"),
        ({"a_alone": (-0.05, 0.001)}, "bad", "worse than a alone"),
    ],
)
def test_the_headline_says_what_the_tests_found(
    view: StudyView, differences: dict[str, tuple[float, float]], tone: str, words: str
) -> None:
    assert view.choice is not None
    merged = replace(view, choice=replace(view.choice, verdict="merge"))
    found = answer(merged, [reading(**differences)])
    assert found.tone == tone
    assert words in found.sentence


def test_what_was_not_tested_is_not_called_the_same(view: StudyView) -> None:
    assert view.choice is not None
    merged = replace(view, choice=replace(view.choice, verdict="merge"))
    one = HeldOut("test", scores([0.9]), {"a alone": scores([0.1])}, (), (), START, 1)
    assert "too few test queries" in answer(merged, [one]).sentence
    same = replace(reading(uniform_average=(0.03, 0.02)), same=("a alone",))
    assert "same as a source" in answer(merged, [same]).sentence


def test_the_choice_is_compared_with_what_is_to_be_compared_now(view: StudyView) -> None:
    """Not with what was highest before the study went on, and with every source, whatever its name is."""
    rng = np.random.default_rng(0)
    assert view.chosen is not None
    assert view.highest is not None
    chosen = view.chosen.fingerprint
    seen = {
        "retriever alone": "1",
        "chosen one alone": "2",
        "highest on dev (trial 77)": "3",
        "chosen (trial 78)": "4",
        f"chosen (trial {view.chosen.number})": chosen,
    }
    if view.highest is not view.chosen:
        seen[f"highest on dev (trial {view.highest.number})"] = view.highest.fingerprint
    readings = tuple(
        Reading(subject, fingerprint, "evaluate", "test", scores(rng.random(30).tolist()), START)
        for subject, fingerprint in seen.items()
    )
    (found,) = held_out(replace(view, readings=readings))
    assert set(found.others) == seen.keys() - {
        "highest on dev (trial 77)",
        "chosen (trial 78)",
        f"chosen (trial {view.chosen.number})",
    }


def test_what_a_protocol_read_counts_as_a_reading() -> None:
    """Once for all of its models, which were chosen before; and once again on other data or with other settings."""
    mine = scores([0.1, 0.2])

    def read(*commands: str) -> int:
        return times_read([Reading("retriever alone", "1", c, "test", mine, START) for c in commands])

    limited = "protocol limited-data (test data and settings {})"
    assert read("evaluate") == 1
    assert read(limited.format("a")) == 1
    assert read(*[limited.format("a")] * 12, "evaluate") == 2
    assert read(limited.format("a"), limited.format("b"), "protocol quality", "evaluate", "evaluate folder") == 5


def test_without_test_scores_nothing_is_promised(view: StudyView) -> None:
    assert view.choice is not None
    merged = replace(view, choice=replace(view.choice, verdict="merge"))
    assert answer(merged, []).tone == "open"
    kept = replace(view, choice=replace(view.choice, verdict="source", label="retriever alone"))
    assert answer(kept, []).sentence == "Keep retriever alone."
    assert answer(replace(view, choice=None), []).tone == "open"


def titles(view: StudyView, tests: Sequence[HeldOut] = ()) -> str:
    return "\n".join(c.title for c in cautions(view, tests, stability(view)))


def test_cautions_name_what_is_wrong(view: StudyView) -> None:
    assert "Few dev queries" in titles(view)
    assert "The test split was not read" in titles(view)
    assert "test split was not read" not in titles(view, [reading(a_alone=(0.05, 0.001))])
    assert "worse than a alone" in titles(view, [reading(a_alone=(-0.05, 0.001))])
    assert "different scales" not in titles(view, [reading(a_alone=(0.05, 0.001))])
    content = view.study.parsed.content
    (entry,) = content.evaluation.collections
    pooled = entry.model_copy(update={"pool": PoolEntry(negatives=2)})
    evaluation = content.evaluation.model_copy(update={"collections": [pooled]})
    parsed = replace(view.study.parsed, content=content.model_copy(update={"evaluation": evaluation}))
    over_a_pool = replace(view, study=replace(view.study, parsed=parsed))
    assert "different scales" in titles(over_a_pool, [reading(a_alone=(0.05, 0.001))])
    failed = replace(view.trials[0], state="fail", value=None, result=None, failure="out of luck")
    text = "\n".join(c.text for c in cautions(replace(view, trials=(*view.trials, failed)), (), ()))
    assert "Out of luck." in text
    pruned = replace(view.trials[0], state="pruned", value=None)
    assert "stopped early" in titles(replace(view, trials=(*view.trials, pruned)))
    assert "Nothing is scored yet" in titles(replace(view, choice=None))


def test_equal_trials_are_called_equal(view: StudyView) -> None:
    n = len(view.scored[0].result.collections[0].scores) if view.scored[0].result else 0
    assert "All trials are equal" in titles(with_scores(view, {t.number: [0.5] * n for t in view.scored}))


def test_the_border_of_the_space_is_named(view: StudyView) -> None:
    assert view.choice is not None
    at_border = next(t for t in view.scored if t.params == {"alpha.segment_1": 1.0, "alpha.segment_2": 0.5})
    inside = next(t for t in view.scored if t.params == {"alpha.segment_1": 0.5, "alpha.segment_2": 0.5})
    chosen = {t.number: replace(view.choice, number=t.number, distance=0.5) for t in (at_border, inside)}
    assert "border of the space: alpha.segment_1" in titles(replace(view, choice=chosen[at_border.number]))
    assert "border of the space" not in titles(replace(view, choice=chosen[inside.number]))


def test_one_collection_may_dominate(view: StudyView) -> None:
    def doubled(trial: TrialView) -> TrialView:
        if trial.result is None:
            return trial
        (made,) = trial.result.collections
        both = (replace(made, weight=9.0), replace(made, collection="other"))
        return replace(trial, result=TrialResult(both, {}, 0))

    assert "One collection decides" in titles(replace(view, trials=tuple(map(doubled, view.trials))))


def test_the_recipe_is_told_by_group(view: StudyView) -> None:
    trial = next(t for t in view.scored if t.params == {"alpha.segment_1": 0.5, "alpha.segment_2": 1.0})
    assert trial.recipe is not None
    found = {p.name: p for p in parts(view.study, trial.recipe)}
    assert found["segment_1"].factors == pytest.approx({"retriever": 0.5, "domain": 0.5})
    assert found["segment_2"].factors == pytest.approx({"retriever": 1.0, "domain": 0.0})
    assert found["embeddings"].copied == "retriever"

"""What every kind of study database must do for trials."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from mergesearch.errors import EvaluationError, StorageError
from mergesearch.evaluation.objectives import Judgement
from mergesearch.evaluation.result import CollectionScores, Look, TrialResult
from mergesearch.search.ledger import scores, violation
from mergesearch.storage import Told
from tests.storage_helpers import (
    DISTRIBUTIONS,
    RECORD,
    begin,
    check_crashes,
    lose_confirmation,
    open_store,
    recipe,
    restore_confirmations,
    result,
)


class TrialSuite:
    """A trial begins, ends once, and is found again; a subclass gives the fixture `url`, an empty database."""

    def test_parameters_attributes_and_scores_come_back_to_the_bit(self, url: str) -> None:
        expected = result()
        with open_store(url) as store:
            number = begin(store, 0.1, "a", proposal={"generation": 2})
            assert store.finish(number, expected) is Told.RECORDED
        with open_store(url) as store:
            (trial,) = store.trials()
            assert (trial.number, trial.state, trial.value) == (0, TrialState.COMPLETE, expected.value)
            assert trial.params == {"alpha.segment_1": 0.1}
            assert trial.distributions == DISTRIBUTIONS
            assert trial.user_attrs["recipe"] == recipe(0.1).fingerprint
            assert trial.user_attrs["proposal"] == {"generation": 2}
            assert trial.user_attrs["seconds_encode"] == 2.25
            assert (trial.user_attrs["tokens"], trial.user_attrs["worker"]) == (1234, "worker-1")
            assert trial.user_attrs["n_queries"] == 5
            assert trial.user_attrs["scores"]["ndcg@10 scifact"] == expected.collections[1].mean
            assert store.recipe(0) == recipe(0.1)
            assert store.seconds(0) == expected.seconds
            found = store.result(0)
            assert found is not None
            assert (found.tokens, found.worker, found.notes) == (1234, "worker-1", ("batch 3 was split",))
            for stored, given in zip(found.collections, expected.collections, strict=True):
                assert (stored.collection, stored.metric, stored.weight) == (
                    given.collection,
                    given.metric,
                    given.weight,
                )
                assert stored.query_ids == given.query_ids
                assert stored.scores.dtype == np.float64
                assert stored.scores.tobytes() == given.scores.tobytes()
            query_ids, scores = store.per_query(0, "scifact", "ndcg@10")
            assert query_ids == ("1", "2")
            assert scores.tobytes() == expected.collections[1].scores.tobytes()
            with pytest.raises(StorageError, match="ndcg@10 on 'nfcorpus'"):
                store.per_query(0, "nfcorpus", "map")

    def test_looks_come_back_and_are_intermediate_values(self, url: str) -> None:
        looks = (Look(3, 0.5, 100, approximate=True), Look(4, 0.25, 150, approximate=True), Look(5, 0.125, 1234))
        first, second = result().collections
        table = np.array([[0.1, np.nan, 0.3], [0.4, 0.5, 0.6]], dtype=np.float32)
        collections = (replace(first, looks=table), replace(second, looks=table[:, :2]))
        whole = replace(result(), collections=collections, looks=looks)
        part = replace(first, query_ids=first.query_ids[:2], scores=first.scores[:2])
        stopped = replace(
            result(), collections=(part,), looks=looks[:2], stopped=True, estimate=0.375, stopped_by=0, tokens=150
        )
        with open_store(url) as store:
            assert store.finish(begin(store, 0.1, "a"), whole) is Told.RECORDED
            assert store.finish(begin(store, 0.2, "b"), stopped) is Told.RECORDED
            assert store.finish(1, stopped) is Told.ALREADY
        with open_store(url) as store:
            complete, pruned = store.trials()
            assert (complete.state, pruned.state) == (TrialState.COMPLETE, TrialState.PRUNED)
            assert complete.intermediate_values == {1: 0.5, 2: 0.25, 3: 0.125}
            assert pruned.intermediate_values == {1: 0.5, 2: 0.25}
            assert pruned.value == stopped.value == part.mean
            assert (pruned.user_attrs["estimate"], pruned.user_attrs["stopped_by"]) == (0.375, 0)
            assert pruned.user_attrs["looks"][0] == {"queries": 3, "mean": 0.5, "tokens": 100, "approximate": True}
            assert pruned.user_attrs["n_queries"] == 2
            found, other = store.result(0), store.result(1)
            assert found is not None
            assert other is not None
            assert found.looks == looks
            for stored, given in zip(found.collections, whole.collections, strict=True):
                assert stored.looks is not None
                np.testing.assert_array_equal(stored.looks, given.looks)
            assert (other.looks, other.stopped, other.estimate, other.stopped_by) == (looks[:2], True, 0.375, 0)
            assert other.collections[0].looks is None
            assert store.value_of(recipe(0.2).fingerprint) is None
            assert store.stopped(recipe(0.1).fingerprint) is None
            again = store.stopped(recipe(0.2).fingerprint)
            assert again is not None
            assert (again[0], again[1].value) == (1, stopped.value)
            assert store.study.best_trial.number == 0

    def test_what_a_re_ranker_was_fused_with_comes_back(self, url: str) -> None:
        with open_store(url) as store:
            store.finish(begin(store, 0.1, "a"), replace(result(), fusion=0.6))
            store.finish(begin(store, 0.2, "b"), result())
        with open_store(url) as store:
            found = [store.result(number) for number in (0, 1)]
            assert [r.fusion for r in found if r is not None] == [0.6, None]
            assert [t.user_attrs.get("fusion") for t in store.trials()] == [0.6, None]

    def test_objectives_and_guards_are_optunas_values_and_constraints(self, url: str) -> None:
        """And to everybody here a trial has one value, whichever process reads it."""
        record = replace(RECORD, objectives=("target", "others"), metric="ndcg@10")
        expected = result()
        judged = Judgement({"target": 0.5, "others": 0.25}, {"scifact": 0.125, "nfcorpus": -0.5})
        with open_store(url, record) as store:
            assert store.finish(begin(store, 0.1, "a"), expected, judged=judged) is Told.RECORDED
            assert store.finish(0, expected, judged=judged) is Told.ALREADY
            fine = replace(judged, excess={"scifact": 0.0, "nfcorpus": -0.5})
            store.finish(begin(store, 0.2, "b"), expected, judged=fine)
            store.fail(begin(store, 0.3, "c"), "broken")
        with open_store(url, record) as store:
            first, second, third = store.trials()
            assert (first.value, second.value, third.value) == (expected.value, expected.value, None)
            assert violation(first) == 0.125
            assert violation(second) == 0
            assert scores(second) == (0.5, 0.25)
            theirs = store.study
            assert theirs.metric_names == ["ndcg@10 target", "ndcg@10 others"]
            assert [t.values for t in theirs.trials] == [[0.5, 0.25], [0.5, 0.25], None]
            assert [t.number for t in theirs.best_trials] == [1]

    def test_attributes_stay_small_whatever_the_number_of_queries(self, url: str) -> None:
        ids = tuple(f"query-{i}" for i in range(5000))
        scores = CollectionScores("big", "ndcg@10", ids, np.random.default_rng(0).random(5000))
        with open_store(url) as store:
            store.finish(begin(store, 0.1, "a"), TrialResult((scores,), {"encode": 1.0}, 1))
            (trial,) = store.trials()
            assert len(json.dumps(trial.user_attrs)) < 1000
            with pytest.raises(StorageError, match="'proposal' is larger"):
                begin(store, 0.2, "b", proposal={"x": "y" * 5000})
            assert len(store.trials()) == 1

    def test_begin_is_idempotent_per_logical_id(self, url: str) -> None:
        with open_store(url) as store:
            assert [begin(store, 0.1, "a"), begin(store, 0.1, "a"), begin(store, 0.2, "b")] == [0, 0, 1]
            with pytest.raises(StorageError, match="names another trial"):
                begin(store, 0.9, "a")
            assert [t.number for t in store.trials()] == [0, 1]

    def test_a_trial_outside_the_space_has_no_parameters(self, url: str) -> None:
        with open_store(url) as store:
            store.begin({}, {}, recipe=recipe(1.0), attrs={"anchor": "source retriever"}, logical_id="anchor")
            assert begin(store, 0.5, "a") == 1
            assert [t.params for t in store.trials()] == [{}, {"alpha.segment_1": 0.5}]

    def test_parameters_that_do_not_fit_are_refused_and_nothing_is_begun(self, url: str) -> None:
        with open_store(url) as store:
            begin(store, 0.1, "a")
            other: dict[str, BaseDistribution] = {"alpha.segment_1": FloatDistribution(0.1, 1, log=True)}
            for params, distributions in (
                ({"alpha.segment_1": 2.0}, DISTRIBUTIONS),
                ({"alpha.segment_1": 0.2}, other),
            ):
                with pytest.raises(StorageError, match="'b'"):
                    store.begin(params, distributions, recipe=recipe(0.2), attrs={}, logical_id="b")
            assert len(store.trials()) == 1
            assert begin(store, 0.2, "b") == 1

    def test_a_trial_ends_exactly_once(self, url: str) -> None:
        with open_store(url) as store:
            number = begin(store, 0.1, "a")
            assert store.finish(number, result(1)) is Told.RECORDED
            assert store.finish(number, result(1)) is Told.ALREADY
            assert store.finish(number, result(2)) is Told.LATE
            assert store.fail(number, "the worker died") is Told.LATE
            assert [t.value for t in store.trials()] == [result(1).value]
            kept = store.late_results(number)
            assert [value for _, value in kept] == [result(2).value, None]

            number = begin(store, 0.2, "b")
            assert store.fail(number, "out of memory") is Told.RECORDED
            assert store.fail(number, "out of memory again") is Told.ALREADY
            assert store.finish(number, result(3)) is Told.LATE
            trial = store.trials()[number]
            assert (trial.state, trial.value) == (TrialState.FAIL, None)
            assert trial.user_attrs["failure"] == "out of memory"
            assert store.result(number) is None
            assert store.unfinished() == []

    def test_only_the_newest_lease_ends_a_trial(self, url: str) -> None:
        with open_store(url) as store:
            number = begin(store, 0.1, "a")
            old, new = store.lease(number, "w1"), store.lease(number, "w2")
            assert (old, new) == (1, 2)
            assert store.finish(number, result(1), epoch=old) is Told.LATE
            assert store.fail(number, "gave up", epoch=old) is Told.LATE
            (open_trial,) = store.unfinished()
            assert (open_trial.attempts, open_trial.lease_owner) == (2, "w2")
            assert store.finish(number, result(2), epoch=new) is Told.RECORDED
            assert store.trials()[0].value == result(2).value
            assert store.lease(number, "w3") is None

    def test_not_a_number_is_never_a_score(self, url: str) -> None:
        good = result().collections[0]
        bad = CollectionScores("nfcorpus", "ndcg@10", ("q1", "q2"), np.array([0.5, np.nan]))
        with open_store(url) as store:
            number = begin(store, 0.1, "a")
            for collections, message in (
                ((bad,), "NaN or infinite for 1 of 2.*'q2'"),
                ((), "without scores"),
                ((good, good), "two sets"),
                ((CollectionScores("c", "m", ("q1",), np.zeros(2)),), "2 scores for 1"),
                ((CollectionScores("c", "m", ("q1",), np.zeros(1), weight=0.0),), "weights"),
            ):
                with pytest.raises(EvaluationError, match=message):
                    store.finish(number, TrialResult(collections, {}, 0))
            assert store.trials()[0].state == TrialState.RUNNING
            store.fail(number, "NaN")
            assert store.trials()[0].state == TrialState.FAIL

    def test_an_equal_recipe_is_found_with_its_scores(self, url: str) -> None:
        with open_store(url) as store:
            assert store.value_of(recipe(0.1).fingerprint) is None
            store.fail(begin(store, 0.1, "a"), "out of memory")
            begin(store, 0.1, "b")
            assert store.value_of(recipe(0.1).fingerprint) is None
            store.finish(1, result(5))
            number, found = store.value_of(recipe(0.1).fingerprint) or (None, None)
            assert number == 1
            assert found is not None
            assert found.value == result(5).value
            assert store.value_of(recipe(0.2).fingerprint) is None

    def test_running_trials_are_adopted_when_the_study_is_opened_again(self, url: str) -> None:
        with open_store(url) as store:
            store.finish(begin(store, 0.1, "a"), result(1))
            store.lease(begin(store, 0.2, "b"), "w1")
        with open_store(url) as store:
            (trial,) = store.adopt()
            assert (trial.number, trial.logical_id, trial.attempts) == (1, "b", 1)
            assert trial.recipe == recipe(0.2)
            assert [t.coordinator for t in store.unfinished()] == [store.coordinator]
            assert store.adopt() == []
            assert store.finish(1, result(2), epoch=store.lease(1, "w2")) is Told.RECORDED
            assert [t.value for t in store.trials()] == [result(1).value, result(2).value]
            assert store.unfinished() == []

    def test_killed_at_any_commit_every_trial_still_ends_exactly_once(self, url: str) -> None:
        check_crashes(url)

    def test_a_lost_confirmation_of_a_commit_neither_doubles_nor_loses(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # Optuna waits before it repeats
        with open_store(url) as store:
            for step in range(24):
                logical_id, alpha = f"t{step}", step / 24
                lose_confirmation(store, after=step % 12)
                for _ in range(3):  # the caller repeats what was not confirmed
                    try:
                        number = begin(store, alpha, logical_id)
                        store.finish(number, result(step))
                        break
                    except StorageError:
                        continue
                restore_confirmations(store)
                assert store.unfinished() == []
            trials = store.trials()
            assert [t.number for t in trials] == list(range(24))
            assert [t.value for t in trials] == [result(step).value for step in range(24)]

    def test_what_other_programs_did_is_settled_when_the_study_is_opened(self, url: str) -> None:
        with open_store(url) as store:
            begin(store, 0.1, "a")
            begin(store, 0.2, "b")
        other = optuna.load_study(study_name="study", storage=url.replace("postgresql:", "postgresql+psycopg:"))
        other.tell(0, state=TrialState.FAIL)
        other.ask()
        other.enqueue_trial({"alpha.segment_1": 0.5})
        other._storage.remove_session()
        other._storage._backend.engine.dispose()  # type: ignore[attr-defined]
        with open_store(url) as store:
            assert [t.state for t in store.trials()] == [TrialState.FAIL, TrialState.RUNNING, TrialState.FAIL]
            assert "another program" in store.trials()[2].user_attrs["failure"]
            assert [t.number for t in store.unfinished()] == [1]
            assert store.finish(0, result(1)) is Told.LATE
            assert begin(store, 0.3, "c") == 4

    def test_a_trial_ended_elsewhere_meanwhile_keeps_that_end(self, url: str) -> None:
        with open_store(url) as store:
            number = begin(store, 0.1, "a")
            other = optuna.load_study(study_name="study", storage=url.replace("postgresql:", "postgresql+psycopg:"))
            other.tell(number, 0.25)
            other._storage.remove_session()
            other._storage._backend.engine.dispose()  # type: ignore[attr-defined]
            assert store.finish(number, result(1)) is Told.LATE
            assert store.trials()[0].value == 0.25
            assert store.unfinished() == []
            assert [value for _, value in store.late_results(number)] == [result(1).value]

"""What starting from another study must do, on every kind of database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergesearch import starting
from mergesearch.controller import Controller
from mergesearch.errors import StorageError, StudyFileError
from mergesearch.evaluation.result import IMPORTED_ATTR
from mergesearch.search.registry import STRATEGIES
from mergesearch.session import open_store
from tests.controller_toys import Diary, PredictingPool, ScriptedPool
from tests.starting_toys import COARSE, finer, scored, start, violations
from tests.storage_helpers import crashes, lose_confirmation, restore_confirmations
from tests.tiny_studies import TinyStudy

SEARCHES: dict[str, Any] = {
    "grid": {"name": "grid", "points": 2},
    "tpe": {"name": "tpe", "n_startup_trials": 2},
    "cmaes": {"name": "cmaes", "population_size": 4},
}


class StartSuite:
    """A subclass gives the fixtures `url`, an empty database, and `made`, what `make_layers` makes."""

    def test_what_was_scored_there_is_known_here_and_costs_nothing(self, made: TinyStudy, url: str) -> None:
        scored(made, url)
        study = finer(made, "finer")
        pool = ScriptedPool()
        with open_store(study, url) as store, store.beside("tiny") as coarse:
            brought = start(study, store)
            assert brought is not None
            assert (brought.taken, {n for n in brought.left.values() if n}) == (COARSE, set())
            assert violations(study, store, coarse) == []
            assert len(store.trials()) == COARSE
            assert sum(t.user_attrs["tokens"] for t in store.trials()) == 0
            assert start(study, store) is None
            summary = Controller(study, store, pool, Diary()).run()
            known = {t.user_attrs["recipe"] for t in store.trials() if IMPORTED_ATTR in t.user_attrs}
        assert summary.evaluated == len(pool.evaluated) == 4  # the budget; neither source nor average among them
        assert known.isdisjoint(pool.evaluated)

    @pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"greedy_soup"}))
    def test_every_strategy_goes_on_from_what_came_over(self, made: TinyStudy, url: str, strategy: str) -> None:
        scored(made, url)
        study = finer(made, "finer", strategy=SEARCHES.get(strategy, strategy))
        pool = PredictingPool() if STRATEGIES[strategy].needs_embeddings else ScriptedPool()
        with open_store(study, url) as store:
            start(study, store)
            Controller(study, store, pool, Diary()).run()
            trials = store.trials()
        here = [t for t in trials if IMPORTED_ATTR not in t.user_attrs]
        assert 0 < len(pool.evaluated) <= 4
        assert {t.user_attrs["recipe"] for t in here} == set(pool.evaluated)
        assert not {t.user_attrs["recipe"] for t in trials if t not in here} & set(pool.evaluated)
        if isinstance(pool, PredictingPool) and pool.asked:
            assert {str(n) for n in range(COARSE)} - {"0", "1", "2"} <= set(pool.asked[0].screening.keys)

    def test_killed_before_any_commit_every_merge_comes_over_once(self, made: TinyStudy, url: str) -> None:
        scored(made, url)
        outcomes = crashes("tests.starting_toys", url, str(made.folder))
        assert [o["then"] for o in outcomes] == [COARSE] * len(outcomes)
        assert {o["left"] for o in outcomes} == set(range(COARSE + 1))  # nothing, one, …, all

    @pytest.mark.parametrize("lost", range(3))
    def test_a_lost_confirmation_adds_nothing_twice(self, made: TinyStudy, url: str, lost: int) -> None:
        scored(made, url)
        study = finer(made, "finer")
        with open_store(study, url) as store, store.beside("tiny") as coarse:
            store.patience = 0.0
            lose_confirmation(store, after=4 * lost + 1)
            try:
                start(study, store)
            except StorageError:
                pass
            finally:
                restore_confirmations(store)
            assert violations(study, store, coarse) == []
            start(study, store)
            assert violations(study, store, coarse) == []
            assert len(store.trials()) == COARSE

    def test_once_all_came_over_the_other_study_is_not_needed_any_more(
        self, made: TinyStudy, url: str, tmp_path: Path
    ) -> None:
        elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
        scored(made, elsewhere)
        study = finer(made, "finer", start_from={"study": "tiny", "storage": elsewhere})
        with open_store(study, url) as store:
            start(study, store)
        (tmp_path / "elsewhere.db").unlink()
        with open_store(study, url) as store:
            assert start(study, store) is None
            assert len(store.trials()) == COARSE
        other = finer(made, "another", start_from={"study": "tiny", "storage": elsewhere})
        with open_store(other, url) as store, pytest.raises(StorageError, match=r"no study database .*elsewhere\.db"):
            start(other, store)

    def test_what_differs_is_named_and_nothing_comes_over(self, made: TinyStudy, url: str) -> None:
        scored(made, url)
        study = finer(made, "finer")
        content = study.parsed.content.model_copy(update={"seed": 99})
        changed = replace(study, parsed=replace(study.parsed, content=content))
        with open_store(changed, url) as store:
            with pytest.raises(StudyFileError, match=r"(?s)'tiny' cannot be compared.*seed: 3 → 99.*scores: again"):
                start(changed, store)
            assert store.trials() == []

    def test_scored_again_the_best_points_are_evaluated_first_and_stay_the_same(
        self, made: TinyStudy, url: str
    ) -> None:
        coarse = scored(made, url)
        study = finer(made, "finer", start_from={"study": "tiny", "scores": "again", "best": 2}, trials=6)
        ranked = sorted((t for t in coarse.table() if t[0] >= 3), key=lambda t: -t[3])
        with open_store(study, url) as store:
            brought = start(study, store)
            assert brought is not None
            assert (brought.taken, brought.again) == (2, True)
            assert store.trials() == []
        coarse.with_search(strategy="random", trials=COARSE + 5).drive(ScriptedPool())
        pool = ScriptedPool()
        with open_store(study, url) as store:
            assert start(study, store) is None
            Controller(starting.with_inherited(study, store), store, pool, Diary()).run()
            points = [t.params for t in store.trials()]
        assert len(pool.evaluated) == 6
        for place, (_, _, params, _) in enumerate(ranked[:2], 3):  # after both sources and their average
            low, high = params["alpha.segment_1"], params["alpha.segment_2"]
            assert list(points[place].values()) == [low, low, high, high]

    def test_a_study_without_scores_is_refused(self, made: TinyStudy, url: str) -> None:
        scored(made, url, strategy="random", trials=1)  # the database is there
        empty = finer(made, "empty", start_from=None)
        open_store(empty, url).close()
        study = finer(made, "finer", start_from="empty")
        with open_store(study, url) as store, pytest.raises(StudyFileError, match="no scored merge yet: run it first"):
            start(study, store)

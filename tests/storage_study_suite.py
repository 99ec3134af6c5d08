"""What every kind of study database must do for studies, their coordinators and readers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from mergesearch.errors import ResumeError, StorageError
from mergesearch.storage import StudyRecord, StudyStore, list_studies, schema
from mergesearch.storage.tables import Base, LossRow
from tests.storage_helpers import (
    RECORD,
    begin,
    open_store,
    result,
)


class StudySuite:
    """Studies are made, resumed, refused; a subclass gives the fixture `url`, an empty database."""

    def test_everything_that_can_change_a_score_is_compared_and_all_of_it_listed(self, url: str) -> None:
        open_store(url).close()
        relevant: dict[str, Any] = json.loads(json.dumps(RECORD.score_relevant))
        relevant["seed"] = 8
        relevant["normalize"] = 1
        relevant["sources"][1]["content_hash"] = "b2"
        relevant["collections"]["scifact"] = {"split": "test"}
        relevant["batches"] = [32]
        changed = StudyRecord("study", relevant, study_file="other", file_name="other.yaml")
        with pytest.raises(ResumeError) as caught:
            open_store(url, changed)
        text = str(caught.value)
        for line in (
            "seed: 7 → 8",
            "normalize: true → 1",
            'sources[domain].content_hash: "bb" → "b2"',
            'collections.scifact: (not set) → {"split": "test"}',
            "batches[1]: 16 → (not set)",
        ):
            assert f"  {line}\n" in text
        assert text.count(" → ") == 6  # those five and the heading's
        assert "the name is taken" in text
        assert "'study.yaml'" in text
        assert "'other.yaml'" in text
        with pytest.raises(ResumeError):
            open_store(url, changed, exclusive=False)
        open_store(url).close()

    def test_the_order_of_sources_is_compared(self, url: str) -> None:
        open_store(url).close()
        sources = RECORD.score_relevant["sources"][::-1]
        changed = StudyRecord("study", {**RECORD.score_relevant, "sources": sources}, file_name="study.yaml")
        with pytest.raises(ResumeError, match=r"sources \(order\): retriever, domain → domain, retriever"):
            open_store(url, changed)

    def test_budget_workers_and_strategy_may_change_and_are_noted(self, url: str) -> None:
        open_store(url).close()
        for budget in (20, 20, 30):
            record = StudyRecord(
                "study",
                RECORD.score_relevant,
                {**RECORD.other, "budget": {"trials": budget}},
                "",
                "b.yaml",
                {},
            )
            open_store(url, record).close()
        with open_store(url, None) as store:
            first, second = [detail["changed"] for _, _, detail in store.history()]
            assert first["budget.trials"] == ["10", "20"]
            assert first["file_name"] == ['"study.yaml"', '"b.yaml"']
            assert second == {"budget.trials": ["20", "30"]}
            assert store.record == RECORD

    def test_a_study_of_another_program_is_left_alone(self, url: str) -> None:
        open_store(url).close()
        storage = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
        optuna.create_study(study_name="theirs", storage=storage)
        storage.engine.dispose()
        with pytest.raises(ResumeError, match="'theirs' that mergesearch did not make"):
            StudyStore.open(url, "theirs", RECORD, exclusive=True)
        assert [s.name for s in list_studies(url)] == ["study"]

    def test_a_deleted_study_leaves_nothing_to_the_next_of_its_name(self, url: str) -> None:
        with open_store(url) as store:
            store.finish(begin(store, 0.1, "a"), result(1))
            begin(store, 0.2, "b")
            storage = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
            optuna.delete_study(study_name="study", storage=storage)
            storage.engine.dispose()
            with pytest.raises(StorageError, match="deleted"):
                begin(store, 0.3, "c")
        assert list_studies(url) == []
        with open_store(url) as store:
            assert store.trials() == []
            assert store.unfinished() == []
            assert begin(store, 0.2, "b") == 0

    def test_an_end_that_was_wanted_is_not_wanted_of_later_coordinators(self, url: str) -> None:
        """Not even where another study is deleted meanwhile, whose coordinators were the newest."""
        open_store(url).close()
        for _ in range(2):
            open_store(url, replace(RECORD, name="other")).close()
        with open_store(url, exclusive=False) as reader:
            reader.want("drain")
        with open_store(url, None, exclusive=False) as store:
            optuna.delete_study(study_name="other", storage=store._storage)
        open_store(url, replace(RECORD, name="third")).close()  # removes what is left of it
        with open_store(url) as store:
            assert store.wanted == "run"

    def test_readers_see_the_study_and_may_not_drive_it(self, url: str) -> None:
        with open_store(url) as store, open_store(url, None, exclusive=False) as reader:
            store.finish(begin(store, 0.1, "a"), result(1))
            assert reader.trials()[0].value == result(1).value
            for write in (
                lambda: begin(reader, 0.2, "b"),
                lambda: reader.fail(0, ""),
                lambda: reader.lease(0, "w"),
            ):
                with pytest.raises(StorageError, match="opened for reading"):
                    write()

    def test_readings_of_test_splits_are_kept(self, url: str) -> None:
        open_store(url).close()
        with open_store(url, None, exclusive=False) as reader:
            reader.record_test_reading(
                result(3).collections,
                subject="winner",
                split="test",
                command="evaluate",
                fingerprint="f" * 64,
            )
        with open_store(url) as store:
            first, second = store.test_readings()
            assert (first.subject, first.split, first.command, first.fingerprint) == (
                "winner",
                "test",
                "evaluate",
                "f" * 64,
            )
            assert second.scores.scores.tobytes() == result(3).collections[1].scores.tobytes()
            assert first.at.utcoffset() is not None

    def test_losses_are_kept_once_and_go_with_their_study(self, url: str) -> None:
        with open_store(url) as store:
            store.record_loss("retriever", "aa", "e" * 64, 0.1 + 0.2)
            store.record_loss("retriever", "aa", "e" * 64, 7.0)
            store.record_loss("domain", "bb", "f" * 64, 1.0)
            assert store.losses("e" * 64) == {"aa": 0.1 + 0.2}
            with open_store(url, None, exclusive=False) as reader:
                assert reader.losses("f" * 64) == {"bb": 1.0}
                with pytest.raises(StorageError, match="opened for reading"):
                    reader.record_loss("domain", "bb", "e" * 64, 1.0)
            storage = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
            optuna.delete_study(study_name="study", storage=storage)
            storage.engine.dispose()
        with open_store(url) as store:
            assert store.losses("e" * 64) == {}
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(LossRow)) == 0
        engine.dispose()

    def test_an_older_database_is_upgraded_by_whoever_resumes(self, url: str) -> None:
        with open_store(url) as store:
            store.finish(begin(store, 0.1, "a"), result(1))
            begin(store, 0.2, "b")
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            command.downgrade(schema.alembic_config(connection), "0001")
            connection.commit()
            assert not sa.inspect(connection).has_table("mergesearch_losses")
        engine.dispose()
        with pytest.raises(StorageError, match="made by an older mergesearch"):
            open_store(url, None, exclusive=False)
        with open_store(url) as store:
            assert store.trials()[0].value == result(1).value
            found = store.result(0)
            assert found is not None
            assert (found.value, found.looks, found.layer_tokens) == (result(1).value, (), 0)
            assert not found.stopped
            assert [t.number for t in store.unfinished()] == [1]
            store.finish(1, replace(result(2), layer_tokens=7))
            store.record_loss("retriever", "aa", "e" * 64, 1.0)

    def test_an_unknown_study_is_named_with_those_there_are(self, url: str) -> None:
        open_store(url).close()
        for exclusive in (False, True):
            with pytest.raises(StorageError, match=r"unknown study 'studdy'\. Did you mean 'study'"):
                StudyStore.open(url, "studdy", None, exclusive=exclusive)

    def test_collections_keep_their_order(self, url: str) -> None:
        """What trials bring back lies in it: in another one, queries would be compared with other queries."""

        def record(*names: str) -> StudyRecord:
            collections = {name: {"content": f"hash of {name}"} for name in names}
            return StudyRecord("study", {"evaluation": {"collections": collections}})

        open_store(url, record("b", "a")).close()
        open_store(url, record("b", "a")).close()
        with pytest.raises(ResumeError, match=r"evaluation\.collections \(order\): b, a → a, b"):
            open_store(url, record("a", "b"))

    def test_studies_are_listed(self, url: str) -> None:
        with open_store(url) as store:
            store.finish(begin(store, 0.1, "a"), result(1))
            store.fail(begin(store, 0.2, "b"), "no")
            begin(store, 0.3, "c")
            # The running mean of a trial that was stopped is no score, and may be higher than any.
            easy = replace(result(2), stopped=True, estimate=0.1, stopped_by=0)
            perfect = tuple(replace(c, scores=np.ones_like(c.scores)) for c in easy.collections)
            store.finish(begin(store, 0.4, "d"), replace(easy, collections=perfect))
        other = StudyRecord("other", {}, file_name="other.yaml")
        open_store(url, other).close()
        first, second = list_studies(url)
        assert (first.name, first.complete, first.pruned, first.failed, first.unfinished) == ("study", 1, 1, 1, 1)
        assert (first.best_value, first.file_name) == (result(1).value, "study.yaml")
        assert (second.name, second.complete, second.best_value) == ("other", 0, None)

    def test_migrations_make_exactly_the_tables_of_the_code(self, url: str) -> None:
        open_store(url).close()
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))

        def ours(name: str | None, kind: str, _parents: object) -> bool:
            return kind != "table" or name in Base.metadata.tables

        with engine.connect() as connection:
            options = {"include_name": ours, "compare_type": True}
            assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
            connection.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = 'from the future'"))
            connection.commit()
        engine.dispose()
        with pytest.raises(StorageError, match="made by a newer mergesearch"):
            open_store(url)

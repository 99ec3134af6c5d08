from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from mergesearch.errors import StorageError
from mergesearch.storage import StudyStore, redact
from mergesearch.storage.engine import Database, redact_urls
from mergesearch.storage.record import differences
from tests.storage_helpers import RECORD, begin, everything_stored, open_store, recipe, result

SECRET = "hunter2-%40-pass"
URL = f"postgresql://me:{SECRET}@db.example:5432/studies"


@pytest.mark.parametrize(
    "text",
    [
        URL,
        f"see {URL} there",
        f"postgresql+psycopg://me:{SECRET}@[::1]/x?sslmode=require",
        f"postgresql://me:a@{SECRET}@host/x",
        f"postgresql://host/x?user=me&password={SECRET}",
        f"dsn 'host=h password={SECRET}' refused",
    ],
)
def test_passwords_are_taken_out_of_texts(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)


def test_texts_without_passwords_stay() -> None:
    for text in (
        "sqlite:///study.db",
        "https://host:80/a",
        "mail me@example.org: now",
        "postgresql://me@host/db",
    ):
        assert redact(text) == text


def test_a_shown_url_has_neither_password_nor_driver() -> None:
    assert Database.parse(URL).shown == "postgresql://me:***@db.example:5432/studies"


def test_a_password_is_found_in_both_spellings_and_only_as_a_word() -> None:
    database = Database.parse("postgresql://postgres:postgres@h/db")
    assert database.without_secrets("user postgres at postgresql://h") == "user *** at postgresql://h"
    database = Database.parse(URL)
    for spelling in (SECRET, "hunter2-@-pass"):
        assert database.without_secrets(f"({spelling})") == "(***)"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "sqlite:///study.db"),
        (f"postgresql://me:{SECRET}@h:port/x", "not a database URL"),
        (f"mysql://me:{SECRET}@h/x", "not in 'mysql'"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
        (f"postgresql+nodriver://me:{SECRET}@h/x", "nodriver"),
        (f"postgresql+psycopg2://me:{SECRET}@h/x", "pip install psycopg2"),
    ],
)
def test_urls_that_cannot_hold_studies(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(StorageError, match=r'pip install "mergesearch\[postgres\]"') as caught:
        open_store(URL)
    assert SECRET not in str(caught.value)


def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    with caplog.at_level(logging.DEBUG), pytest.raises(StorageError, match="cannot be reached") as caught:
        open_store(f"postgresql://me:{SECRET}@127.0.0.1:1/x")
    assert SECRET not in str(caught.value) + caplog.text


def test_passwords_in_what_is_recorded_are_not_stored(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    record = replace(RECORD, study_file=f"storage: {URL}\n", other={"storage": URL, "argv": ["--storage", URL]})
    with open_store(url, record) as store:
        number = begin(store, 0.1, "a", note=f"from {URL}")
        store.lease(number, f"worker of {URL}")
        store.fail(number, f"could not connect to {URL}")
    stored = everything_stored(url)
    assert SECRET not in stored
    assert "could not connect to postgresql://me:***@db.example" in stored
    with StudyStore.open(url, "study", record, exclusive=True) as store:  # and the redacted record still fits
        assert store.history() == []


def test_a_password_that_is_a_plain_word_leaves_names_and_settings_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word is masked where people write freely, and nowhere that anything is compared or looked up."""
    monkeypatch.setattr(Database, "_secrets", lambda _: ["retriever"])  # as of postgresql://me:retriever@host/db
    url = f"sqlite:///{tmp_path}/study.db"
    own = "postgresql://me:retriever@host/db"
    relevant = {**RECORD.score_relevant, "sources": {"retriever": "aa", "domain": "bb"}, "prompt": f"ask {URL}"}
    record = replace(RECORD, score_relevant=relevant, other={"best": "retriever"}, study_file=f"sources: {own}\n")
    attrs = {"anchor": "retriever alone", "weights": {"weight.retriever": 1.0}}
    with open_store(url, record) as store:
        number = begin(store, 0.1, "anchor:retriever alone", **attrs)
        failed = begin(store, 0.2, "other", from_=own)
        store.finish(number, replace(result(), worker="host of retriever", notes=("the retriever said",)))
        store.fail(failed, "password retriever refused")
    with open_store(url, record) as store:
        assert store.history() == []
        assert store.record.score_relevant["sources"] == relevant["sources"]
        assert differences(store.record.score_relevant, redact_urls(relevant)) == {}
        first, second = store.trials()
        assert {key: first.user_attrs[key] for key in attrs} == attrs
        assert (first.user_attrs["worker"], first.user_attrs["notes"]) == ("host of ***", "the *** said")
        assert second.user_attrs["failure"] == "password *** refused"
        assert second.user_attrs["from_"] == "postgresql://me:***@host/db"
        assert "retriever" not in store.record.study_file
        assert store.recipe(number) == recipe(0.1)
    assert SECRET not in everything_stored(url)
    assert "me:retriever" not in everything_stored(url)


def test_only_urls_are_redacted_in_what_is_compared() -> None:
    kept = {"weight.password=1": ["password=x", "retriever alone", 3, None], "https://host:80/a": "b@c"}
    assert redact_urls(kept) == kept
    assert redact_urls(("x", f"a {URL}, b")) == ["x", "a postgresql://me:***@db.example:5432/studies, b"]


def test_differences_are_named_by_path() -> None:
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == {}
    assert differences({"a": 1}, {"a": 1.0}) == {}
    assert differences({"a": {"b": 1}, "c": None}, {"a": {}, "d": None}) == {
        "a.b": ("1", "(not set)"),
        "c": ("null", "(not set)"),
        "d": ("(not set)", "null"),
    }
    assert differences([{"name": "x", "h": 1}], [{"name": "x", "h": 2}]) == {"[x].h": ("1", "2")}

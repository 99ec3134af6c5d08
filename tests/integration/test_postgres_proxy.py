"""The proxy loses what it is told to lose, and nothing else: a real server, the real driver."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.postgres_proxy import Loss, PostgresProxy

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]
psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[PostgresProxy]:
    with PostgresProxy(postgres_server.port) as proxy:
        yield proxy


@pytest.fixture
def url(postgres_url: str) -> str:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE seen (n int PRIMARY KEY)")
    return postgres_url


def rows(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM seen ORDER BY n")]


def add(connection: Any, n: int) -> None:
    connection.execute("INSERT INTO seen VALUES (%s)", (n,))
    connection.commit()


def test_what_is_not_cut_passes(proxy: PostgresProxy, url: str) -> None:
    with psycopg.connect(proxy.through(url)) as connection:
        for n in range(3):
            add(connection, n)
        connection.execute("SELECT repeat('ä', 300000)")
        connection.commit()  # of a transaction that wrote nothing: not counted
        connection.execute("UPDATE seen SET n = 7 WHERE n = 9")
        connection.commit()
        connection.cursor().executemany("INSERT INTO seen VALUES (%s)", [(n,) for n in range(3, 6)])
        connection.commit()
    assert proxy.commits == 4
    assert rows(url) == list(range(6))


@pytest.mark.parametrize(("loss", "found"), [(Loss.COMMIT, [1]), (Loss.ACKNOWLEDGEMENT, [1, 2])])
def test_a_commit_is_lost_or_its_acknowledgement(proxy: PostgresProxy, url: str, loss: Loss, found: list[int]) -> None:
    proxy.at_commit(2, loss)
    with psycopg.connect(proxy.through(url)) as connection:
        add(connection, 1)
        with pytest.raises(psycopg.OperationalError):
            add(connection, 2)
    assert rows(url) == found
    with psycopg.connect(proxy.through(url)) as connection:
        add(connection, 3)
    assert rows(url) == [*found, 3]


def test_a_commit_that_arrives_while_the_client_asks_again(proxy: PostgresProxy, url: str) -> None:
    proxy.at_commit(1, Loss.DELAYED)
    with psycopg.connect(proxy.through(url)) as connection, pytest.raises(psycopg.OperationalError):
        add(connection, 1)
    with psycopg.connect(proxy.through(url)) as again, pytest.raises(psycopg.errors.UniqueViolation):
        add(again, 1)  # waits for the server to know what became of the first one
    assert rows(url) == [1]


def test_cut_at_any_message(proxy: PostgresProxy, url: str) -> None:
    ends = []
    for count in range(1, 12):
        proxy.at_message(count)
        try:
            with psycopg.connect(proxy.through(url)) as connection:
                add(connection, count)
                ends.append("whole")
        except psycopg.OperationalError:
            ends.append("cut")
        proxy.forget()
    assert ends == sorted(ends)  # "cut" up to the last message, then "whole"
    assert {"cut", "whole"} == set(ends)
    assert rows(url) == [count for count, end in enumerate(ends, 1) if end == "whole"]


def test_actions_come_before_their_message(proxy: PostgresProxy, url: str) -> None:
    found: list[list[int]] = []
    with psycopg.connect(proxy.through(url), autocommit=True) as connection:
        proxy.at_message(2, lambda: found.append(rows(url)))
        for n in (1, 2):
            connection.execute(f"INSERT INTO seen VALUES ({n})")
    assert found == [[1]]


def test_stalls_and_refusals(proxy: PostgresProxy, url: str) -> None:
    with psycopg.connect(proxy.through(url)) as connection:
        done = threading.Event()

        def work() -> None:
            add(connection, 1)
            done.set()

        with proxy.stalled():
            thread = threading.Thread(target=work)
            thread.start()
            assert not done.wait(0.2)
            assert rows(url) == []
        thread.join()
        assert rows(url) == [1]
        with proxy.refusing():
            with pytest.raises(psycopg.OperationalError):
                add(connection, 2)
            with pytest.raises(psycopg.OperationalError, match="refused"):
                psycopg.connect(proxy.through(url))
    with psycopg.connect(proxy.through(url)) as connection:
        add(connection, 3)
        assert proxy.cut() == 1
        with pytest.raises(psycopg.OperationalError):
            add(connection, 4)
    assert rows(url) == [1, 3]

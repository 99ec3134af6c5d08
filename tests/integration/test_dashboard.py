"""The dashboard over HTTP: who is let in, and what may be done."""

from __future__ import annotations

import base64
import http.client
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mergesearch.errors import StorageError
from mergesearch.storage import list_studies
from mergesearch.storage.dashboard import application, server
from tests.storage_helpers import begin, open_store, result

TOKEN = "a token with: signs%"


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/study.db"
    with open_store(url) as store:
        store.finish(begin(store, 0.1, "a"), result(1))
    return url


@contextmanager
def served(url: str, **options: object) -> Iterator[str]:
    with server(application(url, **options), host="127.0.0.1", port=0) as serving:  # type: ignore[arg-type]
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()
            thread.join()


def ask(address: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(
        address, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers.get("Set-Cookie", "")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_without_a_token_everybody_may_do_everything(url: str) -> None:
    with served(url) as home:
        assert ask(f"{home}/api/studies")[0] == 200
        assert ask(f"{home}/api/studies/1", "DELETE")[0] == 200
    assert list_studies(url) == []


@pytest.mark.parametrize("method", ["DELETE", "POST", "PUT", "PATCH"])
def test_read_only(url: str, method: str) -> None:
    with served(url, read_only=True) as home:
        assert ask(f"{home}/api/studies")[0] == 200
        assert ask(f"{home}/api/studies/1", method) == (403, '{"reason": "this dashboard is read-only"}\n')
    assert len(list_studies(url)) == 1


def test_a_token_is_needed_and_taken_in_four_places(url: str) -> None:
    password = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
    with served(url, token=TOKEN) as home:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic %%%"}, {"Cookie": "x=y"}):
            assert ask(f"{home}/", **wrong)[0] == 401  # type: ignore[arg-type]
        assert ask(f"{home}/?token=")[0] == 401
        assert ask(f"{home}/api/studies/1", "DELETE")[0] == 401
        assert ask(f"{home}/api/studies", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(f"{home}/api/studies", Authorization=f"Basic {password}")[0] == 200
        status, cookie = ask(f"{home}/api/studies?token={urllib.parse.quote(TOKEN)}")
        assert (status, "HttpOnly" in cookie) == (200, True)
        assert ask(f"{home}/api/studies", Cookie=cookie.partition(";")[0])[0] == 200


def test_static_files_need_no_special_header(url: str) -> None:
    with served(url) as home:
        page = urllib.request.urlopen(f"{home}/dashboard", timeout=60).read().decode()
        script = page.partition('src="/static/')[2].partition('"')[0]
        assert script
        connection = http.client.HTTPConnection(home.removeprefix("http://"), timeout=60)
        connection.putrequest("GET", f"/static/{script}", skip_accept_encoding=True)
        connection.endheaders()
        assert connection.getresponse().status == 200
        connection.close()


def test_a_taken_port_is_said(url: str) -> None:
    with served(url) as home, pytest.raises(StorageError, match="choose another --port"):
        server(application(url), host="127.0.0.1", port=int(home.rpartition(":")[2]))

"""The dashboard over HTTP: who is let in, and what may be done."""

from __future__ import annotations

import base64
import http.client
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from optuna.artifacts import upload_artifact

from mergesearch.artifacts import Artifacts
from mergesearch.errors import StorageError
from mergesearch.storage import list_studies
from mergesearch.storage.dashboard import application, page_of, server
from tests.dashboards import served
from tests.storage_helpers import begin, open_store, result

TOKEN = "a token with: signs%"


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/study.db"
    with open_store(url) as store:
        store.finish(begin(store, 0.1, "a"), result(1))
    return url


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


def test_files_attached_to_a_study_are_served_where_they_lie(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    file = tmp_path / "table.csv"
    file.write_text("a,b\n", encoding="utf-8")
    with served(url, read_only=True, artifacts=str(folder)) as home:
        assert ask(f"{home}/api/studies")[0] == 200
        assert not folder.exists()
    store = Artifacts(folder).optuna_store
    with open_store(url) as open_study:
        name = upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=open_study.study)
    with served(url, artifacts=str(folder)) as home:
        assert urllib.request.urlopen(f"{home}/artifacts/1/{name}", timeout=60).read() == b"a,b\n"
    with served(url) as home:
        assert ask(f"{home}/artifacts/1/{name}")[0] == 400


def test_the_page_of_a_study(url: str) -> None:
    assert page_of(url, "study") == "/dashboard/studies/1"
    assert page_of(url, "another") == "/dashboard"


def test_the_command_says_what_to_open(url: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n", encoding="utf-8")
    arguments = ["dashboard", "--storage", url, "--port", "0", "--read-only", "--auth-token-file", str(token)]
    with subprocess.Popen(
        [sys.executable, "-m", "mergesearch", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as running:
        try:
            assert running.stdout is not None
            said = running.stdout.readline()
            home = said.split()[2].rstrip(",").rstrip("/")
            assert "the token as password" in said
            assert TOKEN not in said
            assert ask(f"{home}/api/studies")[0] == 401
            assert ask(f"{home}/api/studies", Authorization=f"Bearer {TOKEN}")[0] == 200
            assert ask(f"{home}/api/studies/1", "DELETE", Authorization=f"Bearer {TOKEN}")[0] == 403
        finally:
            running.terminate()

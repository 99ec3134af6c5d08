"""optuna-dashboard on a study database, with what it lacks itself: a lock on the door, and read-only service."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import sqlalchemy as sa

from mergesearch.artifacts import Artifacts
from mergesearch.errors import StorageError
from mergesearch.storage import schema
from mergesearch.storage.engine import Database
from mergesearch.storage.tables import studies

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

COOKIE = "mergesearch_dashboard"
NOTHING = b"{}"
MOST_UNREAD = 1 << 20
"""Bytes of a request that are read although it is refused."""


class Guard:
    """A WSGI application in front of another one, which lets through what is allowed.

    A token may come as `Authorization: Bearer TOKEN`, as the password of any user (browsers ask for it), or once as
    `?token=TOKEN` in an address, which leaves a cookie.

    Args:
        application: what is guarded.
        token: what callers have to know; None lets everybody in.
        read_only: refuse all methods but GET and HEAD.
    """

    def __init__(self, application: Application, *, token: str | None, read_only: bool) -> None:
        self._application, self._token, self._read_only = application, token, read_only
        self._cookie = hashlib.sha256((token or "").encode()).hexdigest()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        headers = []
        if self._token is not None:
            told = _tokens(environ)
            known = {where: self._cookie if where == "cookie" else self._token for where in told}
            if not any(hmac.compare_digest(told[where].encode(), known[where].encode()) for where in told):
                ask = [("WWW-Authenticate", 'Basic realm="mergesearch: any user, the token as password"')]
                return _refuse(environ, start_response, "401 Unauthorized", "a token is needed", ask)
            if "address" in told:
                headers = [("Set-Cookie", f"{COOKIE}={self._cookie}; HttpOnly; SameSite=Strict; Path=/")]
        if self._read_only and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refuse(environ, start_response, "403 Forbidden", "this dashboard is read-only", [])
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # without it optuna-dashboard fails on /static

        empty = False

        def start(status: str, given: list[tuple[str, str]], *error: Any) -> Any:
            nonlocal empty
            empty = status.startswith("204")
            if empty:  # the page of optuna-dashboard 0.21 reads JSON from answers that have no content, and fails
                status, given = "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(NOTHING)))]
            return start_response(status, [*given, *headers], *error)

        answer = self._application(environ, start)
        return [NOTHING] if empty else answer


def application(
    url: str, *, token: str | None = None, read_only: bool = False, artifacts: str | None = None
) -> Application:
    """The guarded dashboard of a study database, for a WSGI server of your choice.

    An empty PostgreSQL database gets its tables first, so that the dashboard of a service may start before its studies.

    Args:
        url: the database.
        token: see `Guard`.
        read_only: see `Guard`.
        artifacts: where files lie that people attach to studies and trials, see `Artifacts`; None shows none. To read
            only, a folder that is missing is not made.

    Raises:
        StorageError: database or artifacts cannot be used.
    """
    import optuna_dashboard

    database = Database.parse(url)
    if database.path is not None and not database.path.is_file():
        raise StorageError(f"there is no study database {database.path}. Start one: mergesearch run STUDY.yaml")
    schema.prepare(database, database.engine(), create=not database.is_sqlite)
    there = artifacts is not None and (not read_only or "://" in artifacts or Path(artifacts).expanduser().is_dir())
    store = Artifacts(artifacts).optuna_store if artifacts is not None and there else None
    storage = database.optuna_storage(create_tables=False)
    return Guard(optuna_dashboard.wsgi(storage, store), token=token, read_only=read_only)


def page_of(url: str, study_name: str) -> str:
    """The path of a study's page, or of the list of studies while there is no such study."""
    database = Database.parse(url)
    engine = database.engine()
    try:
        with database.friendly(), engine.connect() as connection:
            query = sa.select(studies.c.study_id).where(studies.c.study_name == study_name)
            found = connection.execute(query).scalar()
    finally:
        engine.dispose()
    return "/dashboard" if found is None else f"/dashboard/studies/{found}"


def server(application: Application, *, host: str, port: int) -> WSGIServer:
    """A server that listens, answers several callers at a time, and is not serving yet.

    Args:
        application: what is served.
        host: the address to bind to.
        port: 0 takes any that is free: see `server_port`.

    Raises:
        StorageError: the port is taken.
    """
    try:
        return make_server(host, port, application, server_class=_Server, handler_class=_Handler)
    except OSError as error:
        raise StorageError(f"cannot serve on {host}:{port}: {error.strerror}; choose another --port") from error


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Nothing: addresses may hold the token."""


def _tokens(environ: dict[str, Any]) -> dict[str, str]:
    """What a caller gave as token, by where it stood."""
    found = {}
    kind, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if kind.lower() == "bearer":
        found["bearer"] = value.strip()
    elif kind.lower() == "basic":
        try:
            found["password"] = base64.b64decode(value).decode().partition(":")[2]
        except ValueError:
            found["password"] = ""
    for key, given in parse_qsl(environ.get("QUERY_STRING", "")):
        if key == "token":
            found["address"] = given
    try:
        cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None:
        found["cookie"] = cookie.value
    return found


def _refuse(
    environ: dict[str, Any], start_response: Callable[..., Any], status: str, why: str, headers: list[tuple[str, str]]
) -> Iterable[bytes]:
    """Say why not, in the form in which the dashboard's page shows it."""
    left = environ.get("CONTENT_LENGTH") or "0"
    if left.isdecimal() and int(left) <= MOST_UNREAD:  # else the connection breaks before a browser has the answer
        environ["wsgi.input"].read(int(left))
    body = json.dumps({"reason": why}).encode() + b"\n"
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers])
    return [body]

"""A TCP proxy between psycopg and a real PostgreSQL that loses what networks lose.

It listens on loopback, forwards whole messages of the wire protocol (version 3, without encryption), counts the
commits of transactions that wrote something, and cuts connections at the message where it was told to. Client and
server are the real ones and know nothing of it.

    with PostgresProxy(server.port) as proxy:
        url = proxy.through(server.url("studies"))
        proxy.at_commit(3, Loss.ACKNOWLEDGEMENT)   # the third commit from now happens, and nobody is told
"""

from __future__ import annotations

import enum
import itertools
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

_PLAIN_PLEASE = {80877103, 80877104}
"""Codes of the untyped requests for TLS and for GSSAPI encryption; `N` is the answer that neither is there."""
_CHANGES = re.compile(rb"(INSERT 0|UPDATE|DELETE|COPY) [1-9]|CREATE|ALTER|DROP")
"""Command tags of statements that changed something."""
DELAY_SECONDS = 0.3
"""How much later than the client's end a delayed COMMIT reaches the server."""

Action = Callable[[], None]


class Loss(enum.Enum):
    """What becomes of a COMMIT whose connection is cut."""

    COMMIT = "commit"
    """It never reaches the server, which rolls back."""
    ACKNOWLEDGEMENT = "acknowledgement"
    """The server commits; the client never hears of it."""
    DELAYED = "delayed"
    """The client is cut off at once, and the server commits a moment later: while the client asks again."""


class PostgresProxy:
    """A proxy in front of the server at a loopback port, open from construction to `close`.

    All faults may be asked for from any thread, in any number. Commits and messages are counted over all
    connections, from 1; only commits of transactions that changed something count. What happens at a commit or a
    message happens in the proxy's thread before the message is forwarded.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._mutex = threading.Lock()
        self._at_rest = threading.Condition(self._mutex)
        self._acting = 0
        self._links: set[_Link] = set()
        self._losses: dict[int, Loss | Action] = {}
        self._actions: dict[int, list[Action]] = {}
        self._flowing = threading.Event()
        self._flowing.set()
        self.commits = 0
        """Commits seen so far, lost ones included."""
        self.messages = 0
        """Messages of clients seen so far."""
        self.port = 0
        self._listener: socket.socket | None = None
        self.accept()

    def through(self, url: str) -> str:
        """A URL of the server's with this proxy in its place."""
        return url.replace(f":{self._server_port}/", f":{self.port}/")

    def at_commit(self, count: int, loss: Loss | Action) -> None:
        """Lose commit number `count` from now, in the way of `loss`, or call it before forwarding the COMMIT."""
        with self._mutex:
            self._losses[self.commits + count] = loss

    def at_message(self, count: int, action: Action | None = None) -> None:
        """Cut its connection at the client message number `count` from now, or call `action` before forwarding it.

        `action` may take its time and call anything here; the connection of the message waits for it, others go on.
        """
        with self._mutex:
            self._actions.setdefault(self.messages + count, []).append(action or _cut)

    def forget(self) -> None:
        """Nothing more happens at commits and messages; what has begun to happen is waited for."""
        with self._at_rest:
            self._losses.clear()
            self._actions.clear()
            self._at_rest.wait_for(lambda: self._acting == 0)

    def cut(self) -> int:
        """Cut all connections now; returns how many."""
        links = self._open()
        for link in links:
            link.cut()
        return len(links)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Inside, nothing passes, and nobody is told."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Inside, all connections are cut and new ones are refused."""
        self._stop_listening()
        self.cut()
        try:
            yield
        finally:
            self.accept()

    def accept(self) -> None:
        """Listen, at the same port as ever."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port or _free_port()))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Cut everything; harmless when called again."""
        self._stop_listening()
        self._flowing.set()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> list[_Link]:
        with self._mutex:
            return list(self._links)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # ends `accept`, which `close` alone does not
            self._listener.close()
            self._listener = None

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:  # the server is down: whoever connects sees what it sees without us
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(self, client, server)
            with self._mutex:
                self._links.add(link)
            link.start()

    def _ended(self, link: _Link) -> None:
        with self._mutex:
            self._links.discard(link)

    def _pass_message(self) -> bool:
        """Do what was asked for at this message; False when its connection is to be cut."""
        with self._mutex:
            self.messages += 1
            actions = self._actions.pop(self.messages, [])
            self._acting += len(actions)
        whole = True
        for action in actions:
            try:
                if action is _cut:
                    whole = False
                else:
                    action()
            finally:
                with self._at_rest:
                    self._acting -= 1
                    self._at_rest.notify_all()
        return whole

    def _count_commit(self) -> Loss | Action | None:
        with self._mutex:
            self.commits += 1
            return self._losses.pop(self.commits, None)


class _Link:
    """One connection: a thread per direction, each forwarding whole messages."""

    def __init__(self, proxy: PostgresProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._wrote = False  # in the open transaction
        self._deaf = False  # the client is not told what the server says next
        self._ends = itertools.count(1)
        self._over = threading.Event()

    def start(self) -> None:
        for forward in (self._to_server, self._to_client):
            threading.Thread(target=self._forward, args=(forward,), daemon=True).start()

    def cut(self) -> None:
        """End both sides; each notices at once."""
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _forward(self, forward: Callable[[], None]) -> None:
        try:
            forward()
        except (OSError, EOFError, struct.error):
            pass
        finally:
            self.cut()
            self._over.set()
            if next(self._ends) == 2:
                self._client.close()
                self._server.close()
                self._proxy._ended(self)

    def _to_server(self) -> None:
        while True:  # untyped messages, until one is not about encryption
            length = _read(self._client, 4)
            body = _read(self._client, struct.unpack("!I", length)[0] - 4)
            if struct.unpack("!I", body[:4])[0] not in _PLAIN_PLEASE:
                break
            self._client.sendall(b"N")
        self._server.sendall(length + body)
        while True:
            message = _read_message(self._client)
            if not self._proxy._pass_message():
                raise EOFError
            self._proxy._flowing.wait()
            if self._wrote and message.startswith(b"Q") and message[5:].upper().startswith(b"COMMIT"):
                loss = self._proxy._count_commit()
                if loss is Loss.COMMIT:
                    raise EOFError
                if callable(loss):
                    loss()
                elif loss is not None:
                    self._deaf = True
                    if loss is Loss.DELAYED:
                        self._client.shutdown(socket.SHUT_RDWR)
                        time.sleep(DELAY_SECONDS)
                    self._server.sendall(message)
                    self._over.wait()  # the other thread ends both when the server has answered
                    return
            self._server.sendall(message)

    def _to_client(self) -> None:
        while True:
            message = _read_message(self._server)
            if self._deaf:
                if message.startswith(b"Z"):
                    raise EOFError
                continue
            if message.startswith(b"C") and _CHANGES.match(message, 5):
                self._wrote = True
            elif message.startswith(b"Z") and message[5:6] == b"I":
                self._wrote = False
            self._proxy._flowing.wait()
            self._client.sendall(message)


def _cut() -> None:
    """Stands for the end of a connection among the actions at a message."""


def _read_message(end: socket.socket) -> bytes:
    head = _read(end, 5)
    return head + _read(end, struct.unpack("!I", head[1:])[0] - 4)


def _read(end: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = end.recv(min(size, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _free_port() -> int:
    from tests.postgres import free_port

    return free_port()

"""A hub of one's own on loopback: what huggingface_hub's client asks of the real one when a folder is pushed."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a_token_that_may_write"
LARGE = 10_000
"""Files of more bytes go the way of large files."""


@dataclass
class Hub:
    """Repositories by name, as files by path; `private` ones by name; `log` of what was asked."""

    endpoint: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    broken: bool = False
    """Refuse every commit with an error of the server's own."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        self.hub.log.append(format % args)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._permitted():
            return
        if path == "/api/whoami-v2":
            self._answer(200, {"type": "user", "name": "me", "auth": {}})
        elif path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/")
            if name not in self.hub.repositories:
                self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            files = [{"rfilename": f} for f in self.hub.repositories[name]]
            self._answer(200, {"id": name, "private": name in self.hub.private, "siblings": files, "sha": "0" * 40})
        else:
            self._answer(404, {"error": f"no {path}"})

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.blobs[hashlib.sha256(body).hexdigest()] = body
        self._answer(200, {})

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if not self._permitted():
            return
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if name in self.hub.repositories:
                self._answer(
                    409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}
                )
                return
            self.hub.repositories[name] = {".gitattributes": b""}
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.hub.private.add(name)
            self._answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self._large_files(json.loads(body)["objects"])
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > LARGE else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self._answer(404, {"error": f"no {path}"})

    def _large_files(self, wanted: list[dict[str, Any]]) -> None:
        objects = []
        for file in wanted:
            upload = {"href": f"{self.hub.endpoint}/upload/{file['oid']}", "header": {}}
            there = file["oid"] in self.hub.blobs
            objects.append(
                {"oid": file["oid"], "size": file["size"]} | ({} if there else {"actions": {"upload": upload}})
            )
        self._answer(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _commit(self, name: str, body: bytes) -> None:
        if self.hub.broken:
            self._answer(400, {"error": "the disk of the hub is full"})
            return
        files = self.hub.repositories[name]
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        self._answer(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/1", "commitOid": "1" * 40})

    def _permitted(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer(401, {"error": "Invalid username or password."})
        return False

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(
        self, status: int, content: object, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

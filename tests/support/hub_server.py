"""A small server that speaks the Hugging Face hub's protocol, as `huggingface_hub` reads it; for tests.

Large files are Git LFS's: asking for one redirects to another origin ("localhost", where the hub is "127.0.0.1"), as
the real hub sends to its content network. What was asked for is kept, and connections can be cut on purpose.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

MEETING_S = 60
_LFS = (".safetensors", ".bin", ".onnx")
_API = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
_RESOLVE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repository:
    """Files at one revision. `readers` are the tokens whose accounts accepted the licence; None: it needs none."""

    files: dict[str, bytes]
    revision: str
    readers: set[str] | None = None


@dataclass(frozen=True)
class Asked:
    """A request for a file's content: how it was asked for, and how many bytes were sent."""

    path: str
    range: str | None
    authorization: str | None
    sent_bytes: int


@dataclass
class Hub:
    """What the server holds and does wrong.

    `cuts`: path -> how many bytes to send before the connection breaks off, one answer each. `swaps`: path -> what is
    sent in place of it. `meeting`: large files are sent once that many are asked for. `status`: answer all with this.
    `listing`: the body to send in place of a repository's list.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    swaps: dict[str, bytes] = field(default_factory=dict)
    ignores_ranges: bool = False
    meeting: threading.Barrier | None = None
    status: int = 0
    listing: bytes | None = None
    asked: list[Asked] = field(default_factory=list)

    def asked_for(self, path: str) -> list[Asked]:
        """Return the requests for a file's content, in order."""
        return [one for one in self.asked if one.path == path]


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a free port of this machine while the context is open."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` in this process talk to the server, and keep its files in `home`: HF_ENDPOINT, HF_HOME."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith(("HF_", "SD35_"))]:
        monkeypatch.delenv(name)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    close_session()  # of an earlier test: it keeps connections, and the proxies of when it was made


def sha1_of_blob(content: bytes) -> str:
    """Return the id that Git gives a file with this content."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def checksum(path: str, content: bytes) -> str:
    """Return the ETag of a file, which is its name in the cache."""
    return hashlib.sha256(content).hexdigest() if path.endswith(_LFS) else sha1_of_blob(content)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Print nothing: clients of these tests disconnect on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_CONNECT(self) -> None:
        self._refuse(407, "", "Proxy Authentication Required")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.status:
            self._refuse(self.hub.status, "", "on purpose")
        elif path.startswith("/cdn/"):
            _, _, name, file = path.split("/", 3)
            if self.hub.meeting:
                self.hub.meeting.wait(MEETING_S)
            self._send_file(file, self.hub.repositories[name.replace("--", "/")].files[file])
        elif found := _RESOLVE.fullmatch(path):
            if (repository := self._repository(found["name"], found["revision"], is_file=True)) is not None:
                self._resolve(found["name"], repository, found["path"])
        elif found := _API.fullmatch(path):
            if (repository := self._repository(found["name"], found["revision"], is_file=False)) is not None:
                self._list(found["name"], repository, is_tree=found["what"] == "tree")
        else:
            self._refuse(404, "", "Sorry, we can't find the page you are looking for.")

    def _repository(self, name: str, revision: str | None, *, is_file: bool) -> Repository | None:
        """Return the repository, or None after sending an error. Lists are public, files may be gated."""
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        repository = self.hub.repositories.get(name)
        if token and token not in self.hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None:
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif revision not in {None, "main", repository.revision}:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif is_file and repository.readers is not None and token not in repository.readers:
            why = "and you are not in the authorized list." if token else "You must be authenticated. Please log in."
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted {why}")
        else:
            return repository
        return None

    def _list(self, name: str, repository: Repository, *, is_tree: bool) -> None:
        entries: list[dict[str, Any]] = []
        for path, content in repository.files.items():
            entry: dict[str, Any] = {"type": "file", "path": path} if is_tree else {"rfilename": path}
            entry |= {"oid" if is_tree else "blobId": sha1_of_blob(content), "size": len(content)}
            if path.endswith(_LFS):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"size": len(content), "pointerSize": 134, "oid" if is_tree else "sha256": sha256}
            entries.append(entry)
        model = {"id": name, "sha": repository.revision, "siblings": entries, "private": False, "tags": []}
        listing = self.hub.listing or json.dumps(entries if is_tree else model).encode()
        self._send(200, {"Content-Type": "application/json"}, listing)

    def _resolve(self, name: str, repository: Repository, path: str) -> None:
        if path not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        content = repository.files[path]
        headers = {"X-Repo-Commit": repository.revision}
        if not path.endswith(_LFS):
            self._send_file(path, content, {**headers, "ETag": f'"{checksum(path, content)}"'})
            return
        port = urlsplit(self.hub.url).port
        headers |= {
            "X-Linked-Etag": f'"{checksum(path, content)}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"http://localhost:{port}/cdn/{name.replace('/', '--')}/{path}",
        }
        self._send(302, headers, b"")

    def _send_file(self, path: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        content = self.hub.swaps.get(path, content)
        asked = self.headers["Range"]
        status, headers = 200, dict(headers or {})
        if asked and not self.hub.ignores_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        cuts = self.hub.cuts.get(path)
        limit = cuts.pop(0) if cuts and self.command == "GET" else len(content)
        if self.command == "GET":
            self.hub.asked.append(Asked(path, asked, self.headers["Authorization"], min(limit, len(content))))
        self._send(status, {**headers, "Accept-Ranges": "bytes"}, content, limit)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, {**headers, "Content-Type": "application/json"}, json.dumps({"error": message}).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes, limit: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:limit])
        self.close_connection = limit is not None and limit < len(content)

"""A small server that speaks the Hugging Face hub's protocol, for tests of `huggingface_hub`.

Large files are stored in Git LFS: a request for one is redirected to another origin ("localhost"; the hub is
"127.0.0.1"), as the real hub redirects to its content network. The server records requests for files, and can break
connections.
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
    """The files of a repository at one revision.

    `readers` are the tokens of accounts that accepted the licence. None: every account may read the files.
    """

    files: dict[str, bytes]
    revision: str
    readers: set[str] | None = None


@dataclass(frozen=True)
class Asked:
    """A request for the content of a file: its headers, and the number of bytes sent."""

    path: str
    range: str | None
    authorization: str | None
    sent_bytes: int


@dataclass
class Hub:
    """The content of the server, and its faults.

    Attributes:
        cuts: Path to the numbers of bytes after which the connection breaks, one for each request.
        swaps: Path to the content that is sent instead of the file's.
        meeting: Requests for large files wait until as many have arrived.
        status: The status of all responses. 0: no fault.
        listing: Sent instead of the list of a repository's files.
        asked: The requests for the content of files, in order.
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
    """Let `huggingface_hub` in this process use the server, and store its files in `home`."""
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
    close_session()  # a session of an earlier test keeps its connections and proxies


def sha1_of_blob(content: bytes) -> str:
    """Return the ID of a file with this content in Git."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def checksum(path: str, content: bytes) -> str:
    """Return the ETag of a file, which is its name in the cache."""
    return hashlib.sha256(content).hexdigest() if path.endswith(_LFS) else sha1_of_blob(content)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Print nothing, because the clients of these tests disconnect on purpose."""


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
        """Return the repository, or None after an error response. Lists are public; files may be gated."""
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        repository = self.hub.repositories.get(name)
        if token and token not in self.hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None:
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif revision not in {None, "main", repository.revision}:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif is_file and repository.readers is not None and token not in repository.readers:
            reason = "and you are not in the authorized list." if token else "You must be authenticated. Please log in."
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted {reason}")
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
        range_header = self.headers["Range"]
        status, headers = 200, dict(headers or {})
        if range_header and not self.hub.ignores_ranges:
            start = int(range_header.removeprefix("bytes=").removesuffix("-"))
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        cuts = self.hub.cuts.get(path)
        limit = cuts.pop(0) if cuts and self.command == "GET" else len(content)
        if self.command == "GET":
            self.hub.asked.append(Asked(path, range_header, self.headers["Authorization"], min(limit, len(content))))
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

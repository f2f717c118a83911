"""The guard: the routes of Gradio that can be reached, and the limits of requests."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from sd35.ui.guard import MAX_BODY_BYTES, Guard
from sd35.ui.uploads import MAX_FORM_BYTES


async def through(request: Request) -> PlainTextResponse:
    """Respond as a fake Gradio, with the length of the body."""
    return PlainTextResponse(f"reached {len(await request.body())}")


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A client of a guard that serves files of one directory."""
    inner = Starlette(routes=[Route("/{path:path}", through, methods=["GET", "POST", "PUT"])])
    return TestClient(Starlette(routes=[Mount("/ui", Guard(inner, tmp_path / "own", body_timeout_s=30))]))


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/index.js", "/gradio_api/heartbeat/a1"])
def test_the_files_of_the_page_are_served(client: TestClient, path: str):
    """With a policy that keeps the browser from connecting to other hosts."""
    response = client.get(f"/ui{path}")
    assert (response.status_code, response.text) == (200, "reached 0")
    assert response.headers["content-security-policy"].startswith("default-src 'self';")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://example.com/",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://example.com/a.png",
        "/gradio_api/component_server",
        "/gradio_api/call/generated",
        "/gradio_api/deep_link",
        "/gradio_api/openapi.json",
        "/monitoring",
        "/login",
    ],
)
def test_other_routes_of_gradio_do_not_exist(client: TestClient, path: str):
    assert client.get(f"/ui{path}").status_code == 404
    assert client.post(f"/ui{path}", json={}).status_code == 404


def test_files_are_served_from_the_own_directory_only(client: TestClient, tmp_path: Path):
    """However the path is written."""
    own = tmp_path / "own"
    assert client.get(f"/ui/gradio_api/file={own}/a.png").status_code == 200
    for path in (f"{own}/../other/a.png", f"{own}%2f..%2fother%2fa.png", f"{tmp_path}/ownother/a.png", "a.png"):
        assert client.get(f"/ui/gradio_api/file={path}").status_code == 404, path


@pytest.mark.parametrize("file", ["/etc/passwd", "http://example.com/a.png", "../a.png", "a\0", "a" * 5000, None])
def test_an_event_that_names_a_foreign_file_is_refused(client: TestClient, tmp_path: Path, file: str | None):
    """At any place in its values. Gradio would download the file, and show it to anyone."""
    body = json.dumps({"data": [None, [{"value": {"path": file, "meta": {"_type": "gradio.FileData"}}}]]})
    escaped = body.replace("path", "p\\u0061th")
    for sent in (body.encode(), escaped.encode(), body.encode("utf-16")):
        assert client.post("/ui/gradio_api/queue/join", content=sent).status_code == 403
    own = json.dumps({"data": [{"path": f"{tmp_path}/own/a.png"}, "a path"]})
    assert client.post("/ui/gradio_api/queue/join", content=own).text == f"reached {len(own)}"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_an_event_with_invalid_json_is_refused(client: TestClient, body: bytes):
    """Another JSON parser might accept it."""
    assert client.post("/ui/gradio_api/queue/join", content=body).status_code == 403


def test_bodies_need_a_length_within_the_limit_and_the_same_site(client: TestClient):
    """Uploads have a larger limit."""

    def status(path: str, length: int | None, **headers: str) -> int:
        more = {} if length is None else {"content-length": str(length)}
        return client.post(f"/ui/gradio_api/{path}", headers={**more, **headers}, content=iter([b"{}"])).status_code

    assert status("queue/join", 0) == 200
    assert status("queue/join", MAX_BODY_BYTES + 1) == 413
    assert status("queue/join", None) == 411
    assert status("upload", MAX_FORM_BYTES + 1) == 413
    assert status("upload", 0, **{"sec-fetch-site": "cross-site"}) == 403
    assert client.put("/ui/gradio_api/upload").status_code == 404


def test_open_responses_end_when_the_guard_closes(tmp_path: Path):
    """Later requests get 503."""
    sent: list[Message] = []

    async def stream(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def scenario() -> None:
        begun = asyncio.Event()

        async def send(message: Message) -> None:
            sent.append(message)
            begun.set()

        guard = Guard(stream, tmp_path, body_timeout_s=30)
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/gradio_api/queue/data", "headers": []}
        responding = asyncio.create_task(guard(scope, receive, send))
        await begun.wait()
        guard.close()
        ended, _ = await asyncio.wait([responding], timeout=5)
        assert ended
        await guard(scope, receive, send)

    asyncio.run(scenario())
    assert [message.get("status") for message in sent] == [200, None, None, 503, None]
    assert sent[2] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_body_that_does_not_arrive_in_time_is_a_disconnect(tmp_path: Path):
    """So that Gradio stops waiting for it."""
    received: list[Message] = []

    async def reading(_: Scope, receive: Receive, __: Send) -> None:
        received.append(await receive())

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def ignore(_: Message) -> None:
        pass

    headers = [(b"content-length", b"9")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/gradio_api/cancel", "headers": headers}
    asyncio.run(Guard(reading, tmp_path, body_timeout_s=0.01)(scope, never, ignore))
    assert received == [{"type": "http.disconnect"}]

"""Uploads: one file per form, limited memory, and few stored files."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from sd35.ui import uploads
from sd35.ui.guard import Guard
from sd35.ui.uploads import Uploads
from tests.support.fake_backend import WAIT_S

PATH = "/ui/gradio_api/upload"


async def gradio(scope: Scope, _: Receive, __: Send) -> None:
    """Stand in for Gradio, which no upload may reach."""
    raise AssertionError(scope["path"])


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A client of a page that stores its files in `tmp_path`."""
    return TestClient(Starlette(routes=[Mount("/ui", Guard(gradio, tmp_path, body_timeout_s=30))]))


def files_in(directory: Path) -> list[Path]:
    """Return all files below a directory."""
    return [path for path in directory.rglob("*") if path.is_file()]


def test_an_upload_is_stored_under_its_name(client: TestClient, tmp_path: Path):
    """In its own directory. The response is its path, as Gradio's browser code expects."""
    content = bytes(range(256)) * 1000
    response = client.post(f"{PATH}?upload_id=a1", files={"files": ("a cat.png", content, "image/png")})
    (path,) = map(Path, response.json())
    assert path.name == "a cat.png"
    assert path.read_bytes() == content
    assert files_in(tmp_path) == [path]


def test_a_form_with_more_than_one_part_is_refused(client: TestClient, tmp_path: Path):
    """Before any file is written."""
    many = [("files", (f"{number}.png", b"a", "image/png")) for number in range(900)]
    for form in ({"files": many}, {"files": many[:2]}, {"files": many[:1], "data": {"more": "text"}}):
        response = client.post(PATH, **form)
        assert response.status_code == 400
        assert "Send exactly one file." in response.text
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--a\r\n\r\n"),
        ("multipart/form-data; boundary=a", b""),
        ("multipart/form-data; boundary=a", b"what is no form"),
        (
            "multipart/form-data; boundary=a",
            b'--a\r\nContent-Disposition: form-data; name="files"\r\n\r\n1\r\n--a--\r\n',
        ),
        ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data; filename="a"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=a", b"--a--\r\n"),
        ("multipart/form-data; boundary=a", b"--a\r\n\r\nno header\r\n--a--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 5000, b""),
    ],
    ids=["JSON", "no boundary", "empty", "no form", "no file", "cut off", "no part", "no header", "long boundary"],
)
def test_a_form_without_a_file_is_refused(client: TestClient, tmp_path: Path, content_type: str, body: bytes):
    assert client.post(PATH, content=body, headers={"content-type": content_type}).status_code == 400
    assert files_in(tmp_path) == []


@given(
    st.text() | st.sampled_from(["../../a.png", "..\\a.png", "/etc/passwd", "...", ".hidden", "a" * 500, "猫" * 200])
)
def test_a_file_is_stored_in_its_own_directory_whatever_its_name(name: str):
    """No name leads outside, is hidden, or is too long for a file system."""
    file_name = uploads._file_name(name)  # noqa: SLF001
    assert file_name
    assert Path(file_name).name == file_name
    assert not file_name.startswith(".")
    assert len(file_name.encode("utf-8", "replace")) <= 240


def test_the_oldest_files_beyond_the_limits_are_removed(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By number and by bytes, even if an event has already deleted some."""
    monkeypatch.setattr(uploads, "MAX_STORED", 3)
    monkeypatch.setattr(uploads, "MAX_STORED_BYTES", 100)
    paths = []
    for size_bytes in (10, 10, 10, 10, 95):
        paths.append(Path(client.post(PATH, files={"files": ("a.png", bytes(size_bytes))}).json()[0]))
        if len(paths) == 3:
            paths[1].unlink()
        if len(paths) == 4:
            assert sorted(files_in(tmp_path)) == sorted(paths[2:])
            assert not paths[0].parent.exists()
    assert files_in(tmp_path) == [paths[-1]]
    assert [each.name for each in tmp_path.iterdir()] == [paths[-1].parent.name]


HEAD = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
END = b"\r\n--a--\r\n"


def scope_of(address: str) -> Scope:
    """Return the scope of an upload from an address."""
    headers = [(b"content-type", b"multipart/form-data; boundary=a")]
    return {"type": "http", "method": "POST", "path": "/", "headers": headers, "client": (address, 1)}


async def complete() -> Message:
    """Receive a complete form."""
    return {"type": "http.request", "body": HEAD + b"b" * 50 + END, "more_body": False}


def stalled(sent: bytes, stopped: asyncio.Semaphore, hang_up: asyncio.Event) -> Receive:
    """Return a `receive` for a form that stalls after `sent`, and disconnects on `hang_up`."""
    pieces = [sent]

    async def receive() -> Message:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(), "more_body": True}
        stopped.release()
        await hang_up.wait()
        return {"type": "http.disconnect"}

    return receive


def statuses_while_others_send(app: Uploads, addresses: list[str], sent: bytes, uploading: list[str]) -> list[int]:
    """Return the statuses of complete uploads from `uploading`, while a form of each of `addresses` is stalled.

    After those have disconnected, one more upload is sent.
    """
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def scenario() -> None:
        hang_up, stopped = asyncio.Event(), asyncio.Semaphore(0)
        forms = [app(scope_of(address), stalled(sent, stopped, hang_up), send) for address in addresses]
        tasks = [asyncio.ensure_future(form) for form in forms]
        async with asyncio.timeout(WAIT_S):
            for _ in tasks:
                await stopped.acquire()
        for address in uploading:
            await app(scope_of(address), complete, send)
        hang_up.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await app(scope_of(uploading[0]), complete, send)

    asyncio.run(scenario())
    return statuses


def test_stalled_forms_do_not_block_others(tmp_path: Path):
    """Only received bytes count, so a hundred forms that have hardly begun use no memory."""
    app = Uploads(tmp_path)
    assert statuses_while_others_send(app, ["10.0.0.1"] * 100, HEAD, ["10.0.0.1", "10.0.0.2"]) == [200] * 3


def test_the_bytes_that_one_address_sends_at_once_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Other addresses are still served, and so is that address after its forms have disconnected."""
    monkeypatch.setattr(uploads, "MAX_HELD_BYTES_EACH", 500)
    sent = HEAD + bytes(230 - len(HEAD))
    app = Uploads(tmp_path)
    assert statuses_while_others_send(app, ["10.0.0.1"] * 2, sent, ["10.0.0.1", "10.0.0.2"]) == [503, 200, 200]


def test_the_bytes_that_all_send_at_once_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever their addresses are."""
    monkeypatch.setattr(uploads, "MAX_HELD_BYTES", 500)
    sent = HEAD + bytes(230 - len(HEAD))
    app = Uploads(tmp_path)
    assert statuses_while_others_send(app, ["10.0.0.1", "10.0.0.2"], sent, ["10.0.0.3"]) == [503, 200]


def test_an_upload_does_not_scan_the_directory(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    """So its duration does not depend on the number of files."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("rglob", "glob", "iterdir"):
        monkeypatch.setattr(Path, name, fail)
    monkeypatch.setattr("os.scandir", fail)
    monkeypatch.setattr("os.listdir", fail)
    assert client.post(PATH, files={"files": ("a.png", b"a")}).status_code == 200


def test_requesting_the_progress_of_an_upload_stores_nothing(client: TestClient):
    """Gradio would store a record for each made-up name."""
    response = client.get("/ui/gradio_api/upload_progress?upload_id=made-up")
    assert response.text == 'data: {"msg": "done"}\n\n'
    assert response.headers["content-type"].startswith("text/event-stream")

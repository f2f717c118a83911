"""Range requests and conditional requests for files in memory."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sd35.api.ranges import answer

CONTENT = bytes(range(100))
ETAG = '"abc"'


@pytest.mark.parametrize(
    ("byte_range", "content_range", "body"),
    [
        ("bytes=0-9", "bytes 0-9/100", CONTENT[:10]),
        ("bytes=90-", "bytes 90-99/100", CONTENT[90:]),
        ("bytes=-10", "bytes 90-99/100", CONTENT[90:]),
        ("bytes=0-0", "bytes 0-0/100", CONTENT[:1]),
        ("bytes=99-1000", "bytes 99-99/100", CONTENT[99:]),
        ("bytes=-1000", "bytes 0-99/100", CONTENT),
        ("Bytes= 5-6 ", "bytes 5-6/100", CONTENT[5:7]),
    ],
)
def test_a_range_is_answered_with_that_part(byte_range: str, content_range: str, body: bytes):
    part = answer(CONTENT, ETAG, {"range": byte_range})
    assert (part.status, part.body) == (206, body)
    assert part.headers == {"ETag": ETAG, "Accept-Ranges": "bytes", "Content-Range": content_range}


@pytest.mark.parametrize("byte_range", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=999999999999999999-"])
def test_a_range_outside_the_file_is_refused_with_its_size(byte_range: str):
    part = answer(CONTENT, ETAG, {"range": byte_range})
    assert (part.status, part.body, part.headers["Content-Range"]) == (416, b"", "bytes */100")


@pytest.mark.parametrize(
    "byte_range",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=9-1", "bytes=a-b", "items=0-1", "bytes=0-1,5-6", "bytes=\u0661-2"],
)
def test_without_a_single_valid_range_the_whole_file_is_sent(byte_range: str | None):
    """RFC 9110 allows this."""
    headers = {} if byte_range is None else {"range": byte_range}
    assert answer(CONTENT, ETAG, headers) == (200, {"ETag": ETAG, "Accept-Ranges": "bytes"}, CONTENT)


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [('"abc"', 304), ('W/"abc"', 304), ('"x", "abc"', 304), ("*", 304), ('"x"', 206), ("abc", 206), ("", 206)],
)
def test_a_file_that_the_client_has_already_is_not_sent_again(if_none_match: str, status: int):
    part = answer(CONTENT, ETAG, {"range": "bytes=0-9", "if-none-match": if_none_match})
    assert (part.status, part.headers["ETag"]) == (status, ETAG)
    assert len(part.body) == (0 if status == 304 else 10)


@pytest.mark.parametrize(
    ("if_range", "status"),
    [('"abc"', 206), (None, 206), ('W/"abc"', 200), ('"x"', 200), ("Wed, 25 Nov 2026 00:00:00 GMT", 200)],
)
def test_a_part_is_sent_only_if_the_file_has_not_changed(if_range: str | None, status: int):
    """Tags are compared strongly."""
    headers = {"range": "bytes=0-9"} | ({} if if_range is None else {"if-range": if_range})
    assert answer(CONTENT, ETAG, headers).status == status


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A client of an app that serves the same file from disk with Starlette, and from memory."""
    file = tmp_path_factory.mktemp("files") / "file"
    file.write_bytes(CONTENT)

    async def from_memory(request: Request) -> Response:
        part = answer(CONTENT, ETAG, request.headers)
        return Response(part.body, part.status, part.headers)

    async def from_disk(_: Request) -> Response:
        return FileResponse(Path(file))

    return TestClient(Starlette(routes=[Route("/memory", from_memory), Route("/disk", from_disk)]))


@given(first=st.none() | st.integers(0, 120), last=st.none() | st.integers(1, 120))
def test_a_well_formed_range_is_answered_as_starlette_does(client: TestClient, first: int | None, last: int | None):
    if first is None and last is None:
        return
    if first is not None and last is not None and last < first:
        return  # malformed: Starlette responds with 400
    byte_range = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    ours, theirs = (client.get(path, headers={"Range": byte_range}) for path in ("/memory", "/disk"))
    assert ours.status_code == theirs.status_code
    if ours.status_code == 206:
        assert ours.headers["content-range"] == theirs.headers["content-range"]
        assert ours.content == theirs.content

"""Malformed and malicious HTTP: it is refused, needs little memory, and gives no access to other files or headers."""

import gc
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import Mock

import pytest
from starlette.testclient import TestClient

from sd35.api.protocol import MAX_HEAD_BYTES, MAX_UNPARSED_BYTES, MAX_URL_BYTES, BoundedProtocol
from sd35.generation.model_pool import ModelPool
from tests.support.fake_backend import WAIT_S, FakeBackend
from tests.support.http import post_txt2img, problem
from tests.support.serving import cancellations, listening

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    """Open a connection to a server."""
    with socket.create_connection(address, timeout=WAIT_S) as connection:
        yield connection


def receive_all(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    chunks = []
    try:
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    except ConnectionResetError:  # the server closed with unread bytes
        pass
    return b"".join(chunks)


def problem_in(answer: bytes, status: int) -> dict[str, Any]:
    """Return the problem document in a raw response that closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    lines = head.lower().split(b"\r\n")
    assert b"connection: close" in lines
    assert b"content-type: application/problem+json" in lines
    content: dict[str, Any] = json.loads(body)
    assert content["status"] == status
    assert b"x-request-id: " + content["request_id"].encode() in lines
    return content


@pytest.fixture
def impatient_server(pool: ModelPool) -> Iterator[tuple[str, int]]:
    """A server with a timeout of 0.1 s for heads and bodies."""
    with listening(pool, body_timeout_s=0.1) as address:
        yield address


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        (GET + b"X-Long: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", 431, "32768 bytes"),
        (GET + b"".join(b"X-%d: a\r\n" % n for n in range(MAX_HEAD_BYTES)), 431, "32768 bytes"),
        (GET + b"X-Endless: " + b"a" * 10 * MAX_HEAD_BYTES, 431, "32768 bytes"),
        (b"GET /" + b"a" * MAX_URL_BYTES + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 414, "8192 bytes"),
        (b"GET /healthz?" + b"a" * 10 * MAX_URL_BYTES, 414, "8192 bytes"),
        (b"GET /v1/\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400, "not valid HTTP"),
        (b"nonsense\r\n\r\n", 400, "not valid HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "not valid HTTP"),
        (GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "not valid HTTP"),
        (GET + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400, "not valid HTTP"),
        (GET + b"X-Folded: a\r\n b\r\n\r\n", 400, "not valid HTTP"),
        (GET + b"X-Null: a\x00b\r\n\r\n", 400, "not valid HTTP"),
    ],
    ids=[
        "long header",
        "many headers",
        "endless header",
        "long address",
        "endless address",
        "bytes in the address",
        "nonsense",
        "TLS",
        "two lengths and none",
        "two lengths",
        "folded header",
        "null in a header",
    ],
)
def test_malformed_or_oversized_http_is_refused_with_a_problem(
    address: tuple[str, int], sent: bytes, status: int, detail: str
):
    with connected(address) as connection:
        connection.sendall(sent)
        assert detail in problem_in(receive_all(connection), status)["detail"]


@pytest.mark.parametrize(
    ("sent", "has_response"),
    [(b"", False), (b"GET /hea", True), (GET, True), (GET + b"X-Slow: a", True), (b"\r\n", True)],
    ids=["nothing", "half a line", "half a head", "half a header", "an empty line"],
)
def test_a_head_that_does_not_arrive_ends_the_connection(
    impatient_server: tuple[str, int],
    sent: bytes,
    has_response: bool,  # noqa: FBT001  a parameter
):
    """A client that sent nothing gets no response: browsers open connections in advance."""
    with connected(impatient_server) as connection:
        connection.sendall(sent)
        answer = receive_all(connection)
    if has_response:
        assert "did not arrive within 0.1 s" in problem_in(answer, 408)["detail"]
    else:
        assert answer == b""


def test_each_request_of_a_connection_has_the_same_time_for_its_head(impatient_server: tuple[str, int]):
    for second in (b"GET /hea", b"\r\n"):
        with connected(impatient_server) as connection:
            connection.sendall(GET + b"\r\n")
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            connection.sendall(second)
            problem_in(receive_all(connection), 408)


def test_pipelined_requests_are_answered_in_order(address: tuple[str, int]):
    count = 5000
    requests = b"".join(GET + b"X-Request-Id: n%d\r\n\r\n" % number for number in range(count))
    last = GET + b"X-Request-Id: last\r\nConnection: close\r\n\r\n"
    with connected(address) as connection:
        sending = threading.Thread(target=connection.sendall, args=(requests + last,))
        sending.start()
        answers = receive_all(connection)
        sending.join()
    assert re.findall(rb"x-request-id: (\w+)", answers) == [b"n%d" % number for number in range(count)] + [b"last"]


def test_pipelined_requests_of_a_client_that_does_not_read_take_little_memory(address: tuple[str, int]):
    with connected(address) as connection:
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            _flood(connection)
        protocols = [each for each in gc.get_objects() if BoundedProtocol in type(each).__mro__]
        (protocol,) = [each for each in protocols if not each.transport.is_closing()]
        assert len(protocol._unparsed) <= MAX_UNPARSED_BYTES + 256 * 1024  # noqa: SLF001  and one read of uvloop
        assert len(protocol.pipeline) <= 4096 // len(GET)


def test_a_disconnect_cancels_the_image_even_after_many_pipelined_bytes(
    pool: ModelPool, address: tuple[str, int], backend: FakeBackend
):
    cancelled = cancellations(pool)
    body = json.dumps({"prompt": "a cat", "steps": 1}).encode()
    head = (
        b"POST /v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    with connected(address) as connection, suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(head % len(body) + body)
        assert backend.started.wait(WAIT_S)
        connection.sendall(bytes(4 * MAX_UNPARSED_BYTES))
    assert cancelled.wait(WAIT_S)


def test_a_client_that_does_not_read_is_disconnected(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(BoundedProtocol, "stalled_s", 0.05)
    with connected(address) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        _flood(connection)


def _flood(connection: socket.socket) -> None:
    """Send requests and read nothing, until the server disconnects or sending times out."""
    while True:
        connection.sendall((GET + b"\r\n") * 10_000)


@pytest.mark.parametrize(("unsent_bytes", "is_aborted"), [([9, 9], True), ([9, 8, 8], True), ([9, 8, 7], False)])
def test_only_a_client_that_reads_nothing_for_the_whole_time_is_disconnected(
    unsent_bytes: list[int],
    is_aborted: bool,  # noqa: FBT001  a parameter
):
    protocol, transport, loop = BoundedProtocol.__new__(BoundedProtocol), Mock(), Mock()
    protocol.transport, protocol.loop, protocol.client, protocol.flow = transport, loop, None, Mock()
    transport.is_closing.return_value = False
    protocol._stall_timer = None  # noqa: SLF001  as set by `__init__`, which needs a server
    transport.get_write_buffer_size.return_value = unsent_bytes[0]
    protocol.pause_writing()
    for size in unsent_bytes[1:]:
        transport.get_write_buffer_size.return_value = size
        (_, callback, *arguments), _ = loop.call_later.call_args
        callback(*arguments)
    assert transport.abort.called == is_aborted


def test_a_body_that_does_not_arrive_is_408(impatient_server: tuple[str, int]):
    with connected(impatient_server) as connection:
        head = (
            b"POST /v1/txt2img HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        )
        connection.sendall(head + b'{"prompt": ')
        assert "the body did not arrive within 0.1 s" in problem_in(receive_all(connection), 408)["detail"]


def test_an_unread_body_does_not_keep_the_connection_open(impatient_server: tuple[str, int]):
    """The route has responded already, because it does not read bodies."""
    with connected(impatient_server) as connection:
        connection.sendall(GET + b"Content-Length: 1000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"a")
        receive_all(connection)  # until the server closes the connection


def test_the_limits_of_the_head_do_not_limit_the_body(impatient_server: tuple[str, int]):
    body = json.dumps({"prompt": "a cat", "negative_prompt": "a tree"}).ljust(500_000).encode()
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in (body[n : n + 50] for n in range(0, len(body), 50))
    )
    head = b"POST /v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    for sent in (
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
    ):
        with connected(impatient_server) as connection:
            connection.sendall(sent)
            assert receive_all(connection).startswith(b"HTTP/1.1 200")


def test_an_endless_chunk_extension_is_refused(address: tuple[str, int]):
    head = b"POST /v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: application/json\r\n\r\n"
    with connected(address) as connection:
        connection.sendall(head + b"1;" + b"a" * 10 * MAX_HEAD_BYTES)
        receive_all(connection)  # until the server closes the connection


PATHS = [
    "/static-offline-docs/../../../../../../etc/passwd",
    "/static-offline-docs/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/static-offline-docs/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/static-offline-docs/%2fetc%2fpasswd",
    "/static-offline-docs//etc/passwd",
    "/static-offline-docs/..%5c..%5cetc%5cpasswd",
    "/static-offline-docs/%00",
    "/static-offline-docs/" + "a" * 5000,
    "/static-offline-docs/",
    "/static-offline-docs",
    "/static-offline-docs/%ff",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/v1/../etc/passwd",
    "//etc/passwd",
    "/v1/models/%0d%0aX-Injected:%20yes",
    "/nothing?%ff=%00",
]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_no_path_leads_to_another_file(address: tuple[str, int], path: str):
    with connected(address) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = receive_all(connection)
    problem_in(answer, 404)
    assert b"root:" not in answer
    assert b"\r\nx-injected" not in answer.lower()


@pytest.mark.parametrize("host", [b"[", b"evil.example", b"a b", b"", b"\xff", b"x:99999999"])
def test_the_host_header_does_not_appear_in_pages(pool: ModelPool, host: bytes):
    with listening(pool, allowed_hosts="*") as address:
        for path, status in ((b"/", b"200"), (b"/nothing", b"404")):
            with connected(address) as connection:
                connection.sendall(b"GET " + path + b" HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n")
                answer = receive_all(connection)
            assert answer.startswith(b"HTTP/1.1 " + status), answer
            assert b"evil" not in answer
            if status == b"200":
                assert b'<a href="/docs">' in answer


def test_no_field_of_a_request_can_add_a_header(client: TestClient):
    injected = "a\r\nX-Injected: yes"
    for response in (
        post_txt2img(client, prompt=injected, negative_prompt=injected),
        post_txt2img(client, model=injected),
        post_txt2img(client, **{injected: 1}),
        client.get("/healthz", headers={b"x-request-id": injected.encode()}),
    ):
        assert "x-injected" not in response.headers
        assert not any("yes" in value for value in response.headers.values())


def test_compressed_and_oversized_bodies_are_refused(client: TestClient):
    headers = {"content-type": "application/json"}
    problem(client.post("/v1/txt2img", content=b"x", headers={**headers, "content-encoding": "gzip"}), 415)
    problem(client.post("/v1/txt2img", content=b"x", headers={**headers, "content-length": "99999999999"}), 413)

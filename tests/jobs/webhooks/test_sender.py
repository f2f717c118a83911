"""Webhooks as a receiver on the loopback address gets them."""

import asyncio
import base64
import hashlib
import hmac
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sd35.jobs.webhooks.sender import ATTEMPTS, wait_s
from sd35.storage.jobs import WEBHOOK_LEASE_S
from tests.support.fake_backend import WAIT_S
from tests.support.webhooks import NAME, SECRET, Sending

ReceivedRequest = tuple[str, dict[str, str], bytes]  # path, headers, body


@dataclass
class Receiver:
    """The requests that arrived, and the statuses of the next responses. The last status repeats."""

    port: int = 0
    requests: list[ReceivedRequest] = field(default_factory=list)
    statuses: list[int] = field(default_factory=lambda: [204])
    behave: Callable[[BaseHTTPRequestHandler], None] = lambda _: None
    arrived: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.receiver.requests.append((self.path, dict(self.headers.items()), body))
        statuses = self.receiver.statuses
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.send_header("Location", f"http://127.0.0.1:{self.receiver.port}/elsewhere")
        self.end_headers()
        self.receiver.arrived.set()
        self.receiver.behave(self)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Ignore errors: some connections end early on purpose."""


@contextmanager
def receiving(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"receiver": receiver}))
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver over plain HTTP."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def sending() -> Sending:
    """A sender that may use private addresses."""
    return Sending()


def test_a_webhook_arrives_signed(sending: Sending, receiver: Receiver):
    """It has an ID, a time and a signature. After delivery, it is not pending any more."""
    job = sending.end_job(f"http://{NAME}:{receiver.port}/hook?a=1")
    assert sending.send() == 1
    ((path, headers, body),) = receiver.requests
    assert (path, json.loads(body)) == ("/hook?a=1", {"id": job.id})
    assert headers["Host"] == f"{NAME}:{receiver.port}"
    assert (headers["Webhook-Id"], headers["Webhook-Timestamp"]) == (job.id, "1000")
    digest = hmac.new(SECRET, f"{job.id}.1000.".encode() + body, hashlib.sha256).digest()
    assert headers["Webhook-Signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert headers["Content-Type"] == "application/json"
    assert sending.pending() == []
    assert sending.results == ["delivered"]


def test_a_name_is_resolved_once_and_only_those_addresses_are_used(sending: Sending, receiver: Receiver):
    """So the name cannot lead elsewhere after the check. If one address fails, another is used."""
    sending.addresses = ["127.9.9.9", "127.0.0.1"]
    sending.end_job(f"http://{NAME}:{receiver.port}/")
    sending.send()
    assert sending.resolved == [NAME]
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_a_private_address_is_never_connected_to(sending: Sending, receiver: Receiver, address: str):
    """Whatever name leads there. It is a failed attempt, because the name may have another address later."""
    sending.allow_private, sending.addresses = False, [address]
    sending.end_job(f"http://{NAME}:{receiver.port}/")
    sending.end_job(f"http://127.0.0.1:{receiver.port}/")
    assert sending.send() == 2
    assert receiver.requests == []
    assert [delivery.attempts for delivery in sending.pending()] == [1, 1]


def test_a_redirect_is_not_followed(sending: Sending, receiver: Receiver):
    """It could lead to a private address. It is a failed attempt."""
    receiver.statuses = [307]
    sending.end_job(f"http://{NAME}:{receiver.port}/")
    sending.send()
    assert [path for path, *_ in receiver.requests] == ["/"]
    assert [delivery.attempts for delivery in sending.pending()] == [1]


def test_a_failed_webhook_is_retried_later(sending: Sending, receiver: Receiver):
    """With the same ID and a new time, and not before its wait is over."""
    receiver.statuses = [500, 200]
    job = sending.end_job(f"http://{NAME}:{receiver.port}/")
    assert sending.send() == 1
    sending.now_s += 3
    assert sending.send() == 0
    sending.now_s += 4
    assert sending.send() == 1
    assert [headers["Webhook-Id"] for _, headers, _ in receiver.requests] == [job.id] * 2
    assert [headers["Webhook-Timestamp"] for _, headers, _ in receiver.requests] == ["1000", "1007"]
    assert sending.results == ["postponed", "delivered"]
    assert sending.pending() == []


def test_a_webhook_is_given_up_after_a_day(sending: Sending, receiver: Receiver):
    receiver.statuses = [500]
    sending.end_job(f"http://{NAME}:{receiver.port}/")
    for attempts in range(1, ATTEMPTS + 1):
        assert sending.send() == 1
        sending.now_s += wait_s(attempts, 1.0) or WEBHOOK_LEASE_S
    assert len(receiver.requests) == ATTEMPTS
    assert sending.results == ["postponed"] * (ATTEMPTS - 1) + ["given_up"]
    assert sending.pending() == []


def test_waits_grow_to_a_day_and_are_spread():
    """From seconds to hours, so that a receiver that is back is not flooded."""
    waits = [wait_s(attempts, 0.5) for attempts in range(1, ATTEMPTS + 1)]
    assert waits[:3] == [5.0, 20.0, 80.0]
    assert waits[-1] is None
    assert 24 * 3600 < sum(wait or 0 for wait in waits) < 27 * 3600
    assert (wait_s(1, 0.0), wait_s(1, 1.0)) == (3.75, 6.25)


def test_a_webhook_answered_with_410_is_not_retried(sending: Sending, receiver: Receiver):
    """With 410 Gone, the receiver says that it wants no more webhooks."""
    receiver.statuses = [410]
    sending.end_job(f"http://{NAME}:{receiver.port}/")
    sending.send()
    assert sending.pending() == []


def test_an_endless_response_is_not_read(sending: Sending, receiver: Receiver):
    """Only the status counts."""

    def write_forever(handler: BaseHTTPRequestHandler) -> None:
        while True:
            handler.wfile.write(b"x" * 2**16)

    receiver.statuses, receiver.behave = [200], write_forever
    sending.end_job(f"http://{NAME}:{receiver.port}/")
    sending.send()
    assert sending.pending() == []


def test_an_unreachable_receiver_is_a_failed_attempt(sending: Sending, receiver: Receiver):
    """Whether its name is unknown or its server is down. Other webhooks are not affected."""

    def fail(host: str) -> list[str]:
        raise OSError(f"{host} is not known")

    with receiving() as closed:
        pass
    sending.end_job(f"http://{NAME}:{closed.port}/")
    sending.end_job(f"http://{NAME}:{receiver.port}/")
    sending.send()
    sending.lookup = fail
    sending.end_job(f"http://{NAME}:{receiver.port}/")
    sending.send()
    assert len(receiver.requests) == 1
    assert [delivery.attempts for delivery in sending.pending()] == [1, 1]


def test_the_webhook_of_a_deleted_job_is_not_sent(sending: Sending, receiver: Receiver):
    """It is deleted with the job, and not counted."""
    sending.end_job(f"http://{NAME}:{receiver.port}/")

    def delete(job_id: str) -> None:
        """Delete the job after its webhook was claimed."""
        assert sending.store.delete(job_id, None)

    sending.bodies = delete
    assert sending.send() == 1
    assert receiver.requests == []
    assert sending.pending() == []
    assert sending.results == []


def test_a_running_sender_sends_when_it_is_woken(sending: Sending, receiver: Receiver):
    """Without waiting for its next poll."""

    async def scenario() -> None:
        async with sending.running() as sender:
            await asyncio.sleep(0)
            sending.end_job(f"http://{NAME}:{receiver.port}/")
            sender.wake()
            assert await asyncio.to_thread(receiver.arrived.wait, WAIT_S)

    asyncio.run(scenario())


def test_a_cancelled_sender_always_ends(sending: Sending, monkeypatch: pytest.MonkeyPatch):
    """Even if it is woken at the same moment. Otherwise, the service would never stop."""
    monkeypatch.setattr("sd35.jobs.webhooks.sender._REST_S", 0.0)

    async def scenario(turns: int) -> bool:
        """Wake a sender for `turns` turns of the event loop, then cancel it. Returns whether it ended."""
        async with sending.sender() as sender:
            running = asyncio.create_task(sender.run())
            for _ in range(turns):
                sender.wake()
                await asyncio.sleep(0)
            running.cancel()
            ended, _ = await asyncio.wait([running], timeout=1.0)
            running.cancel()
            await asyncio.wait([running])
            return bool(ended)

    assert all(asyncio.run(scenario(turns)) for turns in range(40))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which creates the certificate, is not installed")
def test_the_certificate_must_match_the_host_name(sending: Sending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not the address that the sender connects to."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    name_options = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    key_options = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(["openssl", "req", "-x509", *name_options, *key_options], check=True, capture_output=True)  # noqa: S607
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with receiving(context) as receiver:
        sending.end_job(f"https://{NAME}:{receiver.port}/")
        other = sending.end_job(f"https://other.example:{receiver.port}/")
        sending.send()
        assert [headers["Host"] for _, headers, _ in receiver.requests] == [f"{NAME}:{receiver.port}"]
        assert [delivery.job_id for delivery in sending.pending()] == [other.id]

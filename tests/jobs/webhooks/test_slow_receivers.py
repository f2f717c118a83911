"""Receivers that do not answer delay no other webhooks, and attempts to reach them time out."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sd35.jobs.webhooks.concurrency import PER_HOST, PER_OWNER
from sd35.jobs.webhooks.transport import look_up
from sd35.storage.database import MEMORY, open_database
from sd35.telemetry.metrics import WebhookResult
from tests.support.fake_backend import WAIT_S
from tests.support.webhooks import Sending

JOBS = 100
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Behave = Callable[["Server", Streams], Awaitable[None]]


@dataclass
class Server:
    """A receiver on this machine. `arrived` is set on the first connection. Set `released` to end its handlers."""

    behave: Behave
    port: int = 0
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _handlers: list[asyncio.Future[None]] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Server"]:
        """Accept connections."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.released.set()
            server.close()
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*self._handlers)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._handlers.append(asyncio.ensure_future(self._handle(reader, writer)))

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.arrived.set()
        with suppress(OSError, EOFError):
            await self.behave(self, (reader, writer))
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def answer(_: Server, streams: Streams) -> None:
    """Answer each request as a receiver should."""
    reader, writer = streams
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    await writer.drain()


async def accept_only(server: Server, _: Streams) -> None:
    """Accept a connection and never answer, neither with HTTP nor with a TLS handshake."""
    await server.released.wait()


async def send_headers_forever(server: Server, streams: Streams) -> None:
    """Send one header after the other."""
    streams[1].write(b"HTTP/1.1 200 OK\r\n")
    while not server.released.is_set():
        streams[1].write(b"X-More: 1\r\n")
        await streams[1].drain()
        await asyncio.sleep(0.01)


async def send_interim_responses_forever(server: Server, streams: Streams) -> None:
    """Send one 100 Continue after the other."""
    while not server.released.is_set():
        streams[1].write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await streams[1].drain()
        await asyncio.sleep(0.01)


@pytest.fixture(params=["memory", "sqlite"])
def sending(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sending]:
    """A sender with a store of each kind."""
    database = open_database(MEMORY if request.param == "memory" else str(tmp_path / "jobs.db"))
    yield Sending(database.jobs)
    database.close()


@pytest.mark.parametrize("owner", ["me", "you"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_receiver_that_never_answers_delays_no_other(sending: Sending, owner: str, scheme: str):
    """Webhooks to another host, of the same owner or another, arrive while a hundred are stuck."""

    async def scenario() -> None:
        async with Server(accept_only).serving() as stuck, Server(answer).serving() as good:
            for _ in range(JOBS):
                sending.end_job(f"{scheme}://stuck.example:{stuck.port}/")
            async with sending.running() as sender:
                await asyncio.wait_for(stuck.arrived.wait(), WAIT_S)
                sending.now_s += 1
                sending.end_job(f"http://good.example:{good.port}/", owner)
                sender.wake()
                await asyncio.wait_for(good.arrived.wait(), WAIT_S)
                assert sending.results in ([], ["delivered"])  # no other attempt has ended
                assert 0 < stuck.connections <= PER_HOST

    asyncio.run(scenario())


def test_owners_with_many_stuck_hosts_delay_no_other_owner(sending: Sending):
    """A hundred hosts that never answer use only the slots of their owner."""

    async def scenario() -> None:
        async with Server(accept_only).serving() as stuck, Server(answer).serving() as good:
            for number in range(JOBS):
                sending.end_job(f"http://stuck{number}.example:{stuck.port}/")
            async with sending.running() as sender:
                await asyncio.wait_for(stuck.arrived.wait(), WAIT_S)
                sending.now_s += 1
                sending.end_job(f"http://good.example:{good.port}/", "you")
                sender.wake()
                await asyncio.wait_for(good.arrived.wait(), WAIT_S)
                assert sending.results in ([], ["delivered"])  # no other attempt has ended
                assert 0 < stuck.connections <= PER_OWNER

    asyncio.run(scenario())


@pytest.mark.parametrize("behave", [accept_only, send_headers_forever, send_interim_responses_forever])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_attempt_times_out_wherever_it_stalls(
    sending: Sending, monkeypatch: pytest.MonkeyPatch, behave: Behave, scheme: str
):
    """Without a response, in a TLS handshake, in endless headers, or in endless interim responses."""
    monkeypatch.setattr("sd35.jobs.webhooks.sender._ATTEMPT_S", 0.3)

    async def scenario() -> None:
        async with Server(behave).serving() as stuck, Server(answer).serving() as good:
            late = sending.end_job(f"{scheme}://stuck.example:{stuck.port}/")
            sending.end_job(f"http://good.example:{good.port}/")
            async with sending.sender() as sender, asyncio.TaskGroup() as attempts:
                await sender.start_due(attempts)
            assert [(one.job_id, one.attempts) for one in sending.pending()] == [(late.id, 1)]

    asyncio.run(scenario())


def test_an_attempt_that_timed_out_leaves_no_connection(sending: Sending, monkeypatch: pytest.MonkeyPatch):
    """Even during a TLS handshake. A receiver that never answers cannot collect open connections."""
    monkeypatch.setattr("sd35.jobs.webhooks.sender._ATTEMPT_S", 0.3)
    closed = asyncio.Event()

    async def read_until_closed(_: Server, streams: Streams) -> None:
        await streams[0].read()
        closed.set()

    async def scenario() -> None:
        async with Server(read_until_closed).serving() as stuck, sending.sender() as sender:
            sending.end_job(f"https://stuck.example:{stuck.port}/")
            async with asyncio.TaskGroup() as attempts:
                await sender.start_due(attempts)
            await asyncio.wait_for(closed.wait(), WAIT_S)

    asyncio.run(scenario())


def test_a_slow_name_server_blocks_no_other_thread(sending: Sending, monkeypatch: pytest.MonkeyPatch):
    """Stuck lookups use neither the threads that read the store nor the slots of other owners."""
    released, getaddrinfo = threading.Event(), socket.getaddrinfo
    stuck_hosts: list[str] = []

    def slow(host: str, *args: object, **more: object) -> object:
        if "stuck" in host:
            stuck_hosts.append(host)
            released.wait(3 * WAIT_S)
        return getaddrinfo("127.0.0.1", *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with Server(answer).serving() as good:
            for number in range(JOBS):
                sending.end_job(f"http://stuck{number}.example:{good.port}/")
            sending.now_s += 1
            sending.end_job(f"http://good.example:{good.port}/", "you")
            try:
                async with sending.running():
                    await asyncio.wait_for(good.arrived.wait(), WAIT_S)
                    assert 0 < len(stuck_hosts) <= PER_OWNER
            finally:
                released.set()

    sending.lookup = look_up
    asyncio.run(scenario())


def test_a_lookup_that_outlasts_its_attempt_keeps_the_slot(sending: Sending, monkeypatch: pytest.MonkeyPatch):
    """So stuck lookups of an owner never use more threads than the owner has slots."""
    monkeypatch.setattr("sd35.jobs.webhooks.sender._ATTEMPT_S", 0.05)
    released, timed_out, started = threading.Event(), threading.Event(), threading.Semaphore(0)

    def stuck(_: str) -> list[str]:
        started.release()
        released.wait(3 * WAIT_S)
        return []

    def on_result(result: WebhookResult) -> None:
        sending.results.append(result)
        if len(sending.results) == PER_OWNER:
            timed_out.set()

    sending.lookup = stuck

    async def scenario() -> None:
        for number in range(JOBS):
            sending.end_job(f"http://stuck{number}.example/")
        try:
            async with sending.sender() as sender, asyncio.TaskGroup() as attempts:
                sender.on_result = on_result
                await sender.start_due(attempts)
                await asyncio.to_thread(timed_out.wait, WAIT_S)
                await sender.start_due(attempts)
                assert sum(one.count for one in sending.store.due_webhooks(sending.now_s)) == JOBS - PER_OWNER
                released.set()
        finally:
            released.set()
        assert sum(started.acquire(blocking=False) for _ in range(JOBS)) == PER_OWNER

    asyncio.run(scenario())


def test_a_host_that_was_slow_gets_one_slot(sending: Sending, monkeypatch: pytest.MonkeyPatch):
    """Until it answers quickly again."""
    monkeypatch.setattr("sd35.jobs.webhooks.sender._SLOW_S", 0.0)

    async def scenario() -> None:
        async with Server(answer).serving() as good, sending.sender() as sender:

            async def sent() -> int:
                """Send once, and return the number of webhooks sent."""
                before = good.connections
                async with asyncio.TaskGroup() as attempts:
                    await sender.start_due(attempts)
                return good.connections - before

            for _ in range(3 * PER_HOST):
                sending.end_job(f"http://good.example:{good.port}/")
            assert await sent() == PER_HOST
            monkeypatch.setattr("sd35.jobs.webhooks.sender._SLOW_S", WAIT_S)
            assert await sent() == 1
            assert await sent() == PER_HOST

    asyncio.run(scenario())


def test_an_address_that_does_not_answer_gives_way_to_the_next(sending: Sending, monkeypatch: pytest.MonkeyPatch):
    """If a name has several addresses, one that cannot be reached does not use up the whole attempt."""
    monkeypatch.setattr("sd35.jobs.webhooks.transport._CONNECT_S", 0.3)
    with socket.create_server(("127.8.8.8", 0), backlog=0) as full:  # accepts nothing
        port = full.getsockname()[1]
        waiting = []
        for _ in range(4):  # fill its queue, so that further connections get no answer
            client = socket.socket()
            client.setblocking(False)  # noqa: FBT003  Python's own signature
            client.connect_ex(("127.8.8.8", port))
            waiting.append(client)
        sending.addresses = ["127.8.8.8", "127.0.0.1"]

        async def scenario() -> None:
            async with Server(answer, port=port).serving() as good:
                sending.end_job(f"http://good.example:{port}/")
                async with sending.sender() as sender, asyncio.TaskGroup() as attempts:
                    await sender.start_due(attempts)
                assert good.connections == 1
            assert sending.pending() == []

        asyncio.run(scenario())
        for client in waiting:
            client.close()

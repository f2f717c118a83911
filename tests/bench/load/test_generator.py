"""The load generator: schedules, latencies from the scheduled moment, and rates within a window."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.bench.load.dialects import DIALECTS
from sd35.bench.load.generator import LoadClient, RequestResult, arrivals, closed_loop, completion_rate, open_loop
from sd35.bench.load.workload import BenchRequest
from tests.bench.conftest import request_result

PNG = b"\x89PNG and so on"


def endless_requests() -> Iterator[BenchRequest]:
    """Yield requests without end."""
    return (BenchRequest("any", "a cat", seed) for seed in itertools.count(1))


@given(rate=st.floats(0.1, 200), seconds=st.floats(0.1, 20), seed=st.text(max_size=5))
def test_arrivals_are_sorted_within_the_time_and_fixed_by_the_seed(rate: float, seconds: float, seed: str):
    """The same seed gives the same times."""
    moments = arrivals(rate, seconds, seed)
    assert moments == sorted(moments) == arrivals(rate, seconds, seed)
    assert all(0 < moment < seconds for moment in moments)


def test_arrivals_are_a_poisson_process():
    """Gaps are exponential, independent, and 1 / rate on average. The variance of counts equals their mean."""
    moments = np.array(arrivals(50, 1000, "a long one"))
    gaps = np.diff(moments)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert np.mean(gaps > 1 / 50) == pytest.approx(np.exp(-1), abs=0.02)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.03)
    counts = np.bincount(moments.astype(int), minlength=1000)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.15)


@asynccontextmanager
async def stalling_server(until: int) -> AsyncIterator[str]:
    """Run a server that answers only after `until` requests have arrived."""
    count, enough = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        await reader.readexactly(length)
        count += 1
        if count == until:
            enough.set()
        await enough.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


def test_an_open_loop_does_not_wait_for_responses():
    """A server that stalls until the last request still receives all of them, each timed from its scheduled moment."""

    async def run() -> list[RequestResult]:
        async with stalling_server(5) as url, LoadClient(url, DIALECTS["plain"]) as client:
            return await open_loop(client, endless_requests(), [0.0, 0.01, 0.02, 0.03, 0.06])

    answers = asyncio.run(run())
    assert [answer.status for answer in answers] == ["completed"] * 5
    assert [round(answer.scheduled_s - answers[0].scheduled_s, 6) for answer in answers] == [
        0.0,
        0.01,
        0.02,
        0.03,
        0.06,
    ]
    assert answers[0].latency_s >= 0.06  # from its scheduled moment until the last request arrived


def test_latency_counts_from_the_scheduled_moment_if_the_client_is_late():
    """The latency of a request that is sent after a stall includes the stall."""

    class Stalling(LoadClient):
        async def send(self, request: BenchRequest, scheduled_s: float | None = None) -> RequestResult:
            time.sleep(0.1)  # noqa: ASYNC251  blocks the event loop on purpose
            return await super().send(request, scheduled_s)

    async def run() -> list[RequestResult]:
        async with stalling_server(1) as url, Stalling(url, DIALECTS["plain"]) as client:
            return await open_loop(client, endless_requests(), [0.0, 0.001, 0.002])

    answers = asyncio.run(run())
    assert [round(answer.scheduled_s - answers[0].scheduled_s, 6) for answer in answers] == [0.0, 0.001, 0.002]
    assert answers[2].latency_s >= 0.298


def test_a_closed_loop_keeps_one_request_per_client_under_way():
    """A server that waits for three requests answers three clients."""

    async def run() -> list[RequestResult]:
        async with stalling_server(3) as url, LoadClient(url, DIALECTS["plain"]) as client:
            return await closed_loop(client, endless_requests(), clients=3, seconds=0.05)

    answers = asyncio.run(run())
    assert len(answers) >= 3
    assert {answer.status for answer in answers} == {"completed"}


def test_an_unreachable_server_is_a_failed_request():
    """The message names the exception."""

    async def run() -> RequestResult:
        async with LoadClient("http://127.0.0.1:9", DIALECTS["plain"]) as client:
            return await client.send(next(endless_requests()))

    answer = asyncio.run(run())
    assert answer.status == "failed"
    assert "ConnectError" in answer.message


def test_an_image_partly_within_the_window_counts_in_proportion():
    """A refused request does not count."""
    images = [
        request_result(2.0, scheduled_s=-1),
        request_result(1.0, scheduled_s=3),
        request_result(2.0, scheduled_s=9),
        request_result(1.0, scheduled_s=4, status="refused"),
    ]
    assert completion_rate(images, 0.0, 10.0, lambda _: 1.0) == pytest.approx((0.5 + 1 + 0.5) / 10)


@given(clients=st.integers(1, 9), latency_s=st.floats(0.3, 7))
def test_the_rate_of_a_steady_closed_loop_follows_littles_law(clients: int, latency_s: float):
    """The rate is the number of clients over the latency, even if only few images fit into the window."""
    done = [
        request_result(latency_s, scheduled_s=number * latency_s)
        for number in range(int(10 / latency_s) + 1)
        for _ in range(clients)
    ]
    assert completion_rate(done, 0.0, 10.0, lambda _: 1.0) == pytest.approx(clients / latency_s)

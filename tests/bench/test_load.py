"""Load: when requests are due, what a latency counts from, and what is made in a time."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.bench.dialects import DIALECTS
from sd35.bench.load import Asked, Asking, arrivals, closed_loop, open_loop, rate_within
from sd35.bench.workload import BenchRequest
from tests.bench.conftest import asked

PNG = b"\x89PNG and so on"


def endless() -> Iterator[BenchRequest]:
    """Requests."""
    return (BenchRequest("any", "a cat", seed) for seed in itertools.count(1))


@given(rate=st.floats(0.1, 200), seconds=st.floats(0.1, 20), seed=st.text(max_size=5))
def test_arrivals_lie_in_their_time_in_order(rate: float, seconds: float, seed: str):
    """And the same seed gives the same."""
    moments = arrivals(rate, seconds, seed)
    assert moments == sorted(moments) == arrivals(rate, seconds, seed)
    assert all(0 < moment < seconds for moment in moments)


def test_arrivals_are_a_poisson_process():
    """Gaps are exponential: of the mean that the rate says, memoryless, and counts vary as much as their mean."""
    moments = np.array(arrivals(50, 1000, "a long one"))
    gaps = np.diff(moments)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert np.mean(gaps > 1 / 50) == pytest.approx(np.exp(-1), abs=0.02)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.03)
    counts = np.bincount(moments.astype(int), minlength=1000)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.15)


@asynccontextmanager
async def holding(until: int) -> AsyncIterator[str]:
    """A server that answers nobody until so many have asked."""
    came, enough = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        await reader.readexactly(length)
        came += 1
        if came == until:
            enough.set()
        await enough.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


def test_an_open_loop_waits_for_nobody():
    """A server that stalls until the last has asked is asked by all of them, each counted from when it was due."""

    async def run() -> list[Asked]:
        async with holding(5) as url, Asking(url, DIALECTS["plain"]) as asking:
            return await open_loop(asking, endless(), [0.0, 0.01, 0.02, 0.03, 0.06])

    answers = asyncio.run(run())
    assert [answer.end for answer in answers] == ["made"] * 5
    assert [round(answer.due_s - answers[0].due_s, 6) for answer in answers] == [0.0, 0.01, 0.02, 0.03, 0.06]
    assert answers[0].took_s >= 0.06  # from its own moment until the last had asked


def test_a_latency_counts_from_the_moment_that_was_meant():
    """Also where the client itself came late: what is sent after a stall had waited for it."""

    class Stalling(Asking):
        async def ask(self, wanted: BenchRequest, due_s: float | None = None) -> Asked:
            time.sleep(0.1)  # noqa: ASYNC251  it holds up everything: that is what is tried
            return await super().ask(wanted, due_s)

    async def run() -> list[Asked]:
        async with holding(1) as url, Stalling(url, DIALECTS["plain"]) as asking:
            return await open_loop(asking, endless(), [0.0, 0.001, 0.002])

    answers = asyncio.run(run())
    assert [round(answer.due_s - answers[0].due_s, 6) for answer in answers] == [0.0, 0.001, 0.002]
    assert answers[2].took_s >= 0.298


def test_a_closed_loop_has_as_many_under_way_as_clients():
    """Of a server that waits for three, three clients get their images, and each asks again only after its own."""

    async def run() -> list[Asked]:
        async with holding(3) as url, Asking(url, DIALECTS["plain"]) as asking:
            return await closed_loop(asking, endless(), clients=3, seconds=0.05)

    answers = asyncio.run(run())
    assert len(answers) >= 3
    assert {answer.end for answer in answers} == {"made"}


def test_a_server_that_is_not_there_is_a_failure_not_an_end():
    """With its words."""

    async def run() -> Asked:
        async with Asking("http://127.0.0.1:9", DIALECTS["plain"]) as asking:
            return await asking.ask(next(endless()))

    answer = asyncio.run(run())
    assert answer.end == "failed"
    assert "ConnectError" in answer.said


def test_what_lay_half_within_counts_half():
    """And what was refused counts nothing."""
    images = [asked(2.0, due_s=-1), asked(1.0, due_s=3), asked(2.0, due_s=9), asked(1.0, due_s=4, end="refused")]
    assert rate_within(images, 0.0, 10.0, lambda _: 1.0) == pytest.approx((0.5 + 1 + 0.5) / 10)


@given(clients=st.integers(1, 9), took_s=st.floats(0.3, 7))
def test_the_rate_of_a_steady_closed_loop_is_littles(clients: int, took_s: float):
    """So many clients over how long an image takes, however few images fit into the time."""
    done = [asked(took_s, due_s=number * took_s) for number in range(int(10 / took_s) + 1) for _ in range(clients)]
    assert rate_within(done, 0.0, 10.0, lambda _: 1.0) == pytest.approx(clients / took_s)

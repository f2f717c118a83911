"""Load: in a closed loop, where clients wait for their images, and in an open one, which waits for nobody.

In the open loop a request is due at a moment that chance set beforehand (a Poisson process), and its latency counts
from there: a server that stalls, or a client that comes late, cannot hide it ("coordinated omission").
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import httpx2

from sd35.bench.dialects import Answer, Dialect, End
from sd35.bench.workload import BenchRequest

_TIMEOUT_S = 600.0
_AFTER_TROUBLE_S = 0.5  # what a client of the closed loop waits, that was refused or failed


class Asked(NamedTuple):
    """One request and what came of it. Seconds are of `time.monotonic`."""

    kind: str
    row_steps: int | None
    due_s: float
    ended_s: float
    end: End
    said: str = ""

    @property
    def took_s(self) -> float:
        """From when it was due to its answer's last byte."""
        return self.ended_s - self.due_s


class Asking:
    """Asks one server, over as many connections as requests are under way. Use `async with`.

    `on_end` hears of each request that has ended.
    """

    def __init__(
        self, url: str, dialect: Dialect, key: str | None = None, on_end: Callable[[Asked], None] = lambda _: None
    ) -> None:
        self.dialect, self._on_end = dialect, on_end
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=3)
        self._client = httpx2.AsyncClient(
            base_url=url, timeout=_TIMEOUT_S, limits=limits, headers=dialect.headers(key), trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def image(self, wanted: BenchRequest) -> Answer:
        """A request's answer."""
        answer, _ = await self._answer(wanted)
        return answer

    async def ask(self, wanted: BenchRequest, due_s: float | None = None) -> Asked:
        """A request, due now or at another moment, and what came of it."""
        due_s = time.monotonic() if due_s is None else due_s
        answer, ended_s = await self._answer(wanted)
        asked = Asked(wanted.kind, wanted.row_steps, due_s, ended_s, answer.end, answer.said)
        self._on_end(asked)
        return asked

    async def _answer(self, wanted: BenchRequest) -> tuple[Answer, float]:
        try:
            response = await self._client.post(self.dialect.path, **self.dialect.ask(wanted))
        except httpx2.HTTPError as error:
            return Answer("failed", said=f"{type(error).__name__}: {error}"), time.monotonic()
        ended_s = time.monotonic()  # what is in the answer is looked at when the clock has stopped
        return self.dialect.answer(response), ended_s


async def closed_loop(asking: Asking, wanted: Iterator[BenchRequest], clients: int, seconds: float) -> list[Asked]:
    """Each client sends its next when the last is answered, until the time is over; then what is under way ends."""
    until_s = time.monotonic() + seconds

    async def work() -> list[Asked]:
        done = []
        while time.monotonic() < until_s:
            done.append(await asking.ask(next(wanted)))
            if done[-1].end != "made":
                await asyncio.sleep(_AFTER_TROUBLE_S)
        return done

    return [asked for some in await asyncio.gather(*(work() for _ in range(clients))) for asked in some]


async def open_loop(asking: Asking, wanted: Iterator[BenchRequest], due_s: Sequence[float]) -> list[Asked]:
    """One request at each moment, in seconds from now, whatever has been answered by then."""
    began_s = time.monotonic()
    asked = []
    for moment_s in due_s:
        await asyncio.sleep(began_s + moment_s - time.monotonic())
        asked.append(asyncio.create_task(asking.ask(next(wanted), began_s + moment_s)))
    return await asyncio.gather(*asked)


def arrivals(rate: float, seconds: float, seed: str) -> list[float]:
    """Moments of a Poisson process of so many a second, in order, from 0 to `seconds`; the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311  chance of arrivals, no secret
    moments = []
    at_s = rng.expovariate(rate)
    while at_s < seconds:
        moments.append(at_s)
        at_s += rng.expovariate(rate)
    return moments


def rate_within(asked: Sequence[Asked], began_s: float, seconds: float, of: Callable[[Asked], float]) -> float:
    """What was made, a second, of so many seconds.

    An image that was under way when they began or ended counts with the share of its time that lay within: else a
    short run of long images would be told by how they happen to fall.
    """
    total = 0.0
    for each in asked:
        if each.end == "made":
            within_s = min(each.ended_s, began_s + seconds) - max(each.due_s, began_s)
            total += of(each) * max(0.0, min(1.0, within_s / max(each.took_s, 1e-9)))
    return total / seconds

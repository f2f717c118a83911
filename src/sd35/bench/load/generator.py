"""Load generation: a closed loop of clients that wait for their images, and an open loop that does not wait.

The open loop schedules its requests in advance as a Poisson process. Latency counts from the scheduled moment, so that
neither a stalled server nor a late client can hide waiting time ("coordinated omission").
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

import httpx2

from sd35.bench.load.dialects import Dialect, ImageResponse, Status
from sd35.bench.load.workload import BenchRequest

_TIMEOUT_S = 600.0
Amount = Callable[["RequestResult"], float]  # how much an image adds to a rate: 1, or its row-steps
_BACKOFF_S = 0.5  # pause of a closed-loop client after a refused or failed request


class RequestResult(NamedTuple):
    """The result of one request. Times are in seconds by `time.monotonic`. `row_steps` is as in `BenchRequest`."""

    class_name: str
    row_steps: int | None
    scheduled_s: float
    end_s: float
    status: Status
    message: str = ""

    @property
    def latency_s(self) -> float:
        """Seconds from the scheduled moment to the last byte of the response."""
        return self.end_s - self.scheduled_s


class LoadClient:
    """An HTTP client for one server, with one connection for each concurrent request. Use it with `async with`."""

    def __init__(self, url: str, dialect: Dialect, key: str | None = None) -> None:
        self.dialect = dialect
        # By default, uvicorn closes a connection after 5 s without a request. The client closes it earlier.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=3)
        self._client = httpx2.AsyncClient(
            base_url=url, timeout=_TIMEOUT_S, limits=limits, headers=dialect.headers(key), trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def generate(self, request: BenchRequest) -> ImageResponse:
        """Send a request. Returns the image, or the error."""
        response, _ = await self._post(request)
        return response

    async def send(self, request: BenchRequest, scheduled_s: float | None = None) -> RequestResult:
        """Send a request. Its latency counts from `scheduled_s`, by default from now."""
        scheduled_s = time.monotonic() if scheduled_s is None else scheduled_s
        answer, end_s = await self._post(request)
        return RequestResult(request.class_name, request.row_steps, scheduled_s, end_s, answer.status, answer.message)

    async def _post(self, request: BenchRequest) -> tuple[ImageResponse, float]:
        """Send a request. Returns the response, and when its last byte arrived (by `time.monotonic`).

        After a network error, the response has the status "failed".
        """
        try:
            response = await self._client.post(self.dialect.path, **self.dialect.build_request(request))
        except httpx2.HTTPError as error:
            return ImageResponse("failed", message=f"{type(error).__name__}: {error}"), time.monotonic()
        end_s = time.monotonic()  # parsing the response does not count
        return self.dialect.parse_response(response), end_s


async def closed_loop(
    client: LoadClient, requests: Iterator[BenchRequest], clients: int, seconds: float = math.inf
) -> list[RequestResult]:
    """Run a number of clients at once. Each sends its next request after the response to its last one.

    No request is sent after `seconds`, or after the end of `requests`. Requests under way at that time are completed.
    """
    deadline_s = time.monotonic() + seconds

    async def run_client() -> list[RequestResult]:
        """Send one request after the other, until the time or the requests end."""
        results = []
        while time.monotonic() < deadline_s and (request := next(requests, None)):
            results.append(await client.send(request))
            if results[-1].status != "completed":
                await asyncio.sleep(_BACKOFF_S)
        return results

    results_by_client = await asyncio.gather(*(run_client() for _ in range(clients)))
    return [result for results in results_by_client for result in results]


async def open_loop(
    client: LoadClient, requests: Iterator[BenchRequest], schedule_s: Sequence[float]
) -> list[RequestResult]:
    """Send a request at each time of the schedule (seconds from now, sorted), without waiting for responses."""
    start_s = time.monotonic()
    tasks = []
    for offset_s in schedule_s:
        await asyncio.sleep(start_s + offset_s - time.monotonic())  # not at all if the time has passed
        tasks.append(asyncio.create_task(client.send(next(requests), start_s + offset_s)))
    return await asyncio.gather(*tasks)


def arrivals(rate: float, seconds: float, seed: str) -> list[float]:
    """Draw a Poisson process with `rate` arrivals a second on average: sorted times from 0 to `seconds`.

    The same seed gives the same times.
    """
    rng = random.Random(seed)  # noqa: S311  arrival times are not a secret
    times = []
    time_s = rng.expovariate(rate)
    while time_s < seconds:
        times.append(time_s)
        time_s += rng.expovariate(rate)
    return times


def completion_rate(results: Sequence[RequestResult], start_s: float, seconds: float, amount: Amount) -> float:
    """Return the amount completed a second in the window of `seconds` from `start_s`.

    An image under way at the start or the end of the window counts in proportion to its time within the window.
    Otherwise, the rate of a few long images would depend on where the window cuts them.
    """
    total = 0.0
    for result in results:
        if result.status == "completed":
            within_s = min(result.end_s, start_s + seconds) - max(result.scheduled_s, start_s)
            share_within = max(0.0, min(1.0, within_s / max(result.latency_s, 1e-9)))
            total += amount(result) * share_within
    return total / seconds

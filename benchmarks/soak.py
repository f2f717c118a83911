"""Half an hour of mixed use, to find out whether memory grows with the number of images: `python -m benchmarks.soak`.

The clients request images in all formats, and some of them twice. They follow, fetch, cancel and delete jobs, and
disconnect before their images are ready. Images are small and have few steps, so that many are generated.
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from itertools import count
from pathlib import Path
from statistics import linear_regression
from typing import Any, NamedTuple

import httpx2

from benchmarks.outcome import Bar, Outcome, table
from benchmarks.processes import ProcessFailed, running
from sd35.bench.run import Target
from sd35.bench.scenes import all_scenes
from sd35.bench.server import serve_command
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED

MINUTES, CLIENTS = 30.0, 8
MAX_MB_PER_1000 = 1.0
_WARM_UP_SHARE = 1 / 6  # of the time; it does not count, because caches and the memory of allocators fill then
_SAMPLES = 180  # of the memory
_FORMATS = ("png", "jpeg", "webp", "avif")
_SIDES_PX, _MAX_STEPS = (64, 96, 128), 4
_MAX_PATIENCE_S = 0.05  # of clients that disconnect early
_HISTORY = 50  # number of earlier requests that can be repeated
_TIMEOUT_S = 600
_MB = 1e6


class Sample(NamedTuple):
    """The number of generated images and the memory of the server, `time_s` seconds after the start."""

    time_s: float
    images: float
    resident_bytes: float


class MixedUse:
    """Clients that take random actions.

    `actions` counts the actions by name, and `statuses` counts the responses by their HTTP status.
    """

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http, self._rng, self._seeds = http, random.Random(1), count()
        self._prompts = [scene.prompt for scene in all_scenes()]
        self._history: list[dict[str, Any]] = []
        self.actions: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self._weights = {
            self.request: 40, self.repeated_request: 10, self.concurrent_requests: 5, self.disconnect: 10,
            self.job: 20, self.cancelled_job: 10, self.abandoned_job: 5,
        }  # fmt: skip

    async def run(self, seconds: float) -> None:
        """Run one client for `seconds`."""
        deadline_s = time.monotonic() + seconds
        actions, weights = list(self._weights), list(self._weights.values())
        while time.monotonic() < deadline_s:
            action = self._rng.choices(actions, weights)[0]
            self.actions[action.__name__] += 1
            await action()

    async def request(self) -> None:
        """Request a new image in some format."""
        await self._generate(self._new_body())

    async def repeated_request(self) -> None:
        """Request an image that was generated before."""
        await self._generate(self._rng.choice(self._history) if self._history else self._new_body())

    async def concurrent_requests(self) -> None:
        """Request the same new image twice at once."""
        body = self._new_body()
        await asyncio.gather(self._generate(body), self._generate(body))

    async def disconnect(self) -> None:
        """Request an image and disconnect before it is ready."""
        task = asyncio.create_task(self._http.post("/v1/txt2img", json=self._new_body()))
        await asyncio.wait([task], timeout=self._rng.uniform(0, _MAX_PATIENCE_S))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def job(self) -> None:
        """Follow a job to its end, fetch its image, and delete the job half of the time."""
        path = await self._submit()
        if path is None:
            return
        await self._follow(f"{path}/events?preview=true")
        job = (await self._send("GET", path)).json()
        assert job["status"] == "succeeded", job
        await self._send("GET", job["image"]["url"])
        if self._rng.random() < 1 / 2:
            await self._send("DELETE", path)

    async def cancelled_job(self) -> None:
        """Submit a job and cancel it at once. If the job has ended by then, it is deleted instead."""
        if path := await self._submit():
            await self._send("DELETE", path)

    async def abandoned_job(self) -> None:
        """Submit a job and disconnect after its first event."""
        if path := await self._submit():
            await self._follow(f"{path}/events", max_events=1)

    async def _submit(self) -> str | None:
        """Submit a job and return its path, or None if it was refused."""
        response = await self._send("POST", "/v1/jobs", self._new_body())
        return f"/v1/jobs/{response.json()['id']}" if response.is_success else None

    async def _follow(self, path: str, max_events: int | None = None) -> None:
        """Read server-sent events until the stream ends, or until `max_events`."""
        events = 0
        async with self._http.stream("GET", path) as response:
            async for line in response.aiter_lines():
                events += line.startswith("event: ")
                if max_events is not None and events >= max_events:
                    break
        assert events, path

    async def _generate(self, body: dict[str, Any]) -> None:
        """Request an image, and remember the request so that it can be repeated."""
        if (await self._send("POST", "/v1/txt2img", body)).is_success:
            self._history = [*self._history[-_HISTORY:], body]

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        """Send a request, count its status, and wait if it is refused. Raises ProcessFailed for other errors."""
        response = await self._http.request(method, path, json=body)
        self.statuses[response.status_code] += 1
        if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
            await asyncio.sleep(float(response.headers["Retry-After"]))
        elif not response.is_success:
            raise ProcessFailed(f"{method} {path} returned {response.status_code}: {response.text[:500]}; sent: {body}")
        return response

    def _new_body(self) -> dict[str, Any]:
        """Return the body of a request for a random image with a new seed."""
        rng = self._rng
        return {
            "prompt": rng.choice(self._prompts),
            "width": rng.choice(_SIDES_PX),
            "height": rng.choice(_SIDES_PX),
            "steps": rng.randint(1, _MAX_STEPS),
            "guidance_scale": rng.choice((0.0, 4.5)),
            "seed": next(self._seeds),
            "output_format": rng.choice(_FORMATS),
        }


def measure(checkpoint: Path, rounds: int, minutes: float = MINUTES) -> Outcome:
    """Measure once, for `minutes`. `rounds` is ignored."""
    del rounds
    with running(serve_command(["--ui", "off", "--checkpoint", str(checkpoint)])) as target:
        return asyncio.run(_measure(target, 60 * minutes))


async def _measure(target: Target, seconds: float) -> Outcome:
    """Run all clients for `seconds`, and sample the server meanwhile. Waits until the server is idle again."""
    limits = httpx2.Limits(max_connections=None, keepalive_expiry=3)  # shorter than the server's keep-alive
    async with httpx2.AsyncClient(base_url=target.server.url, timeout=_TIMEOUT_S, limits=limits) as http:
        use, samples, start_s = MixedUse(http), list[Sample](), time.monotonic()
        clients = asyncio.gather(*(use.run(seconds) for _ in range(CLIENTS)))
        while not clients.done():
            samples.append(_sample(await asyncio.to_thread(target.metrics), start_s))
            await asyncio.wait([clients], timeout=seconds / _SAMPLES)
        await clients
        while not _is_idle(metrics := await asyncio.to_thread(target.metrics)):  # noqa: ASYNC110  another process
            await asyncio.sleep(1)
    return _outcome(samples, use, metrics)


def _sample(metrics: dict[str, float], start_s: float) -> Sample:
    """Return a sample from the server's metrics. `start_s` is the start of the load, by the monotonic clock."""
    images = metrics['sd35_images_total{result="generated"}']
    return Sample(time.monotonic() - start_s, images, metrics["process_resident_memory_bytes"])


def _is_idle(metrics: dict[str, float]) -> bool:
    """Return whether all accepted requests and jobs have ended."""
    remaining = [value for name, value in metrics.items() if name.startswith("sd35_engine_images{")]
    remaining += [metrics[f'sd35_jobs{{status="{status}"}}'] for status in ("queued", "running")]
    return not sum(remaining)


def _outcome(samples: list[Sample], use: MixedUse, metrics: dict[str, float]) -> Outcome:
    """Return the outcome: the slope of a line through the samples after the warm-up."""
    counted = [sample for sample in samples if sample.time_s > _WARM_UP_SHARE * samples[-1].time_s]
    slope, _ = linear_regression(
        [sample.images / 1000 for sample in counted], [sample.resident_bytes / _MB for sample in counted]
    )
    quarters = [counted[index * (len(counted) - 1) // 4] for index in range(5)]
    return Outcome(
        [Bar("resident memory per 1,000 images", slope, "MB", "<", MAX_MB_PER_1000)],
        [
            (f"{samples[-1].time_s / 60:.1f} minutes, {CLIENTS} clients, {samples[-1].images:.0f} images;"
            f" the slope is of the last {counted[-1].images - counted[0].images:.0f} images"),
            "resident, MB (images): "
            + ", ".join(f"{sample.resident_bytes / _MB:.1f} ({sample.images:.0f})" for sample in quarters),
            "actions: " + ", ".join(f"{name} {times}" for name, times in sorted(use.actions.items())),
            "responses: " + ", ".join(f"{status} {times}" for status, times in sorted(use.statuses.items())),
            "results: " + ", ".join(
                f"{name.split(chr(34))[1]} {value:.0f}"
                for name, value in metrics.items()
                if name.startswith(("sd35_result_cache_total", "sd35_images_total"))
            ),
        ],
        {"samples": samples},
    )  # fmt: skip


def main() -> None:
    """Measure, and exit with 1 if memory grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="duration of the load (%(default)g)")
    outcome = measure(open_checkpoint(EMBEDDED).directory, 1, parser.parse_args().minutes)
    print(table({"soak": outcome}))
    if not all(bar.is_met for bar in outcome.bars):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

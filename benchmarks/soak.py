"""Half an hour of everything at once, and whether memory grows with the images: `python -m benchmarks.soak`.

Synchronous calls in all formats, some of them again or twice at once, jobs that are followed, fetched, cancelled and
removed, and clients that hang up. Images are small and of few steps, so that there are many.
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from statistics import linear_regression
from typing import Any, NamedTuple

from benchmarks.outcome import Bar, Outcome, table
from benchmarks.served import Server, scraped, sd35_serve, served
from benchmarks.wire import Answer, Client, Connection
from benchmarks.workload import requests
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED

MINUTES, CLIENTS = 30.0, 8
MOST_MB_PER_1000 = 1.0
_WARM_SHARE = 1 / 6  # of the time, which does not count: caches and the allocators' arenas fill
_SAMPLES = 180
_FORMATS = ("png", "jpeg", "webp", "avif")
_SIDES_PX, _MOST_STEPS = (64, 96, 128), 4
_MOST_PATIENCE_S = 0.05  # of who hangs up
_REMEMBERED = 50
_OK, _TOO_MANY = {200, 202, 204}, 429
_MB = 1e6


class Sample(NamedTuple):
    """What the process had when it had made so many images."""

    at_s: float
    images: float
    resident_bytes: float


class Load:
    """The clients. `did` counts what they did, `statuses` what they were answered."""

    def __init__(self, client: Client) -> None:
        self._client, self._chance, self._seeds = client, random.Random(1), count()
        self._prompts = [request["prompt"] for request in requests(seed=1)]
        self._asked: list[dict[str, Any]] = []
        self.did: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self._kinds: list[tuple[Callable[[], Coroutine[Any, Any, None]], int]] = [
            (self.call, 40), (self.call_again, 10), (self.call_twice, 5), (self.hang_up, 10),
            (self.job, 20), (self.cancelled_job, 10), (self.left_job, 5),
        ]  # fmt: skip

    async def run(self, seconds: float) -> None:
        """One client, for so long."""
        until_s = time.monotonic() + seconds
        kinds, weights = zip(*self._kinds, strict=True)
        while time.monotonic() < until_s:
            kind = self._chance.choices(kinds, weights)[0]
            self.did[kind.__name__] += 1
            await kind()

    async def call(self) -> None:
        """An image, in some format."""
        await self._make(self._new())

    async def call_again(self) -> None:
        """One that was made before."""
        await self._make(self._chance.choice(self._asked) if self._asked else self._new())

    async def call_twice(self) -> None:
        """One that two want at the same time."""
        wanted = self._new()
        await asyncio.gather(self._make(wanted), self._make(wanted))

    async def hang_up(self) -> None:
        """One that is not waited for."""
        connection = await Connection.to(self._client.port)
        connection.send("POST", "/v1/txt2img", self._new())
        await asyncio.sleep(self._chance.uniform(0, _MOST_PATIENCE_S))
        connection.leave()

    async def job(self) -> None:
        """A job that is followed to its end, its image fetched, and half the time removed."""
        answer = await self._ask("POST", "/v1/jobs", self._new())
        if answer.status not in _OK:
            return
        address = f"/v1/jobs/{answer.json()['id']}"
        await self._follow(f"{address}/events?preview=true", None)
        made = (await self._ask("GET", address)).json()
        assert made["status"] == "succeeded", made
        await self._ask("GET", made["image"]["url"])
        if self._chance.random() < 1 / 2:
            await self._ask("DELETE", address)

    async def cancelled_job(self) -> None:
        """A job that is cancelled at once, or, if it was quicker, removed."""
        answer = await self._ask("POST", "/v1/jobs", self._new())
        if answer.status in _OK:
            await self._ask("DELETE", f"/v1/jobs/{answer.json()['id']}")

    async def left_job(self) -> None:
        """A job that is made, though who followed it leaves."""
        answer = await self._ask("POST", "/v1/jobs", self._new())
        if answer.status in _OK:
            await self._follow(f"/v1/jobs/{answer.json()['id']}/events", 1)

    async def _follow(self, path: str, most: int | None) -> None:
        connection = await Connection.to(self._client.port)
        events = await connection.follow(path, most)
        connection.leave()
        assert events, path

    async def _make(self, wanted: dict[str, Any]) -> None:
        answer = await self._ask("POST", "/v1/txt2img", wanted)
        if answer.status in _OK:
            self._asked = [*self._asked[-_REMEMBERED:], wanted]

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        answer = await self._client.ask(method, path, body)
        self.statuses[answer.status] += 1
        if answer.status == _TOO_MANY:
            await asyncio.sleep(float(answer.headers["retry-after"]))
        elif answer.status not in _OK:
            raise SystemExit(f"{method} {path} {body} was answered with {answer.status}: {answer.body[:500]!r}")
        return answer

    def _new(self) -> dict[str, Any]:
        chance = self._chance
        return {
            "prompt": chance.choice(self._prompts),
            "width": chance.choice(_SIDES_PX),
            "height": chance.choice(_SIDES_PX),
            "steps": chance.randint(1, _MOST_STEPS),
            "guidance_scale": chance.choice((0.0, 4.5)),
            "seed": next(self._seeds),
            "output_format": chance.choice(_FORMATS),
        }


def measure(checkpoint: Path, rounds: int, minutes: float = MINUTES) -> Outcome:
    """One run, whatever the `rounds`."""
    del rounds
    with served(sd35_serve(checkpoint)) as server:
        return asyncio.run(_measure(server, 60 * minutes))


async def _measure(server: Server, seconds: float) -> Outcome:
    async with Client(server.port) as client:
        load, samples, began_s = Load(client), list[Sample](), time.monotonic()
        running = asyncio.gather(*(load.run(seconds) for _ in range(CLIENTS)))
        while not running.done():
            samples.append(_sample(await scraped(client), began_s))
            await asyncio.wait([running], timeout=seconds / _SAMPLES)
        await running
        while not _is_idle(metrics := await scraped(client)):  # noqa: ASYNC110  another process is
            await asyncio.sleep(1)
    return _outcome(samples, load, metrics)


def _sample(metrics: dict[str, float], began_s: float) -> Sample:
    images = metrics['sd35_images_total{end="made"}']
    return Sample(time.monotonic() - began_s, images, metrics["process_resident_memory_bytes"])


def _is_idle(metrics: dict[str, float]) -> bool:
    """Whether nothing is left of what was accepted."""
    left = [value for name, value in metrics.items() if name.startswith("sd35_engine_images{")]
    left += [metrics[f'sd35_jobs{{status="{status}"}}'] for status in ("queued", "running")]
    return not sum(left)


def _outcome(samples: list[Sample], load: Load, metrics: dict[str, float]) -> Outcome:
    counted = [sample for sample in samples if sample.at_s > _WARM_SHARE * samples[-1].at_s]
    slope, _ = linear_regression(
        [sample.images / 1000 for sample in counted], [sample.resident_bytes / _MB for sample in counted]
    )
    quarters = [counted[index * (len(counted) - 1) // 4] for index in range(5)]
    return Outcome(
        [Bar("resident memory per 1,000 images", slope, "MB", "<", MOST_MB_PER_1000)],
        [
            (f"{samples[-1].at_s / 60:.1f} minutes, {CLIENTS} clients, {samples[-1].images:.0f} images made;"
            f" the slope is of the last {counted[-1].images - counted[0].images:.0f}"),
            "resident, MB (images): "
            + ", ".join(f"{sample.resident_bytes / _MB:.1f} ({sample.images:.0f})" for sample in quarters),
            "done: " + ", ".join(f"{name} {times}" for name, times in sorted(load.did.items())),
            "answers: " + ", ".join(f"{status} {times}" for status, times in sorted(load.statuses.items())),
            "results: " + ", ".join(
                f"{name.split(chr(34))[1]} {value:.0f}"
                for name, value in metrics.items()
                if name.startswith(("sd35_result_cache_total", "sd35_images_total"))
            ),
        ],
        {"samples": samples},
    )  # fmt: skip


def main() -> None:
    """Measures, and exits with 1 where memory grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long (%(default)g)")
    outcome = measure(open_checkpoint(EMBEDDED).directory, 1, parser.parse_args().minutes)
    print(table({"soak": outcome}))
    if not all(bar.is_met for bar in outcome.bars):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

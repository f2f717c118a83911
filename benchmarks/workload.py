"""Mixed requests, and clients that send them: in turns (closed loop), or whatever has been answered (open loop)."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx2

from sd35.bench.statistics import percentile

REQUESTS, CLIENTS = 64, 8
STEPS, GUIDANCE, SIZES_PX = (4, 12, 28), (0.0, 4.5), ((128, 128), (96, 96))
_ANIMALS = ("cat", "dog", "panda", "frog", "fish", "whale", "owl", "lion", "crab", "bee", "snail", "turtle", "rabbit")
_GROUNDS = ("white", "black", "red", "blue", "green", "yellow", "pink", "purple")
_TIMEOUT_S = 600


class Answered(NamedTuple):
    """One request: its number of steps, and the seconds from sending it to the last byte of the answer."""

    steps: int
    took_s: float


def requests(seed: int) -> list[dict[str, Any]]:
    """The workload: half of the requests repeat a prompt of the other half; no two are the same image."""
    rng = random.Random(seed)
    prompts = [
        f"a {animal} on a {ground} background"
        for animal, ground in rng.sample([(a, g) for a in _ANIMALS for g in _GROUNDS], REQUESTS // 2)
    ]
    wanted = []
    for index, prompt in enumerate(prompts + rng.sample(prompts, REQUESTS // 2)):
        width, height = rng.choice(SIZES_PX)
        wanted.append(
            {
                "prompt": prompt,
                "width": width,
                "height": height,
                "steps": rng.choice(STEPS),
                "guidance_scale": rng.choice(GUIDANCE),
                "seed": 1000 * seed + index,
            }
        )
    rng.shuffle(wanted)
    return wanted


def closed_loop(port: int, wanted: Sequence[dict[str, Any]]) -> tuple[list[Answered], float]:
    """Each client sends its next request when the last was answered; answers, and seconds in all."""

    async def run() -> tuple[list[Answered], float]:
        waiting = iter(wanted)
        async with _client(port) as client:
            began_s = time.perf_counter()

            async def work() -> list[Answered]:
                return [await _ask(client, each) for each in waiting]

            answers = await asyncio.gather(*(work() for _ in range(CLIENTS)))
            return [answer for some in answers for answer in some], time.perf_counter() - began_s

    return asyncio.run(run())


def open_loop(port: int, wanted: Sequence[dict[str, Any]], rps: float, seed: int) -> list[Answered]:
    """Requests at random moments, `rps` a second in the mean, however many wait already."""

    async def run() -> list[Answered]:
        rng, at_s = random.Random(seed), 0.0
        async with _client(port) as client:

            async def later(delay_s: float, each: dict[str, Any]) -> Answered:
                await asyncio.sleep(delay_s)
                return await _ask(client, each)

            asked = []
            for each in wanted:
                asked.append(later(at_s, each))
                at_s += rng.expovariate(rps)
            return await asyncio.gather(*asked)

    return asyncio.run(run())


def percentile_s(answers: Sequence[Answered], percent: float, steps: int | None = None) -> float:
    """Seconds that so many percent of the answers (of those with so many steps) took at most."""
    return percentile([answer.took_s for answer in answers if steps in (answer.steps, None)], percent)


def _client(port: int) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=REQUESTS)
    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT_S, limits=limits)


async def _ask(client: httpx2.AsyncClient, wanted: dict[str, Any]) -> Answered:
    began_s = time.perf_counter()
    response = await client.post("/v1/txt2img", json=wanted)
    if response.status_code != httpx2.codes.OK or not response.content.startswith(b"\x89PNG"):
        raise SystemExit(f"{wanted} was answered with {response.status_code}: {response.text[:500]}")
    return Answered(wanted["steps"], time.perf_counter() - began_s)

"""One run against one server: warm-up, rounds of load, and what was seen meanwhile."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx2

from sd35.bench.aggregate import Load, Round, capacity, closed, opened, opened_at_share, part_of
from sd35.bench.dialects import Answer, Dialect
from sd35.bench.load import Asked, Asking, arrivals, closed_loop, open_loop
from sd35.bench.machine import busy_of, this_machine
from sd35.bench.monitor import Watch, occupancy
from sd35.bench.results import Batches, ColdStart, Gpu, Memory, Part, Plan, Result, Served, Span, peak
from sd35.bench.server import Server, client, scraped
from sd35.bench.workload import BenchRequest, Workload
from sd35.errors import MeasuringFailed

_PHASE = 'sd35_startup_seconds{phase="'
_TICK_S = 0.2
OnProgress = Callable[[str, float], None]  # what is being done, and how many seconds of all are over


class Measured(NamedTuple):
    """A server, and how it is asked. `settings` are those of one that was started here."""

    server: Server
    dialect: Dialect
    key: str | None = None
    settings: dict[str, str] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What shows the API key."""
        return self.dialect.headers(self.key)

    def metrics(self) -> dict[str, float]:
        """The server's own, where it is one of this project's."""
        if not self.dialect.has_metrics:
            return {}
        with client(self.server.url, self.headers) as asking:
            return scraped(asking)

    def models(self) -> list[dict[str, Any]] | None:
        """The models that it says it serves; None where it is not one of this project's."""
        if not self.dialect.has_metrics:
            return None
        try:
            with client(self.server.url, self.headers) as asking:
                found: list[dict[str, Any]] = asking.get("/v1/models").json()["data"]
        except (httpx2.HTTPError, ValueError, KeyError):
            return None  # somebody else's server, with this project's interface for images
        return found


class Seen(NamedTuple):
    """What came of all loads. `first_s`: seconds that the first image took; metrics of before and after the loads."""

    parts: list[Part]
    spans: list[Span]
    first_s: float
    before: dict[str, float]
    after: dict[str, float]


def duration_s(plan: Plan) -> float:
    """What the loads of a plan take, without what is still under way at their ends."""
    return plan.warm_s + plan.rounds * plan.seconds * (1 + len(plan.rates or plan.shares))


class Loads:
    """All loads of a plan, one after the other, in rounds: what changes on the machine changes for all of them."""

    def __init__(self, asking: Asking, workload: Workload, plan: Plan, watch: Watch, progress: OnProgress) -> None:
        self._asking, self._workload, self._plan = asking, workload, plan
        self._origin_s, self._progress = watch.began_s, progress
        self._spans: list[Span] = []
        self._over_s = 0.0

    async def run(self, metrics: Callable[[], dict[str, float]]) -> Seen:
        """Everything. Raises MeasuringFailed where the server makes no image while it warms up."""
        plan = self._plan
        first = await self._asking.ask(next(self._wanted("first")))
        if plan.most_first_s is not None and first.took_s > plan.most_first_s:
            raise MeasuringFailed(
                f"its first image took {first.took_s:.1f} s; allowed: {plan.most_first_s:g}; raise --seconds"
            )
        loop = closed_loop(self._asking, self._wanted("warm-up"), plan.clients, plan.warm_s)
        warm = await self._timed("warm-up", loop, plan.warm_s)
        _check_makes([first, *warm.asked])
        before = await asyncio.to_thread(metrics)
        loads = [closed(plan.clients), *map(opened, plan.rates)]
        rounds: dict[Load, list[Round]] = {}
        for number in range(1, plan.rounds + 1):
            rounds.setdefault(loads[0], []).append(await self._once(loads[0], number))
            if number == 1 and not plan.rates:
                reached = capacity(rounds[loads[0]][0], plan.seconds)
                loads += [opened_at_share(share, reached) for share in plan.shares if reached]
            for load in loads[1:]:
                rounds.setdefault(load, []).append(await self._once(load, number))
        after = await asyncio.to_thread(metrics)
        parts = [part_of(load, done, plan.seconds, self._origin_s) for load, done in rounds.items()]
        return Seen(parts, self._spans, first.took_s, before, after)

    def _wanted(self, part: str) -> Iterator[BenchRequest]:
        return self._workload.requests(part, self._plan.salt)

    async def _once(self, load: Load, number: int) -> Round:
        name, seconds = f"{load.name}/{number}", self._plan.seconds
        wanted = self._wanted(name)
        loop: Coroutine[Any, Any, list[Asked]]
        if load.offered is None:
            loop = closed_loop(self._asking, wanted, self._plan.clients, seconds)
        else:
            loop = open_loop(self._asking, wanted, arrivals(load.offered, seconds, f"{self._workload.seed}/{name}"))
        return await self._timed(f"round {number}: {load.name}", loop, seconds)

    async def _timed(self, name: str, loop: Coroutine[Any, Any, list[Asked]], seconds: float) -> Round:
        began_s = time.monotonic()

        async def tick() -> None:
            while True:
                self._progress(name, self._over_s + min(seconds, time.monotonic() - began_s))
                await asyncio.sleep(_TICK_S)

        ticking = asyncio.create_task(tick())
        try:
            asked = await loop
        finally:
            ticking.cancel()
        self._over_s += seconds
        ended_s = time.monotonic()
        self._spans.append(
            Span(name=name, from_s=round(began_s - self._origin_s, 3), to_s=round(ended_s - self._origin_s, 3))
        )
        return Round(began_s, asked)


def measure(measured: Measured, workload: Workload, plan: Plan, watch: Watch, progress: OnProgress) -> Result:
    """Run a plan and put together what was seen; the watch ends with it. Raises MeasuringFailed."""

    async def run() -> Seen:
        async with Asking(measured.server.url, measured.dialect, measured.key) as asking:
            return await Loads(asking, workload, plan, watch, progress).run(measured.metrics)

    served = _served(measured)  # before: afterwards it may be gone
    seen = asyncio.run(run())
    looks = watch.finish()
    return Result(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        busy=busy_of(watch.before_cores, [look.others_cores for look in looks if look.others_cores is not None]),
        served=served,
        workload=workload,
        workload_digest=workload.digest,
        plan=plan,
        cold_start=_cold_start(measured, seen),
        parts=seen.parts,
        memory=_memory(measured, watch),
        gpu=_gpu(watch, seen),
        batches=_batches(seen),
        quality=None,
        spans=seen.spans,
        looks=looks,
    )


async def images(measured: Measured, wanted: Sequence[BenchRequest], at_once: int) -> list[bytes]:
    """An image of each. Raises MeasuringFailed where one is refused or fails."""
    waiting = iter(enumerate(wanted))
    answers: dict[int, Answer] = {}
    async with Asking(measured.server.url, measured.dialect, measured.key) as asking:

        async def work() -> None:
            for index, each in waiting:
                answers[index] = await asking.image(each)

        await asyncio.gather(*(work() for _ in range(at_once)))
    if missing := next((answer for answer in answers.values() if answer.end != "made"), None):
        raise MeasuringFailed(f"an image that was to be compared was {missing.end}: {missing.said}")
    return [answers[index].image for index in range(len(wanted))]


def _check_makes(asked: Sequence[Asked]) -> None:
    if not any(each.end == "made" for each in asked):
        raise MeasuringFailed(f"the server made no image; it said: {asked[0].said}")


def _served(measured: Measured) -> Served:
    url = None if measured.settings is not None else measured.server.url
    return Served(
        dialect=measured.dialect.name,
        url=url,
        runs_here=measured.server.pid is not None,
        settings=measured.settings,
        models=measured.models(),
    )


def _cold_start(measured: Measured, seen: Seen) -> ColdStart:
    phases = {
        name.partition(_PHASE)[2].partition('"')[0]: value for name, value in seen.before.items() if _PHASE in name
    }
    is_new = measured.server.ready_s is not None
    return ColdStart(
        ready_s=measured.server.ready_s, phases_s=phases, first_image_s=round(seen.first_s, 4) if is_new else None
    )


def _memory(measured: Measured, watch: Watch) -> Memory:
    if measured.server.pid:
        source = f"the server's processes, looked at every {watch.every_s:g} s"
    elif measured.dialect.has_metrics:
        source = "the server's own metrics"
    else:
        source = "not known: the server runs elsewhere, or as somebody else"
    return Memory(peak_bytes=peak([look.resident_bytes for look in watch.looks]), source=source)


def _gpu(watch: Watch, seen: Seen) -> Gpu:
    """Energy is that of the rounds, without starting and warming up."""
    rounds = seen.spans[1:]
    energies = [
        look.energy_j
        for look in watch.looks
        if look.energy_j is not None and rounds[0].from_s <= look.at_s <= rounds[-1].to_s
    ]
    energy_j = energies[-1] - energies[0] if energies else None
    made = sum(part.all.made for part in seen.parts)
    return Gpu(
        why_not=watch.gpus.why_not,
        peak_bytes=peak([look.vram_bytes for look in watch.looks]),
        energy_j=energy_j,
        energy_per_image_j=energy_j / made if energy_j is not None and made else None,
    )


def _batches(seen: Seen) -> Batches | None:
    def since(name: str) -> int:
        return int(seen.after.get(name, 0) - seen.before.get(name, 0))

    batches = since("sd35_engine_batch_duration_seconds_count")
    if batches <= 0:  # or it counted anew: it was started again meanwhile, or is gone
        return None
    counted = {up_to: int(count) for up_to, count in occupancy(seen.before, seen.after).items()}
    return Batches(batches=batches, row_steps=since("sd35_engine_row_steps_total"), occupancy=counted)

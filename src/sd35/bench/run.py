"""One run against one server: warm-up, rounds of load, and the result."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx2

from sd35.bench.aggregate import Load, Round, closed_load, load_result, open_load, open_load_at
from sd35.bench.load.dialects import Dialect, ImageResponse
from sd35.bench.load.generator import LoadClient, RequestResult, arrivals, closed_loop, completion_rate, open_loop
from sd35.bench.load.workload import BenchRequest, Workload
from sd35.bench.monitoring.machine import background_load, this_machine
from sd35.bench.monitoring.monitor import Monitor, occupancy
from sd35.bench.results import Batches, ColdStart, Gpu, LoadResult, Memory, Plan, Result, ServerInfo, Span, peak
from sd35.bench.server import Server, fetch_metrics, http_client
from sd35.errors import MeasuringFailed

_PHASE_PREFIX = 'sd35_startup_seconds{phase="'  # how the metric of each phase of a start begins
_PROGRESS_INTERVAL_S = 0.2
OnProgress = Callable[[str, float], None]  # the current activity, and the seconds completed


class Target(NamedTuple):
    """A server, with the dialect and the API key of its requests.

    `settings` are the server's settings by name if this process started it, and None if it was already running.
    """

    server: Server
    dialect: Dialect
    key: str | None = None
    settings: dict[str, str] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that carry the API key."""
        return self.dialect.headers(self.key)

    def client(self) -> LoadClient:
        """Return a client for image requests."""
        return LoadClient(self.server.url, self.dialect, self.key)

    def metrics(self) -> dict[str, float]:
        """Fetch the server's metrics, by name and labels. Returns an empty dict for a server of another project."""
        if not self.dialect.has_metrics:
            return {}
        with http_client(self.server.url, self.headers) as http:
            return fetch_metrics(http)

    def models(self) -> list[dict[str, Any]] | None:
        """Fetch the models that `/v1/models` lists, default model first. None for a server of another project."""
        if not self.dialect.has_metrics:
            return None
        try:
            with http_client(self.server.url, self.headers) as http:
                models: list[dict[str, Any]] = http.get("/v1/models").json()["data"]
        except (httpx2.HTTPError, ValueError, KeyError):
            return None  # a server of another project that has the same route for images
        return models


class Measurements(NamedTuple):
    """The results of the loads of a run.

    `spans` are the times of the warm-up and of each load, in the order in which they ran. `first_image_s` is the
    latency of the first request. `before` and `after` are the server's metrics before and after the loads.
    """

    loads: list[LoadResult]
    spans: list[Span]
    first_image_s: float
    before: dict[str, float]
    after: dict[str, float]


def duration_s(plan: Plan) -> float:
    """Return the planned seconds of the warm-up and of all loads, without the time to complete their last requests."""
    return plan.warmup_s + plan.rounds * plan.seconds * (1 + len(plan.rates or plan.shares))


class LoadRunner:
    """Runs all loads of a plan in rounds, so that changes of the machine affect all loads alike.

    Times in the results count from `origin_s`, a time of `time.monotonic`.
    """

    def __init__(
        self, client: LoadClient, workload: Workload, plan: Plan, origin_s: float, on_progress: OnProgress
    ) -> None:
        self._client, self._workload, self._plan = client, workload, plan
        self._origin_s, self._on_progress = origin_s, on_progress
        self._spans: list[Span] = []
        self._completed_s = 0.0

    async def run(self, metrics: Callable[[], dict[str, float]]) -> Measurements:
        """Warm up, then run all rounds. Calls `metrics` for the server's metrics before and after the rounds.

        Raises MeasuringFailed if the warm-up completes no image, or the first image takes too long.
        """
        plan = self._plan
        first = await self._warm_up()
        before = await asyncio.to_thread(metrics)
        closed = closed_load(plan.clients)
        loads = [closed, *map(open_load, plan.rates)]
        rounds: dict[Load, list[Round]] = {}
        for number in range(1, plan.rounds + 1):
            rounds.setdefault(closed, []).append(await self._run_load(closed, number))
            if number == 1 and not plan.rates:
                # Only now is the rate of the closed loop known, from which the rates of the open loops follow.
                (first_round,) = rounds[closed]
                capacity = completion_rate(first_round.results, first_round.start_s, plan.seconds, lambda _: 1.0)
                loads += [open_load_at(share, capacity) for share in plan.shares if capacity]
            for load in loads[1:]:
                rounds.setdefault(load, []).append(await self._run_load(load, number))
        after = await asyncio.to_thread(metrics)
        results = [load_result(load, done, plan.seconds, self._origin_s) for load, done in rounds.items()]
        return Measurements(results, self._spans, first.latency_s, before, after)

    async def _warm_up(self) -> RequestResult:
        """Send one request, then run the load of the warm-up. Returns the result of the first request.

        Raises MeasuringFailed if no image is completed, or the first image takes too long.
        """
        plan = self._plan
        first = await self._client.send(next(self._requests("first")))
        if plan.max_first_image_s is not None and first.latency_s > plan.max_first_image_s:
            raise MeasuringFailed(
                f"the first image took {first.latency_s:.1f} s; allowed: {plan.max_first_image_s:g} s, the value of"
                " --seconds. To measure slower servers, use a higher value"
            )
        loop = closed_loop(self._client, self._requests("warm-up"), plan.clients, plan.warmup_s)
        warm_up = await self._run_with_progress("warm-up", loop, plan.warmup_s)
        if all(result.status != "completed" for result in (first, *warm_up.results)):
            raise MeasuringFailed(
                f"no request of the warm-up returned an image; the first one ended with '{first.message}'. Check"
                " --workload; with --url, also --dialect, BENCH_API_KEY and the server's log"
            )
        return first

    def _requests(self, part: str) -> Iterator[BenchRequest]:
        """Yield the requests of a part of the run, such as "warm-up", without end."""
        return self._workload.requests(part, self._plan.seed_offset)

    async def _run_load(self, load: Load, number: int) -> Round:
        """Run a load once, in round `number`."""
        name, seconds = f"{load.name}/{number}", self._plan.seconds
        requests = self._requests(name)
        loop: Coroutine[Any, Any, list[RequestResult]]
        if load.offered_per_s is None:
            loop = closed_loop(self._client, requests, self._plan.clients, seconds)
        else:
            schedule_s = arrivals(load.offered_per_s, seconds, f"{self._workload.seed}/{name}")
            loop = open_loop(self._client, requests, schedule_s)
        return await self._run_with_progress(f"round {number}: {load.name}", loop, seconds)

    async def _run_with_progress(
        self, name: str, loop: Coroutine[Any, Any, list[RequestResult]], seconds: float
    ) -> Round:
        """Run a loop of requests, report its progress, and record when it ran. `seconds` is its planned duration."""
        start_s = time.monotonic()

        async def report_progress() -> None:
            while True:
                self._on_progress(name, self._completed_s + min(seconds, time.monotonic() - start_s))
                await asyncio.sleep(_PROGRESS_INTERVAL_S)

        reporter = asyncio.create_task(report_progress())
        try:
            results = await loop
        finally:
            reporter.cancel()
        self._completed_s += seconds
        from_s, to_s = (round(time_s - self._origin_s, 3) for time_s in (start_s, time.monotonic()))
        self._spans.append(Span(name=name, start_s=from_s, end_s=to_s))
        return Round(start_s, results)


def measure(target: Target, workload: Workload, plan: Plan, monitor: Monitor, on_progress: OnProgress) -> Result:
    """Run a plan, stop the monitor and assemble the result. Images are not compared yet: `quality` is None.

    Raises MeasuringFailed if the warm-up completes no image, or the first image takes too long.
    """

    async def run() -> Measurements:
        async with target.client() as client:
            return await LoadRunner(client, workload, plan, monitor.start_s, on_progress).run(target.metrics)

    server = _server_info(target)  # before the loads, because afterwards the server may be gone
    measured = asyncio.run(run())
    samples = monitor.stop()
    background_cores = [sample.background_cores for sample in samples if sample.background_cores is not None]
    return Result(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        background=background_load(monitor.before_cores, background_cores),
        server=server,
        workload=workload,
        workload_digest=workload.digest,
        plan=plan,
        cold_start=_cold_start(target, measured),
        loads=measured.loads,
        memory=_memory(target, monitor),
        gpu=_gpu(monitor, measured),
        batches=_batches(measured),
        quality=None,
        spans=measured.spans,
        samples=samples,
    )


async def generate_images(target: Target, requests: Sequence[BenchRequest], concurrency: int) -> list[bytes]:
    """Generate one image per request, at most `concurrency` at once. Returns the image files.

    Raises MeasuringFailed if a request is refused or fails. Internal: callers turn it into a `skip_reason`.
    """
    slots = asyncio.Semaphore(concurrency)
    async with target.client() as client:

        async def generate(request: BenchRequest) -> ImageResponse:
            async with slots:
                return await client.generate(request)

        responses = await asyncio.gather(*map(generate, requests))
    for response in responses:
        if response.status != "completed":
            raise MeasuringFailed(f"the server did not generate an image to compare: '{response.message}'")
    return [response.image for response in responses]


def _server_info(target: Target) -> ServerInfo:
    """Describe the server for the result."""
    return ServerInfo(
        dialect=target.dialect.name,
        url=target.server.url if target.settings is None else None,  # a server started here had a random port
        is_local=target.server.pid is not None,
        settings=target.settings,
        models=target.models(),
    )


def _cold_start(target: Target, measured: Measurements) -> ColdStart:
    """Return the times of the server's start, as far as they are known."""
    ready_s, before = target.server.ready_s, measured.before
    # The phase is the label's value: `sd35_startup_seconds{phase="import"}`.
    phases_s = {name.split('"')[1]: value for name, value in before.items() if name.startswith(_PHASE_PREFIX)}
    # A server that was already running has generated images before.
    first_image_s = None if ready_s is None else round(measured.first_image_s, 4)
    return ColdStart(ready_s=ready_s, phases_s=phases_s, first_image_s=first_image_s)


def _memory(target: Target, monitor: Monitor) -> Memory:
    """Return the peak memory of the server, and how it was measured."""
    if target.server.pid:
        source = f"the server's processes, sampled every {monitor.interval_s:g} s"
    elif target.dialect.has_metrics:
        source = "the server's own metrics"
    else:
        source = "not known: the server runs elsewhere or as another user"
    return Memory(peak_bytes=peak([sample.resident_bytes for sample in monitor.samples]), source=source)


def _gpu(monitor: Monitor, measured: Measurements) -> Gpu:
    """Return peak GPU memory of the whole run, and the energy of the rounds without start and warm-up."""
    rounds = measured.spans[1:]  # the first span is the warm-up
    energies_j = [
        sample.energy_j
        for sample in monitor.samples
        if sample.energy_j is not None and rounds[0].start_s <= sample.time_s <= rounds[-1].end_s
    ]
    energy_j = energies_j[-1] - energies_j[0] if energies_j else None
    images = sum(load.all.completed for load in measured.loads)
    return Gpu(
        skip_reason=monitor.gpus.skip_reason,
        peak_bytes=peak([sample.vram_bytes for sample in monitor.samples]),
        energy_j=energy_j,
        energy_per_image_j=energy_j / images if energy_j is not None and images else None,
    )


def _batches(measured: Measurements) -> Batches | None:
    """Return the engine's batches during the loads, or None if the server does not report them."""

    def increase(name: str) -> int:
        return int(measured.after.get(name, 0) - measured.before.get(name, 0))

    batches = increase("sd35_engine_batch_duration_seconds_count")
    if batches <= 0:  # no metrics, or the server was restarted in between
        return None
    counts = {share: int(count) for share, count in occupancy(measured.before, measured.after).items()}
    return Batches(batches=batches, row_steps=increase("sd35_engine_row_steps_total"), occupancy=counts)

"""Run the scheduler on simulated devices with a simulated clock, to predict the latencies of a load within seconds.

A simulated device takes the times of steps and of decoding from a table. It decodes at the same time as it makes steps,
like `sd35.engine.local.engine`. It encodes the prompts of new images before their first step.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import ceil

from sd35.engine.base import DeviceLimits
from sd35.engine.scheduling.backlog import WorkItem
from sd35.engine.scheduling.cost_model import CostModel
from sd35.engine.scheduling.scheduler import Batch, Scheduler
from sd35.engine.scheduling.step_times import ShapeTimes, StepTimes
from sd35.errors import Overloaded

_CANDIDATES = 8  # devices that are compared to choose the least busy one for an image


class Clock:
    """Simulated time. It jumps from one scheduled call to the next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []  # a heap of (time in s, order, call)
        self._order = count()

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Schedule a call in `delay_s`. Calls at the same time run in the order in which they were scheduled."""
        heappush(self._events, (self.now_s + delay_s, next(self._order), call))

    def run(self) -> None:
        """Run all scheduled calls, and those that they schedule."""
        while self._events:
            self.now_s, _, call = heappop(self._events)
            call()


class Device:
    """A simulated device that takes as long as a table says. Calls `on_end` with the key of each finished image."""

    def __init__(
        self, times: StepTimes, limits: DeviceLimits, clock: Clock, on_end: Callable[[Hashable], None]
    ) -> None:
        self._times, self._clock, self._on_end = times, clock, on_end
        self._times_of = {times.shape(entry): entry for entry in times.shapes}
        self.scheduler: Scheduler[Hashable] = Scheduler(limits, _costs_of(times))
        self._items: dict[Hashable, WorkItem] = {}
        self._new: set[Hashable] = set()  # images whose prompts are not encoded yet
        self._is_stepping = self._is_decoding = False
        self.busy_s = 0.0  # time that was spent in steps, including encoding

    def submit(self, key: Hashable, item: WorkItem) -> None:
        """Accept an image. Raises the same errors as `Scheduler.add`."""
        self.scheduler.add(key, item, self._clock.now_s)
        self._items[key] = item
        self._new.add(key)
        self._start_work()

    def cancel(self, key: Hashable) -> None:
        """Remove an image."""
        self.scheduler.cancel(key)
        self._new.discard(key)
        self._start_work()

    def _start_work(self) -> None:
        """Start a step and a decoding if possible."""
        if not self._is_stepping and (batch := self.scheduler.next_batch()):
            self._is_stepping = True
            took_s = self._encode_and_step_s(batch)
            self.busy_s += took_s
            self._clock.after(took_s, self._end_step)
        if not self._is_decoding and (key := self.scheduler.next_decode()) is not None:
            self._is_decoding = True
            decode_s = self._times_of[self._items[key].shape].decode_s
            self._clock.after(decode_s, lambda: self._end_decoding(key))

    def _encode_and_step_s(self, batch: Batch[Hashable]) -> float:
        """Return the seconds of a batch's step, including the encoding of its new images. Mark these as encoded."""
        new = self._new.intersection(batch.keys)
        self._new -= new
        return self._times_of[batch.shape].step_time_s(batch.rows) + len(new) * self._times.encode_s

    def _end_step(self) -> None:
        """End the current step, and start the next one."""
        self._is_stepping = False
        self.scheduler.finish()
        self._start_work()

    def _end_decoding(self, key: Hashable) -> None:
        """End the current decoding. Report its image as finished if it was not cancelled. Start the next decoding."""
        self._is_decoding = False
        was_cancelled = key not in self.scheduler
        self.scheduler.decoded()
        if not was_cancelled:
            self._on_end(key)
        del self._items[key]
        self._start_work()


def _costs_of(times: StepTimes) -> CostModel:
    """Return the cost model of an engine that has already measured all shapes of a table."""
    costs = CostModel()
    for entry in times.shapes:
        shape, rows = times.shape(entry), max(entry.step_s)
        costs.learn_step_time(shape, rows, entry.step_s[rows])
        costs.learn_smallest_batch(shape, min(entry.step_s), entry.step_s[min(entry.step_s)])
        costs.learn_step_bytes(shape, rows, rows * entry.row_bytes)
        costs.learn_decode_bytes(shape, entry.decode_bytes)
        costs.learn_decode_time(shape, entry.decode_s)
    return costs


@dataclass(frozen=True)
class Load:
    """Requests at random times: a Poisson process with a mean rate of `rps` requests per second.

    Each request has a random client, and a random one of `steps`, `guidance` (guidance scales) and `shapes`.
    """

    rps: float
    requests: int
    steps: Sequence[int]
    guidance: Sequence[float]
    shapes: Sequence[ShapeTimes]
    clients: int = 100
    seed: int = 0


@dataclass
class Report:
    """The result of a simulation. A latency is the time from the arrival of a request to its pixels."""

    latencies_s: dict[int, list[float]] = field(default_factory=dict)  # by number of steps
    refused: int = 0  # requests that were refused because the device was overloaded
    utilisation: float = 0.0  # share of the devices' time that was spent in steps
    lasted_s: float = 0.0  # simulated duration

    def percentile_s(self, percent: float, steps: int | None = None) -> float:
        """Return a percentile of the latencies of all images, or only of images with `steps` steps.

        At least one such image must have finished.
        """
        groups = self.latencies_s.values() if steps is None else [self.latencies_s.get(steps, [])]
        latencies_s = sorted(latency_s for group in groups for latency_s in group)
        return latencies_s[ceil(percent / 100 * len(latencies_s)) - 1]

    @property
    def finished(self) -> int:
        """The number of finished images."""
        return sum(map(len, self.latencies_s.values()))


def simulate(times: StepTimes, load: Load, limits: DeviceLimits, devices: int) -> Report:
    """Simulate a load on `devices` devices. Each image goes to the least busy one of a few random devices."""
    clock, report, rng = Clock(), Report(), random.Random(load.seed)  # noqa: S311  chance, not secrecy
    in_flight: dict[Hashable, tuple[float, int]] = {}  # arrival in s, and number of steps

    def record_latency(key: Hashable) -> None:
        arrived_s, steps = in_flight.pop(key)
        report.latencies_s.setdefault(steps, []).append(clock.now_s - arrived_s)

    fleet = [Device(times, limits, clock, record_latency) for _ in range(devices)]

    def arrive(index: int) -> None:
        """Submit a request with random values, and schedule the arrival of the next one."""
        steps, is_guided = rng.choice(load.steps), rng.choice(load.guidance) > 1
        shape = times.shape(rng.choice(load.shapes))
        item = WorkItem(rng.randrange(load.clients), shape, steps, 2 if is_guided else 1)
        try:
            _least_busy(fleet, rng).submit(index, item)
        except Overloaded:
            report.refused += 1
        else:
            in_flight[index] = clock.now_s, steps
        if index + 1 < load.requests:
            clock.after(rng.expovariate(load.rps), lambda: arrive(index + 1))

    arrive(0)
    clock.run()
    assert not in_flight, "an image was lost"
    report.lasted_s = clock.now_s
    report.utilisation = sum(device.busy_s for device in fleet) / (devices * clock.now_s)
    return report


def _least_busy(fleet: Sequence[Device], rng: random.Random) -> Device:
    """Return the device with the least work left, of a random sample of _CANDIDATES devices."""
    candidates = fleet if len(fleet) <= _CANDIDATES else rng.sample(fleet, _CANDIDATES)
    return min(candidates, key=lambda device: device.scheduler.backlog_s)

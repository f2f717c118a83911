"""The scheduler on simulated devices with a simulated clock, to try policies and capacities at scale within seconds.

A simulated device takes the times of steps and decoding from a table. Like `sd35.engine.local.engine`, it decodes at
the same time as it makes steps, and encodes the prompts of a batch's new images before the batch's step.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import ceil

from sd35.engine.base import DeviceLimits
from sd35.engine.scheduling.cost_model import CostModel
from sd35.engine.scheduling.scheduler import Batch, Scheduler, WorkItem
from sd35.engine.scheduling.step_times import ShapeTimes, StepTimes
from sd35.errors import Overloaded

_CANDIDATES = 8  # devices that are compared for an image


class Clock:
    """Simulated time with scheduled calls."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Schedule a call. Calls at the same time run in the order of scheduling."""
        heappush(self._events, (self.now_s + delay_s, next(self._order), call))

    def run(self) -> None:
        """Run all scheduled calls, and those that they schedule."""
        while self._events:
            self.now_s, _, call = heappop(self._events)
            call()


class Device:
    """A device with the times of a table. Calls `on_end` with the key of each finished image."""

    def __init__(
        self, times: StepTimes, limits: DeviceLimits, clock: Clock, on_end: Callable[[Hashable], None]
    ) -> None:
        self._times, self._clock, self._on_end = times, clock, on_end
        self._of_shape = {times.shape(entry): entry for entry in times.shapes}
        self.scheduler: Scheduler[Hashable] = Scheduler(limits, _costs_of(times))
        self._items: dict[Hashable, WorkItem] = {}
        self._new: set[Hashable] = set()  # not encoded yet
        self._is_stepping = self._is_decoding = False
        self.busy_s = 0.0

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
            took_s = self._took_s(batch)
            self.busy_s += took_s
            self._clock.after(took_s, self._end_step)
        if not self._is_decoding and (key := self.scheduler.next_decode()) is not None:
            self._is_decoding = True
            decode_s = self._of_shape[self._items[key].shape].decode_s
            self._clock.after(decode_s, lambda: self._end_decoding(key))

    def _took_s(self, batch: Batch[Hashable]) -> float:
        new = self._new.intersection(batch.keys)
        self._new -= new
        return self._of_shape[batch.shape].step_time_s(batch.rows) + len(new) * self._times.encode_s

    def _end_step(self) -> None:
        self._is_stepping = False
        self.scheduler.finish()
        self._start_work()

    def _end_decoding(self, key: Hashable) -> None:
        self._is_decoding = False
        was_cancelled = key not in self.scheduler
        self.scheduler.decoded()
        if not was_cancelled:
            self._on_end(key)
        del self._items[key]
        self._start_work()


def _costs_of(times: StepTimes) -> CostModel:
    """Return the cost model of an engine that has run on this device for a while."""
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
    """Requests at random times (Poisson process with a mean rate of `rps`), each with random values of the lists."""

    rps: float
    requests: int
    steps: Sequence[int]
    guidance: Sequence[float]
    shapes: Sequence[ShapeTimes]
    clients: int = 100
    seed: int = 0


@dataclass
class Report:
    """The result of a simulation. Latencies are from a request's arrival to its pixels, by number of steps."""

    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    refused: int = 0
    utilisation: float = 0.0  # share of the devices' time that was spent in steps
    lasted_s: float = 0.0  # simulated duration

    def percentile_s(self, percent: float, steps: int | None = None) -> float:
        """Return a percentile of the latency of all images, or of those with `steps` steps."""
        chosen = [s for count, latencies_s in self.latencies_s.items() if steps in (count, None) for s in latencies_s]
        return sorted(chosen)[ceil(percent / 100 * len(chosen)) - 1]

    @property
    def finished(self) -> int:
        """The number of finished images."""
        return sum(map(len, self.latencies_s.values()))


def simulate(times: StepTimes, load: Load, limits: DeviceLimits, devices: int) -> Report:
    """Simulate a load on `devices` devices. Each image goes to the least busy of a few random ones."""
    clock, report, rng = Clock(), Report(), random.Random(load.seed)  # noqa: S311  chance, not secrecy
    arrived: dict[Hashable, tuple[float, int]] = {}

    def on_end(key: Hashable) -> None:
        arrived_s, steps = arrived.pop(key)
        report.latencies_s.setdefault(steps, []).append(clock.now_s - arrived_s)

    fleet = [Device(times, limits, clock, on_end) for _ in range(devices)]

    def arrive(index: int) -> None:
        steps, is_guided = rng.choice(load.steps), rng.choice(load.guidance) > 1
        shape = times.shape(rng.choice(load.shapes))
        item = WorkItem(rng.randrange(load.clients), shape, steps, 2 if is_guided else 1)
        try:
            _least_busy(fleet, rng).submit(index, item)
        except Overloaded:
            report.refused += 1
        else:
            arrived[index] = clock.now_s, steps
        if index + 1 < load.requests:
            clock.after(rng.expovariate(load.rps), lambda: arrive(index + 1))

    arrive(0)
    clock.run()
    assert not arrived, "an image was lost"
    report.lasted_s = clock.now_s
    report.utilisation = sum(device.busy_s for device in fleet) / (devices * clock.now_s)
    return report


def _least_busy(fleet: Sequence[Device], rng: random.Random) -> Device:
    """Return the device with the least work left, out of a random sample or of all if there are few."""
    candidates = fleet if len(fleet) <= _CANDIDATES else rng.sample(fleet, _CANDIDATES)
    return min(candidates, key=lambda device: device.scheduler.backlog_s)

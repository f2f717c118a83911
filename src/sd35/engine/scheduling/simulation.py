"""The scheduler on simulated devices and a simulated clock: how policy and capacity are tried at scale, in seconds.

A simulated device makes steps and decodings by a table of times; nothing waits. Decoding runs beside the steps, as in
`sd35.engine.local.engine`, and the prompts of a batch's new images are encoded before its step.
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

_LOOKED_AT = 8  # devices, for an image


class Clock:
    """Simulated time, and what happens when."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have something done later; at one moment, in the order of asking."""
        heappush(self._events, (self.now_s + delay_s, next(self._order), call))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now_s, _, call = heappop(self._events)
            call()


class Device:
    """A device that takes as long as its table says. `on_end` hears of each image that is done."""

    def __init__(
        self, times: StepTimes, limits: DeviceLimits, clock: Clock, on_end: Callable[[Hashable], None]
    ) -> None:
        self._times, self._clock, self._on_end = times, clock, on_end
        self._of_shape = {times.shape(entry): entry for entry in times.shapes}
        self.scheduler: Scheduler[Hashable] = Scheduler(limits, _costs_of(times))
        self._jobs: dict[Hashable, WorkItem] = {}
        self._new: set[Hashable] = set()  # not encoded yet
        self._is_stepping = self._is_decoding = False
        self.busy_s = 0.0

    def submit(self, key: Hashable, job: WorkItem) -> None:
        """Accept an image. Raises what the scheduler raises."""
        self.scheduler.add(key, job, self._clock.now_s)
        self._jobs[key] = job
        self._new.add(key)
        self._go_on()

    def cancel(self, key: Hashable) -> None:
        """Take an image out."""
        self.scheduler.cancel(key)
        self._new.discard(key)
        self._go_on()

    def _go_on(self) -> None:
        """Begin what can begin now."""
        if not self._is_stepping and (batch := self.scheduler.next_batch()):
            self._is_stepping = True
            took_s = self._took_s(batch)
            self.busy_s += took_s
            self._clock.after(took_s, self._end_step)
        if not self._is_decoding and (key := self.scheduler.next_decode()) is not None:
            self._is_decoding = True
            decode_s = self._of_shape[self._jobs[key].shape].decode_s
            self._clock.after(decode_s, lambda: self._end_decoding(key))

    def _took_s(self, batch: Batch[Hashable]) -> float:
        new = self._new.intersection(batch.keys)
        self._new -= new
        return self._of_shape[batch.shape].step_time_s(batch.rows) + len(new) * self._times.encode_s

    def _end_step(self) -> None:
        self._is_stepping = False
        self.scheduler.finish()
        self._go_on()

    def _end_decoding(self, key: Hashable) -> None:
        self._is_decoding = False
        is_wanted = key in self.scheduler
        self.scheduler.decoded()
        if is_wanted:
            self._on_end(key)
        del self._jobs[key]
        self._go_on()


def _costs_of(times: StepTimes) -> CostModel:
    """What an engine that ran for a while on this device has learnt."""
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
    """Requests at random moments (Poisson), `rps` a second in the mean, each drawn from the lists by chance."""

    rps: float
    requests: int
    steps: Sequence[int]
    guidance: Sequence[float]
    shapes: Sequence[ShapeTimes]
    clients: int = 100
    seed: int = 0


@dataclass
class Report:
    """What came of it. Latency is from a request's arrival to its pixels, in seconds, by steps."""

    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    refused: int = 0
    utilisation: float = 0.0  # share of the devices' time that went into steps
    lasted_s: float = 0.0  # of simulated time

    def percentile_s(self, percent: float, steps: int | None = None) -> float:
        """Latency that so many percent of the images stay within; of those with so many steps, or of all."""
        chosen = [s for of, every in self.latencies_s.items() if steps in (of, None) for s in every]
        return sorted(chosen)[ceil(percent / 100 * len(chosen)) - 1]

    @property
    def finished(self) -> int:
        """Images that were made."""
        return sum(map(len, self.latencies_s.values()))


def simulate(times: StepTimes, load: Load, limits: DeviceLimits, devices: int) -> Report:
    """Send a load to so many devices, each image to the least busy of a few drawn by chance."""
    clock, report, rng = Clock(), Report(), random.Random(load.seed)  # noqa: S311  chance, not secrecy
    arrived: dict[Hashable, tuple[float, int]] = {}

    def on_end(key: Hashable) -> None:
        arrived_s, steps = arrived.pop(key)
        report.latencies_s.setdefault(steps, []).append(clock.now_s - arrived_s)

    fleet = [Device(times, limits, clock, on_end) for _ in range(devices)]

    def arrive(index: int) -> None:
        steps, is_guided = rng.choice(load.steps), rng.choice(load.guidance) > 1
        shape = times.shape(rng.choice(load.shapes))
        job = WorkItem(rng.randrange(load.clients), shape, steps, 2 if is_guided else 1)
        try:
            _least_busy(fleet, rng).submit(index, job)
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
    """Of a few devices drawn by chance, the one with the least work left; all are looked at where they are few."""
    looked_at = fleet if len(fleet) <= _LOOKED_AT else rng.sample(fleet, _LOOKED_AT)
    return min(looked_at, key=lambda device: device.scheduler.backlog_s)

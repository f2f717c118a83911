"""Which pictures make the next step together. Pure policy: no tensor, no thread, no clock; time comes in.

Rows of one latent shape share a batch, whatever their step counts, guidance, prompts and progress. Three rules:

- Between clients: who was served least is next (`sd35.engine.fair_queue`), so nobody starves anybody.
- Among a client's own pictures: the one that is due first. A picture is due `STRETCH` times its own length after it
  came, and sooner with a priority: short ones overtake long ones, but one that waited `STRETCH` times its own length is
  overtaken by nothing that comes later.
- Memory: a batch, and a decoding beside it, never take more than the device has. What has its last step behind it is
  decoded first come, first served, and its memory is set aside before the next batch is formed.

Admission tells a burst from lasting overload, as CoDel does (Nichols and Jacobson, "Controlling Queue Delay", 2012): a
queue that lasts delays everybody and makes no more pictures. So all of `max_pictures` is for bursts. Overload lasts
once the device has made that many pictures without ever being half empty. From then until it is half empty, a client
that has its share of a batch gets no further picture accepted.
"""

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import count
from typing import Generic, Literal, NamedTuple

from sd35.engine.cost_model import Costs, Shape
from sd35.engine.fair_queue import Account, Entry, FairQueue, Key
from sd35.errors import InvalidRequest, Overloaded
from sd35.request import PRIORITY, STEPS
from sd35.tensors import LATENT_PX

STRETCH = 6.0
BONUS_S = 60.0  # due so much sooner for one priority more
_SHARE = 8  # a client may have so many times as many pictures as there are free places


@dataclass(frozen=True)
class Limits:
    """What a device takes on.

    `max_rows`: transformer rows in a batch; a single picture is stepped even where it has more. `max_pictures`:
    accepted and not ended. `max_wait_s`: the longest estimated wait a picture is accepted for. `memory_bytes`: for the
    working memory of steps and decodings. `max_slowdown`: in lasting overload, a picture that would take this many
    times as long as alone is refused.
    """

    max_rows: int
    max_pictures: int
    max_wait_s: float
    memory_bytes: int
    max_slowdown: float = math.inf


@dataclass(frozen=True)
class Job:
    """What the policy has to know of a picture. `rows` is 2 where guidance takes a second transformer row, else 1."""

    client: Hashable
    shape: Shape
    steps: int
    rows: Literal[1, 2]
    priority: int = 0


class Batch(NamedTuple, Generic[Key]):
    """Pictures of one shape that make their next step together, in `rows` transformer rows."""

    shape: Shape
    keys: list[Key]
    rows: int
    memory_bytes: int


@dataclass(slots=True)
class _Picture:
    job: Job
    account: Account
    due_s: float
    place: int
    left: int  # steps


@dataclass(slots=True)
class _Decoding(Generic[Key]):
    """Memory that is set aside for the next picture to be decoded, or taken by the one that is."""

    key: Key
    memory_bytes: int
    has_begun: bool = False


class Scheduler(Generic[Key]):
    """One device's pictures. A key is accepted once, and ends by `cancel` or `decoded`, whichever comes first."""

    def __init__(self, limits: Limits, costs: Costs) -> None:
        self.limits, self.costs = limits, costs
        self._pictures: dict[Key, _Picture] = {}
        self._queues: dict[Shape, FairQueue[Key]] = {}
        self._accounts: dict[Hashable, Account] = {}
        self._level_s = 0.0  # what the client served least was served: where one who comes anew starts
        self._rows: Counter[Shape] = Counter()  # of all accepted pictures
        self._row_steps_left: Counter[Shape] = Counter()
        self._decodings_left: Counter[Shape] = Counter()
        self._places = count()
        self._made_while_busy = 0  # pictures, since the device was last half empty
        self._is_overloaded = False
        self._drawn: dict[Key, None] = {}  # to be decoded, in the order of their last steps
        self._running: Batch[Key] | None = None
        self._decoding: _Decoding[Key] | None = None

    def __len__(self) -> int:
        return len(self._pictures)

    def __contains__(self, key: Key) -> bool:
        return key in self._pictures

    @property
    def used_bytes(self) -> int:
        """Working memory that is given out."""
        stepping = self._running.memory_bytes if self._running else 0
        return stepping + (self._decoding.memory_bytes if self._decoding else 0)

    @property
    def backlog_s(self) -> float:
        """Seconds of work that are left in all accepted pictures, steps and decodings."""
        stepping_s = sum(left * self.costs.row_s(shape) for shape, left in self._row_steps_left.items())
        return stepping_s + sum(left * self.costs.decode_s(shape) for shape, left in self._decodings_left.items())

    def add(self, key: Key, job: Job, now_s: float) -> None:
        """Accept a picture. Raises InvalidRequest for what this device can never do, Overloaded for not now."""
        assert key not in self._pictures, key
        self._check(job)
        self._check_room(job)
        self._accept(key, job, now_s)

    def begin_anew(self, key: Key, instead: Key, accepted_s: float, shape: Shape) -> None:
        """Put `instead`, of another painter's shape, in the place of an accepted picture, with all steps before it.

        Accepted it stays: it is not refused, and is due as it was for who waits since `accepted_s`.
        """
        job = replace(self._pictures[key].job, shape=shape)
        self._accept(instead, job, accepted_s)  # first: its client's account stays
        self.cancel(key)

    def _accept(self, key: Key, job: Job, now_s: float) -> None:
        account = self._accounts.setdefault(job.client, Account(self._level_s))
        account.pictures += 1
        self._rows[job.shape] += job.rows
        self._row_steps_left[job.shape] += job.steps * job.rows
        self._decodings_left[job.shape] += 1
        due_s = now_s + STRETCH * self._job_s(job) - BONUS_S * job.priority
        picture = self._pictures[key] = _Picture(job, account, due_s, next(self._places), job.steps)
        self._push(key, picture)

    def cancel(self, key: Key) -> None:
        """Take a picture out, unwanted or failed. A batch or decoding it is in still runs, and keeps its memory."""
        self._remove(key)
        if self._decoding and self._decoding.key == key and not self._decoding.has_begun:
            self._decoding = None

    def next_batch(self) -> Batch[Key] | None:
        """What makes its next step now, to be followed by `finish`; None where nothing is ready or no memory free."""
        assert self._running is None
        self._set_aside()
        lead = self._lead()
        if lead is None:
            return None
        job = self._pictures[lead.key].job
        free_bytes = self.limits.memory_bytes - self.used_bytes
        needed_bytes = self._at_most_all(self.costs.step_bytes(job.shape, job.rows))
        if needed_bytes > free_bytes:
            return None  # a decoding has it, and ends soon
        self._running = self._fill(job.shape, free_bytes)
        return self._running

    def finish(self) -> list[Key]:
        """The running batch has made its step. Answers with those whose last it was, which are then decoded."""
        assert self._running
        batch, self._running = self._running, None
        drawn = []
        for key in batch.keys:
            picture = self._pictures.get(key)
            if picture is None:  # cancelled while it ran
                continue
            picture.left -= 1
            _take_off(self._row_steps_left, batch.shape, picture.job.rows)
            if picture.left:
                self._push(key, picture)
            else:
                self._drawn[key] = None
                drawn.append(key)
        return drawn

    def next_decode(self) -> Key | None:
        """What is decoded now, to be followed by `decoded`; None where nothing is, or its memory is not free yet."""
        self._set_aside()
        if self._decoding is None or self._decoding.has_begun:
            return None
        self._decoding.has_begun = True
        del self._drawn[self._decoding.key]
        return self._decoding.key

    def decoded(self) -> None:
        """The decoding is done, its memory free, and its picture at its end, if it was not cancelled meanwhile."""
        assert self._decoding
        assert self._decoding.has_begun
        key, self._decoding = self._decoding.key, None
        if key in self._pictures:
            self._made_while_busy += 1
            self._remove(key)

    def _check(self, job: Job) -> None:
        for field, value, (low, high) in (("steps", job.steps, STEPS), ("priority", job.priority, PRIORITY)):
            if not low <= value <= high:
                raise InvalidRequest(field, value, f"{low} to {high}")
        needed = self.costs.measured_bytes(job.shape, job.rows)
        if needed > self.limits.memory_bytes:
            size = f"{LATENT_PX * job.shape.width}x{LATENT_PX * job.shape.height}"
            allowed = f"what {self.limits.memory_bytes / 1e6:.1f} MB can hold; this size takes {needed / 1e6:.1f} MB"
            raise InvalidRequest("width x height", size, allowed)

    def _check_room(self, job: Job) -> None:
        self._check_slowdown(job)
        free = self.limits.max_pictures - len(self._pictures)
        account = self._accounts.get(job.client)
        own = account.pictures if account else 0
        if own >= _SHARE * free:
            self._is_overloaded = self._made_while_busy >= self.limits.max_pictures
            whose = f" and {own} of them are this client's" if free else ""
            reason = f"{len(self._pictures)} of at most {self.limits.max_pictures} pictures are accepted{whose}"
            raise Overloaded(reason, self.backlog_s / max(1, len(self._pictures)))
        wait_s = self._wait_s(job)
        if wait_s > self.limits.max_wait_s:
            reason = f"a picture would wait for {wait_s:.0f} s and may for {self.limits.max_wait_s:.0f}"
            raise Overloaded(reason, wait_s - self.limits.max_wait_s)

    def _check_slowdown(self, job: Job) -> None:
        """In lasting overload, refuse a picture that would only wait: batches are full, and its client has its share.

        A client that has no picture is never refused here. Else one that asks again at once would take every place that
        becomes free before one that waits as `Retry-After` says.
        """
        max_rows = self.limits.max_rows
        if not self._is_overloaded or self._rows.total() < max_rows or self._slowdown < self.limits.max_slowdown:
            return
        own = sum(picture.job.rows for picture in self._pictures.values() if picture.job.client == job.client)
        if own and (own + job.rows) * len(self._accounts) > max_rows:
            reason = f"the service is overloaded: pictures take {self._slowdown:.0f} times as long as alone"
            raise Overloaded(reason, self.backlog_s / len(self._pictures))

    @property
    def _slowdown(self) -> float:
        """How many times as long as alone an accepted picture takes, by estimate.

        Each makes its next step when all others have made theirs: with n rows it takes n times as long, if batching
        saves nothing.
        """
        return sum(rows * self.costs.batching(shape) for shape, rows in self._rows.items())

    def _wait_s(self, job: Job) -> float:
        """How long a picture is likely to wait: for all that is left, or for as much as equal shares let go before."""
        total_s = self.backlog_s
        if total_s <= self.limits.max_wait_s:
            return total_s
        job_s = self._job_s(job)
        own = [picture for picture in self._pictures.values() if picture.job.client == job.client]
        own_s = sum(self._job_s(picture.job) * picture.left / picture.job.steps for picture in own)
        sharing = len(self._accounts.keys() | {job.client})
        return min(total_s, (own_s + job_s) * sharing - job_s)

    def _job_s(self, job: Job) -> float:
        """Seconds of work in all of a job's steps."""
        return job.steps * job.rows * self.costs.row_s(job.shape)

    def _push(self, key: Key, picture: _Picture) -> None:
        shape = picture.job.shape
        # Who was in every batch, for want of others, may have got less than they: that is no credit for later.
        picture.account.served_s = max(picture.account.served_s, self._level_s)
        queue = self._queues.get(shape)
        if queue is None:
            queue = self._queues[shape] = FairQueue(lambda entry: entry.key in self._pictures)
        queue.push(Entry(picture.due_s, picture.place, key, picture.account))

    def _lead(self) -> Entry[Key] | None:
        """The first of all shapes' firsts; shapes that nothing is left of are dropped."""
        firsts = {shape: queue.first() for shape, queue in self._queues.items()}
        self._queues = {shape: queue for shape, queue in self._queues.items() if firsts[shape]}
        return min(filter(None, firsts.values()), key=lambda first: (first.account.served_s, first), default=None)

    def _fill(self, shape: Shape, free_bytes: int) -> Batch[Key]:
        """The lead, and as many more of its shape as rows and memory allow; a shape never measured steps one alone."""
        queue, row_s = self._queues[shape], self.costs.row_s(shape)
        keys: list[Key] = []
        rows = 0
        most_rows = self.costs.most_rows(shape, self.limits.max_rows)
        while entry := queue.first():
            more = self._pictures[entry.key].job.rows
            is_known = self.costs.is_measured(shape)
            has_room = rows + more <= most_rows and self.costs.step_bytes(shape, rows + more) <= free_bytes
            if keys and not (is_known and has_room):
                break
            queue.take()
            started_s = entry.account.served_s
            entry.account.served_s += more * row_s
            self._level_s = max(self._level_s, started_s if keys else entry.account.served_s)
            keys.append(entry.key)
            rows += more
        return Batch(shape, keys, rows, self._at_most_all(self.costs.step_bytes(shape, rows)))

    def _at_most_all(self, memory_bytes: int) -> int:
        """What was accepted is made: where it turns out to take more memory than there is, it has all of it."""
        return min(memory_bytes, self.limits.memory_bytes)

    def _set_aside(self) -> None:
        """Memory for the next decoding, as soon as there is enough."""
        if self._decoding is None and self._drawn:
            key = next(iter(self._drawn))
            needed = self._at_most_all(self.costs.decode_bytes(self._pictures[key].job.shape))
            if needed <= self.limits.memory_bytes - self.used_bytes:
                self._decoding = _Decoding(key, needed)

    def _remove(self, key: Key) -> None:
        picture = self._pictures.pop(key)
        _take_off(self._rows, picture.job.shape, picture.job.rows)
        if 2 * self._rows.total() <= self.limits.max_rows:
            self._made_while_busy, self._is_overloaded = 0, False
        _take_off(self._row_steps_left, picture.job.shape, picture.left * picture.job.rows)
        _take_off(self._decodings_left, picture.job.shape, 1)
        self._drawn.pop(key, None)
        picture.account.pictures -= 1
        if not picture.account.pictures:
            del self._accounts[picture.job.client]


def _take_off(left: Counter[Shape], shape: Shape, amount: int) -> None:
    """Less is left; shapes of which nothing is are forgotten."""
    left[shape] -= amount
    if not left[shape]:
        del left[shape]

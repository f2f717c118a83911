"""Choose the images that make the next step together. Uses no tensors, threads or clock: callers pass the time.

Rows of one latent shape share a batch, whatever their step counts, guidance, prompts and progress. Three rules:

- Between clients, the least served one is next (`sd35.engine.scheduling.fair_queue`), so that no client starves.
- Among a client's images, the one with the earliest deadline is next. An image's deadline is its arrival plus
  `SLOWDOWN_TARGET` times its own duration, and earlier with a priority. So short images overtake long ones, but no
  later image overtakes one that is past its deadline.
- A batch and the decoding that runs at the same time stay within the device's memory. Images are decoded in the order
  of their last steps. The memory of the next decoding is reserved before the next batch is formed.

Admission distinguishes a burst from lasting overload, as CoDel does (Nichols and Jacobson, "Controlling Queue Delay",
2012): a queue that never empties delays all clients without raising throughput. A burst may use all of `max_in_flight`.
Overload is lasting when the device has generated that many images without ever being half empty. From then until it is
half empty, a client that has its share of a batch gets no further image accepted.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import count
from typing import Generic, Literal, NamedTuple

from sd35.engine.base import DeviceLimits
from sd35.engine.scheduling.cost_model import CostModel, Shape
from sd35.engine.scheduling.fair_queue import Account, Entry, FairQueue, Key
from sd35.errors import InvalidRequest, Overloaded
from sd35.request import PRIORITY
from sd35.tensors import LATENT_PX

SLOWDOWN_TARGET = 6.0
PRIORITY_BONUS_S = 60.0  # each level of priority moves the deadline forward by this
_SHARE = 8  # a client may have at most this many images for each one that could still be accepted


@dataclass(frozen=True)
class WorkItem:
    """An image as the scheduler sees it. `rows` is 2 if guidance needs a second transformer row, else 1."""

    client: Hashable
    shape: Shape
    evaluations: int
    rows: Literal[1, 2]
    priority: int = 0


class Batch(NamedTuple, Generic[Key]):
    """Images of one shape that make their next step together, in `rows` transformer rows."""

    shape: Shape
    keys: list[Key]
    rows: int
    memory_bytes: int


@dataclass(slots=True)
class _Entry:
    item: WorkItem
    account: Account
    deadline_s: float
    place: int
    left: int  # evaluations of the transformer


@dataclass(slots=True)
class _Decoding(Generic[Key]):
    """Memory that is reserved for the next image to decode, or in use by the current one."""

    key: Key
    memory_bytes: int
    has_begun: bool = False


class Scheduler(Generic[Key]):
    """The images of one device, by key. An image ends with `cancel` or `decoded`, whichever is first."""

    def __init__(self, limits: DeviceLimits, costs: CostModel) -> None:
        self.limits, self.costs = limits, costs
        self._images: dict[Key, _Entry] = {}
        self._queues: dict[Shape, FairQueue[Key]] = {}
        self._accounts: dict[Hashable, Account] = {}
        self._level_s = 0.0  # `served_s` of the least served client; new clients start there
        self._rows: Counter[Shape] = Counter()  # of all accepted images
        self._row_steps_left: Counter[Shape] = Counter()
        self._decodings_left: Counter[Shape] = Counter()
        self._places = count()
        self._generated_while_busy = 0  # images, since the device was last half empty
        self._is_overloaded = False
        self._to_decode: dict[Key, None] = {}  # in the order of their last steps
        self._running: Batch[Key] | None = None
        self._decoding: _Decoding[Key] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, key: Key) -> bool:
        return key in self._images

    @property
    def used_bytes(self) -> int:
        """Working memory in use or reserved."""
        stepping = self._running.memory_bytes if self._running else 0
        return stepping + (self._decoding.memory_bytes if self._decoding else 0)

    @property
    def backlog_s(self) -> float:
        """Estimated seconds of work left in all accepted images, for steps and decoding."""
        stepping_s = sum(left * self.costs.row_s(shape) for shape, left in self._row_steps_left.items())
        return stepping_s + sum(left * self.costs.decode_s(shape) for shape, left in self._decodings_left.items())

    def add(self, key: Key, item: WorkItem, now_s: float) -> None:
        """Accept an image at `now_s`.

        Raises InvalidRequest if this device can never generate it, Overloaded if it cannot be accepted now.
        """
        assert key not in self._images, key
        self._check(item)
        self._check_room(item)
        self._accept(key, item, now_s)

    def restart(self, key: Key, new_key: Key, accepted_s: float, shape: Shape) -> None:
        """Restart an accepted image under a new key and with the shape of another pipeline.

        Skips admission. The deadline counts from `accepted_s`.
        """
        item = replace(self._images[key].item, shape=shape)
        self._accept(new_key, item, accepted_s)  # before `cancel`, so that the client's account stays
        self.cancel(key)

    def _accept(self, key: Key, item: WorkItem, now_s: float) -> None:
        account = self._accounts.setdefault(item.client, Account(self._level_s))
        account.images += 1
        self._rows[item.shape] += item.rows
        self._row_steps_left[item.shape] += item.evaluations * item.rows
        self._decodings_left[item.shape] += 1
        deadline_s = now_s + SLOWDOWN_TARGET * self._item_s(item) - PRIORITY_BONUS_S * item.priority
        image = self._images[key] = _Entry(item, account, deadline_s, next(self._places), item.evaluations)
        self._push(key, image)

    def cancel(self, key: Key) -> None:
        """Remove an image. A batch or decoding that includes it still runs, and keeps its memory."""
        self._remove(key)
        if self._decoding and self._decoding.key == key and not self._decoding.has_begun:
            self._decoding = None

    def next_batch(self) -> Batch[Key] | None:
        """Return the images that step now; None if none is ready or memory is short. Call `finish` after the step."""
        assert self._running is None
        self._reserve_decoding()
        lead = self._lead()
        if lead is None:
            return None
        item = self._images[lead.key].item
        free_bytes = self.limits.memory_bytes - self.used_bytes
        needed_bytes = self._at_most_all(self.costs.step_bytes(item.shape, item.rows))
        if needed_bytes > free_bytes:
            return None  # the current decoding has the rest, and ends soon
        self._running = self._fill(item.shape, free_bytes)
        return self._running

    def finish(self) -> list[Key]:
        """End the step of the running batch. Return the images that made their last step and are decoded next."""
        assert self._running
        batch, self._running = self._running, None
        finished = []
        for key in batch.keys:
            image = self._images.get(key)
            if image is None:  # cancelled during the step
                continue
            image.left -= 1
            _take_off(self._row_steps_left, batch.shape, image.item.rows)
            if image.left:
                self._push(key, image)
            else:
                self._to_decode[key] = None
                finished.append(key)
        return finished

    def next_decode(self) -> Key | None:
        """Return the image to decode now; None if there is none or memory is short. Call `decoded` afterwards."""
        self._reserve_decoding()
        if self._decoding is None or self._decoding.has_begun:
            return None
        self._decoding.has_begun = True
        del self._to_decode[self._decoding.key]
        return self._decoding.key

    def decoded(self) -> None:
        """End the decoding, and the image unless it was cancelled meanwhile."""
        assert self._decoding
        assert self._decoding.has_begun
        key, self._decoding = self._decoding.key, None
        if key in self._images:
            self._generated_while_busy += 1
            self._remove(key)

    def _check(self, item: WorkItem) -> None:
        low, high = PRIORITY
        if not low <= item.priority <= high:
            raise InvalidRequest("priority", item.priority, f"{low} to {high}")
        needed = self.costs.measured_bytes(item.shape, item.rows)
        if needed > self.limits.memory_bytes:
            size = f"{LATENT_PX * item.shape.width}x{LATENT_PX * item.shape.height}"
            limit_mb, needed_mb = self.limits.memory_bytes / 1e6, needed / 1e6
            allowed = f"sizes that fit in {limit_mb:.1f} MB of working memory; this one needs {needed_mb:.1f} MB"
            raise InvalidRequest("width x height", size, allowed)

    def _check_room(self, item: WorkItem) -> None:
        self._check_slowdown(item)
        free = self.limits.max_in_flight - len(self._images)
        account = self._accounts.get(item.client)
        own = account.images if account else 0
        if own >= _SHARE * free:
            self._is_overloaded = self._generated_while_busy >= self.limits.max_in_flight
            whose = f" and {own} of them are this client's" if free else ""
            reason = f"{len(self._images)} of at most {self.limits.max_in_flight} images are accepted{whose}"
            raise Overloaded(reason, self.backlog_s / max(1, len(self._images)))
        wait_s = self._wait_s(item)
        if wait_s > self.limits.max_wait_s:
            reason = f"the estimated wait is {wait_s:.0f} s; allowed: at most {self.limits.max_wait_s:.0f} s"
            raise Overloaded(reason, wait_s - self.limits.max_wait_s)

    def _check_slowdown(self, item: WorkItem) -> None:
        """In lasting overload, refuse an image if batches are full and its client has its share of them.

        A client without an image is never refused here. Otherwise a client that retries at once would take every free
        place before one that waits for `Retry-After`.
        """
        max_rows = self.limits.max_rows
        if not self._is_overloaded or self._rows.total() < max_rows or self._slowdown < self.limits.max_slowdown:
            return
        own = sum(image.item.rows for image in self._images.values() if image.item.client == item.client)
        if own and (own + item.rows) * len(self._accounts) > max_rows:
            reason = f"the service is overloaded: images take {self._slowdown:.0f} times as long as alone"
            raise Overloaded(reason, self.backlog_s / len(self._images))

    @property
    def _slowdown(self) -> float:
        """The estimated duration of an accepted image, relative to its duration alone.

        An image makes its next step after all others have made theirs. So with n rows it takes n times as long if
        batching saves nothing.
        """
        return sum(rows * self.costs.batching(shape) for shape, rows in self._rows.items())

    def _wait_s(self, item: WorkItem) -> float:
        """Estimate an image's wait: for all remaining work, or for the part that fair queueing puts before it."""
        total_s = self.backlog_s
        if total_s <= self.limits.max_wait_s:
            return total_s
        item_s = self._item_s(item)
        own = [image for image in self._images.values() if image.item.client == item.client]
        own_s = sum(self._item_s(image.item) * image.left / image.item.evaluations for image in own)
        sharing = len(self._accounts.keys() | {item.client})
        return min(total_s, (own_s + item_s) * sharing - item_s)

    def _item_s(self, item: WorkItem) -> float:
        """Return the seconds of work in all steps of an image."""
        return item.evaluations * item.rows * self.costs.row_s(item.shape)

    def _push(self, key: Key, image: _Entry) -> None:
        shape = image.item.shape
        # An idle client was served less than the others meanwhile. That gives it no credit.
        image.account.served_s = max(image.account.served_s, self._level_s)
        queue = self._queues.get(shape)
        if queue is None:
            queue = self._queues[shape] = FairQueue(lambda entry: entry.key in self._images)
        queue.push(Entry(image.deadline_s, image.place, key, image.account))

    def _lead(self) -> Entry[Key] | None:
        """Return the next image of all shapes. Drop the queues of shapes without images."""
        firsts = {shape: queue.first() for shape, queue in self._queues.items()}
        self._queues = {shape: queue for shape, queue in self._queues.items() if firsts[shape]}
        return min(filter(None, firsts.values()), key=lambda first: (first.account.served_s, first), default=None)

    def _fill(self, shape: Shape, free_bytes: int) -> Batch[Key]:
        """Return a batch of as many images as rows and memory allow, or of one if the shape was never measured."""
        queue, row_s = self._queues[shape], self.costs.row_s(shape)
        keys: list[Key] = []
        rows = 0
        max_rows = self.costs.max_rows(shape, self.limits.max_rows)
        while entry := queue.first():
            more = self._images[entry.key].item.rows
            is_known = self.costs.is_measured(shape)
            has_room = rows + more <= max_rows and self.costs.step_bytes(shape, rows + more) <= free_bytes
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
        """Return at most the whole memory: an accepted image runs even if it turns out to need more."""
        return min(memory_bytes, self.limits.memory_bytes)

    def _reserve_decoding(self) -> None:
        """Reserve memory for the next decoding if enough is free."""
        if self._decoding is None and self._to_decode:
            key = next(iter(self._to_decode))
            needed = self._at_most_all(self.costs.decode_bytes(self._images[key].item.shape))
            if needed <= self.limits.memory_bytes - self.used_bytes:
                self._decoding = _Decoding(key, needed)

    def _remove(self, key: Key) -> None:
        image = self._images.pop(key)
        _take_off(self._rows, image.item.shape, image.item.rows)
        if 2 * self._rows.total() <= self.limits.max_rows:
            self._generated_while_busy, self._is_overloaded = 0, False
        _take_off(self._row_steps_left, image.item.shape, image.left * image.item.rows)
        _take_off(self._decodings_left, image.item.shape, 1)
        self._to_decode.pop(key, None)
        image.account.images -= 1
        if not image.account.images:
            del self._accounts[image.item.client]


def _take_off(left: Counter[Shape], shape: Shape, amount: int) -> None:
    """Decrement a counter, and drop it at zero."""
    left[shape] -= amount
    if not left[shape]:
        del left[shape]

"""Which images make the next step together. Pure policy: no tensor, no thread, no clock; time comes in.

Rows of one latent shape share a batch, whatever their step counts, guidance, prompts and progress. Three rules:

- Between clients: who was served least is next (`sd35.engine.scheduling.fair_queue`), so nobody starves anybody.
- Among a client's own images: the earliest deadline. The deadline is `SLOWDOWN_TARGET` times an image's own length
  after it came, and sooner with a priority. So short ones overtake long ones, but nothing that comes later overtakes
  one past its deadline.
- Memory: a batch, and a decoding beside it, never take more than the device has. What has its last step behind it is
  decoded first come, first served, and its memory is set aside before the next batch is formed.

Admission tells a burst from lasting overload, as CoDel does (Nichols and Jacobson, "Controlling Queue Delay", 2012): a
queue that lasts delays everybody and makes no more images. So all of `max_in_flight` is for bursts. Overload lasts
once the device has made that many images without ever being half empty. From then until it is half empty, a client
that has its share of a batch gets no further image accepted.
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
BONUS_S = 60.0  # by which each level of priority moves the deadline forward
_SHARE = 8  # a client may have at most this many images for each free place


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
    left: int  # steps


@dataclass(slots=True)
class _Decoding(Generic[Key]):
    """Memory that is reserved for the next image to be decoded, or used by the one that is."""

    key: Key
    memory_bytes: int
    has_begun: bool = False


class Scheduler(Generic[Key]):
    """One device's images. A key is accepted once, and ends by `cancel` or `decoded`, whichever comes first."""

    def __init__(self, limits: DeviceLimits, costs: CostModel) -> None:
        self.limits, self.costs = limits, costs
        self._images: dict[Key, _Entry] = {}
        self._queues: dict[Shape, FairQueue[Key]] = {}
        self._accounts: dict[Hashable, Account] = {}
        self._level_s = 0.0  # of the client that was served least; new clients start there
        self._rows: Counter[Shape] = Counter()  # of all accepted images
        self._row_steps_left: Counter[Shape] = Counter()
        self._decodings_left: Counter[Shape] = Counter()
        self._places = count()
        self._made_while_busy = 0  # images, since the device was last half empty
        self._is_overloaded = False
        self._drawn: dict[Key, None] = {}  # to be decoded, in the order of their last steps
        self._running: Batch[Key] | None = None
        self._decoding: _Decoding[Key] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __contains__(self, key: Key) -> bool:
        return key in self._images

    @property
    def used_bytes(self) -> int:
        """Working memory that is given out."""
        stepping = self._running.memory_bytes if self._running else 0
        return stepping + (self._decoding.memory_bytes if self._decoding else 0)

    @property
    def backlog_s(self) -> float:
        """Seconds of work that are left in all accepted images, steps and decodings."""
        stepping_s = sum(left * self.costs.row_s(shape) for shape, left in self._row_steps_left.items())
        return stepping_s + sum(left * self.costs.decode_s(shape) for shape, left in self._decodings_left.items())

    def add(self, key: Key, item: WorkItem, now_s: float) -> None:
        """Accept an image. Raises InvalidRequest if this device can never generate it, Overloaded if not now."""
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
        deadline_s = now_s + SLOWDOWN_TARGET * self._item_s(item) - BONUS_S * item.priority
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
        self._set_aside()
        lead = self._lead()
        if lead is None:
            return None
        item = self._images[lead.key].item
        free_bytes = self.limits.memory_bytes - self.used_bytes
        needed_bytes = self._at_most_all(self.costs.step_bytes(item.shape, item.rows))
        if needed_bytes > free_bytes:
            return None  # a decoding has it, and ends soon
        self._running = self._fill(item.shape, free_bytes)
        return self._running

    def finish(self) -> list[Key]:
        """End the step of the running batch. Returns the images whose last step it was; they are decoded next."""
        assert self._running
        batch, self._running = self._running, None
        drawn = []
        for key in batch.keys:
            image = self._images.get(key)
            if image is None:  # cancelled while it ran
                continue
            image.left -= 1
            _take_off(self._row_steps_left, batch.shape, image.item.rows)
            if image.left:
                self._push(key, image)
            else:
                self._drawn[key] = None
                drawn.append(key)
        return drawn

    def next_decode(self) -> Key | None:
        """Return the image to decode now; None if there is none or memory is short. Call `decoded` afterwards."""
        self._set_aside()
        if self._decoding is None or self._decoding.has_begun:
            return None
        self._decoding.has_begun = True
        del self._drawn[self._decoding.key]
        return self._decoding.key

    def decoded(self) -> None:
        """End the decoding, and the image unless it was cancelled meanwhile."""
        assert self._decoding
        assert self._decoding.has_begun
        key, self._decoding = self._decoding.key, None
        if key in self._images:
            self._made_while_busy += 1
            self._remove(key)

    def _check(self, item: WorkItem) -> None:
        low, high = PRIORITY
        if not low <= item.priority <= high:
            raise InvalidRequest("priority", item.priority, f"{low} to {high}")
        needed = self.costs.measured_bytes(item.shape, item.rows)
        if needed > self.limits.memory_bytes:
            size = f"{LATENT_PX * item.shape.width}x{LATENT_PX * item.shape.height}"
            allowed = f"what {self.limits.memory_bytes / 1e6:.1f} MB can hold; this size takes {needed / 1e6:.1f} MB"
            raise InvalidRequest("width x height", size, allowed)

    def _check_room(self, item: WorkItem) -> None:
        self._check_slowdown(item)
        free = self.limits.max_in_flight - len(self._images)
        account = self._accounts.get(item.client)
        own = account.images if account else 0
        if own >= _SHARE * free:
            self._is_overloaded = self._made_while_busy >= self.limits.max_in_flight
            whose = f" and {own} of them are this client's" if free else ""
            reason = f"{len(self._images)} of at most {self.limits.max_in_flight} images are accepted{whose}"
            raise Overloaded(reason, self.backlog_s / max(1, len(self._images)))
        wait_s = self._wait_s(item)
        if wait_s > self.limits.max_wait_s:
            reason = f"an image would wait for {wait_s:.0f} s and may for {self.limits.max_wait_s:.0f}"
            raise Overloaded(reason, wait_s - self.limits.max_wait_s)

    def _check_slowdown(self, item: WorkItem) -> None:
        """In lasting overload, refuse an image that would only wait: batches are full, and its client has its share.

        A client that has no image is never refused here. Else one that asks again at once would take every place that
        becomes free before one that waits as `Retry-After` says.
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
        """How many times as long as alone an accepted image takes, by estimate.

        Each makes its next step when all others have made theirs: with n rows it takes n times as long, if batching
        saves nothing.
        """
        return sum(rows * self.costs.batching(shape) for shape, rows in self._rows.items())

    def _wait_s(self, item: WorkItem) -> float:
        """Estimate an image's wait: for all remaining work, or for the part that fair sharing puts before it."""
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
        # A client that was alone may have been served less than others since: that is no credit for later.
        image.account.served_s = max(image.account.served_s, self._level_s)
        queue = self._queues.get(shape)
        if queue is None:
            queue = self._queues[shape] = FairQueue(lambda entry: entry.key in self._images)
        queue.push(Entry(image.deadline_s, image.place, key, image.account))

    def _lead(self) -> Entry[Key] | None:
        """Return the next image of all shapes. Drops the queues of shapes that have no images left."""
        firsts = {shape: queue.first() for shape, queue in self._queues.items()}
        self._queues = {shape: queue for shape, queue in self._queues.items() if firsts[shape]}
        return min(filter(None, firsts.values()), key=lambda first: (first.account.served_s, first), default=None)

    def _fill(self, shape: Shape, free_bytes: int) -> Batch[Key]:
        """Return the lead with as many images of its shape as rows and memory allow; one alone if never measured."""
        queue, row_s = self._queues[shape], self.costs.row_s(shape)
        keys: list[Key] = []
        rows = 0
        most_rows = self.costs.most_rows(shape, self.limits.max_rows)
        while entry := queue.first():
            more = self._images[entry.key].item.rows
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
        """Limit a need to all of the memory: an accepted image is generated even if it turns out to need more."""
        return min(memory_bytes, self.limits.memory_bytes)

    def _set_aside(self) -> None:
        """Reserve memory for the next decoding, as soon as there is enough."""
        if self._decoding is None and self._drawn:
            key = next(iter(self._drawn))
            needed = self._at_most_all(self.costs.decode_bytes(self._images[key].item.shape))
            if needed <= self.limits.memory_bytes - self.used_bytes:
                self._decoding = _Decoding(key, needed)

    def _remove(self, key: Key) -> None:
        image = self._images.pop(key)
        _take_off(self._rows, image.item.shape, image.item.rows)
        if 2 * self._rows.total() <= self.limits.max_rows:
            self._made_while_busy, self._is_overloaded = 0, False
        _take_off(self._row_steps_left, image.item.shape, image.left * image.item.rows)
        _take_off(self._decodings_left, image.item.shape, 1)
        self._drawn.pop(key, None)
        image.account.images -= 1
        if not image.account.images:
            del self._accounts[image.item.client]


def _take_off(left: Counter[Shape], shape: Shape, amount: int) -> None:
    """Decrement a counter, and drop it at zero."""
    left[shape] -= amount
    if not left[shape]:
        del left[shape]

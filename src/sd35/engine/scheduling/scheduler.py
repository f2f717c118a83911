"""Choose the images that make the next step together. Uses no tensors, threads or clock: callers pass the time.

An image is one transformer row of a step, or two rows with guidance. Rows of one latent shape can share a batch. Their
step counts, guidance, prompts and progress may differ. Three rules choose the next images:

- Between clients, the client that was served the least is next (`sd35.engine.scheduling.fair_queue`). So no client
  starves.
- Among a client's images, the image with the earliest deadline is next. The deadline is the arrival plus
  `SLOWDOWN_TARGET` times the estimated duration of the image alone. It is earlier with a higher priority. So short
  images overtake long ones, but no later image overtakes one that is past its deadline.
- A batch and the decoding that runs at the same time stay within the device's memory. Images are decoded in the order
  of their last steps. The memory of the next decoding is reserved before the next batch is formed.

Admission distinguishes a burst from lasting overload, as CoDel does (Nichols and Jacobson, "Controlling Queue Delay",
2012): a queue that never empties delays all clients without raising throughput. A burst may use all of `max_in_flight`.
Overload is lasting once the device has generated `max_in_flight` images without being half empty in between. The device
is half empty when the accepted images have at most half the rows of a full batch. Until then, no further image of a
client is accepted if the client already has its share of a batch.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import count
from typing import Generic, NamedTuple

from sd35.engine.base import DeviceLimits
from sd35.engine.scheduling.backlog import AcceptedImage, Backlog, WorkItem
from sd35.engine.scheduling.cost_model import CostModel, Shape
from sd35.engine.scheduling.fair_queue import Account, Entry, FairQueue, Key
from sd35.errors import InvalidRequest, Overloaded
from sd35.request import PRIORITY
from sd35.tensors import LATENT_PX

SLOWDOWN_TARGET = 6.0  # the wait and the duration of an image until its deadline, relative to its duration alone
PRIORITY_BONUS_S = 60.0  # each level of priority moves the deadline forward by this
_SHARE = 8  # a client may have at most this many images for each place that is still free


class Batch(NamedTuple, Generic[Key]):
    """Images of one shape that make their next step together, in `rows` transformer rows."""

    shape: Shape
    keys: list[Key]
    rows: int
    memory_bytes: int


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
        self._backlog: Backlog[Key] = Backlog(costs)
        self._queues: dict[Shape, FairQueue[Key]] = {}
        self._accounts: dict[Hashable, Account] = {}
        self._level_s = 0.0  # `served_s` of the least served client; new clients start there
        self._places = count()
        self._generated_while_busy = 0  # images, since the device was last half empty
        self._is_overloaded = False
        self._to_decode: dict[Key, None] = {}  # in the order of their last steps
        self._running: Batch[Key] | None = None
        self._decoding: _Decoding[Key] | None = None

    def __len__(self) -> int:
        return len(self._backlog.images)

    def __contains__(self, key: Key) -> bool:
        return key in self._backlog.images

    @property
    def used_bytes(self) -> int:
        """Working memory in use or reserved."""
        stepping = self._running.memory_bytes if self._running else 0
        return stepping + (self._decoding.memory_bytes if self._decoding else 0)

    @property
    def backlog_s(self) -> float:
        """Estimated seconds of work left in all accepted images, for steps and decoding."""
        return self._backlog.total_s

    def add(self, key: Key, item: WorkItem, now_s: float) -> None:
        """Accept an image at `now_s`.

        Raises InvalidRequest if this device can never generate the image, Overloaded if there is no room for it now.
        """
        assert key not in self, key
        self._check_limits(item)
        self._check_room(item)
        self._accept(key, item, now_s)

    def restart(self, key: Key, new_key: Key, accepted_s: float, shape: Shape) -> None:
        """Restart an accepted image under a new key and with the shape of another pipeline.

        The image is accepted even if the queue is full. Its deadline counts from `accepted_s`.
        """
        item = replace(self._backlog.images[key].item, shape=shape)
        self._accept(new_key, item, accepted_s)  # before `cancel`, so that the client's account stays
        self.cancel(key)

    def _accept(self, key: Key, item: WorkItem, now_s: float) -> None:
        """Count an image, set its deadline, and queue it."""
        account = self._accounts.setdefault(item.client, Account(self._level_s))
        account.images += 1
        deadline_s = now_s + SLOWDOWN_TARGET * self._backlog.item_s(item) - PRIORITY_BONUS_S * item.priority
        image = AcceptedImage(item, account, deadline_s, next(self._places), item.evaluations)
        self._backlog.add(key, image)
        self._enqueue(key, image)

    def cancel(self, key: Key) -> None:
        """Remove an image. A batch or decoding that includes it still runs, and keeps its memory."""
        self._remove(key)
        if self._decoding and self._decoding.key == key and not self._decoding.has_begun:
            self._decoding = None

    def next_batch(self) -> Batch[Key] | None:
        """Return the images for a step now; None if none is ready or memory is short. Call `finish` after the step."""
        assert self._running is None
        self._reserve_decoding()
        first = self._next_entry()
        if first is None:
            return None
        item = self._backlog.images[first.key].item
        free_bytes = self.limits.memory_bytes - self.used_bytes
        needed_bytes = self._at_most_all(self.costs.step_bytes(item.shape, item.rows))
        if needed_bytes > free_bytes:
            return None  # the current decoding has the rest of the memory, and ends soon
        self._running = self._take_batch(item.shape, free_bytes)
        return self._running

    def finish(self) -> list[Key]:
        """End the step of the running batch. Return the images that have made their last step, to be decoded."""
        assert self._running
        batch, self._running = self._running, None
        finished = []
        for key in batch.keys:
            image = self._backlog.images.get(key)
            if image is None:  # cancelled during the step
                continue
            self._backlog.count_evaluation(image)
            if image.left:
                self._enqueue(key, image)
            else:
                self._to_decode[key] = None
                finished.append(key)
        return finished

    def next_decode(self) -> Key | None:
        """Return the image to decode now; None if none is ready or memory is short. Call `decoded` afterwards."""
        self._reserve_decoding()
        if self._decoding is None or self._decoding.has_begun:
            return None
        self._decoding.has_begun = True
        del self._to_decode[self._decoding.key]
        return self._decoding.key

    def decoded(self) -> None:
        """End the current decoding. Remove its image, which is complete now, if it was not cancelled meanwhile."""
        assert self._decoding
        assert self._decoding.has_begun
        key, self._decoding = self._decoding.key, None
        if key in self:
            self._generated_while_busy += 1
            self._remove(key)

    def _check_limits(self, item: WorkItem) -> None:
        """Raise InvalidRequest if this device can never generate an image."""
        low, high = PRIORITY
        if not low <= item.priority <= high:
            raise InvalidRequest("priority", item.priority, f"{low} to {high}")
        needed = self.costs.measured_bytes(item.shape, item.rows)
        if needed > self.limits.memory_bytes:
            size = f"{LATENT_PX * item.shape.width}x{LATENT_PX * item.shape.height}"
            limit_mb, needed_mb = self.limits.memory_bytes / 1e6, needed / 1e6
            allowed = f"sizes that fit in {limit_mb:.1f} MB of working memory (this one needs {needed_mb:.1f} MB)"
            raise InvalidRequest("width x height", size, allowed)

    def _check_room(self, item: WorkItem) -> None:
        """Raise Overloaded if the queue is too full for another image of this client, or the wait would be too long."""
        self._check_slowdown(item)
        free = self.limits.max_in_flight - len(self)
        account = self._accounts.get(item.client)
        own = account.images if account else 0
        if own >= _SHARE * free:
            self._is_overloaded = self._generated_while_busy >= self.limits.max_in_flight
            in_flight = f"{len(self)} of at most {self.limits.max_in_flight} images are waiting or running"
            reason = f"{in_flight}, including {own} of this client" if free else in_flight
            raise Overloaded(reason, self.backlog_s / max(1, len(self)))
        max_wait_s = self.limits.max_wait_s
        # The first test is quick, and no image waits longer than the backlog.
        if self.backlog_s > max_wait_s and (wait_s := self._backlog.wait_s(item)) > max_wait_s:
            reason = f"the estimated wait of {wait_s:.0f} s exceeds the limit of {max_wait_s:.0f} s"
            raise Overloaded(reason, wait_s - max_wait_s)

    def _check_slowdown(self, item: WorkItem) -> None:
        """In lasting overload, raise Overloaded if batches are full and the client already has its share of a batch.

        A client without an image is never refused here. Otherwise, a client that retries at once would take every free
        place before a client that waits for `Retry-After`.
        """
        max_rows = self.limits.max_rows
        if not self._is_overloaded or self._backlog.rows.total() < max_rows:
            return
        slowdown = self._backlog.slowdown
        if slowdown < self.limits.max_slowdown:
            return
        own = sum(image.item.rows for image in self._backlog.images.values() if image.item.client == item.client)
        if own and (own + item.rows) * len(self._accounts) > max_rows:
            reason = f"the service is overloaded, and images take {slowdown:.0f} times as long as they would alone"
            raise Overloaded(reason, self.backlog_s / len(self))

    def _enqueue(self, key: Key, image: AcceptedImage) -> None:
        """Queue an image for its next step."""
        shape = image.item.shape
        # A client that was idle gets no credit for the time in which only others were served.
        image.account.served_s = max(image.account.served_s, self._level_s)
        queue = self._queues.get(shape)
        if queue is None:
            queue = self._queues[shape] = FairQueue(lambda entry: entry.key in self._backlog.images)
        queue.push(Entry(image.deadline_s, image.place, key, image.account))

    def _next_entry(self) -> Entry[Key] | None:
        """Return the next image of all shapes, or None. Drop the queues of shapes without images."""
        firsts = {shape: queue.first() for shape, queue in self._queues.items()}
        self._queues = {shape: queue for shape, queue in self._queues.items() if firsts[shape]}
        return min(filter(None, firsts.values()), key=lambda first: (first.account.served_s, first), default=None)

    def _take_batch(self, shape: Shape, free_bytes: int) -> Batch[Key]:
        """Take the images of a step from the queue of a shape, as many as the limits of rows and memory allow.

        Before the first measurement of the shape, take only one. Each image adds the estimated time of its rows to its
        client's account.
        """
        queue, row_s = self._queues[shape], self.costs.row_s(shape)
        keys: list[Key] = []
        rows = 0
        max_rows = self.costs.max_rows(shape, self.limits.max_rows)
        while entry := queue.first():
            new_rows = rows + self._backlog.images[entry.key].item.rows
            has_room = new_rows <= max_rows and self.costs.step_bytes(shape, new_rows) <= free_bytes
            if keys and not (self.costs.is_measured(shape) and has_room):
                break
            queue.take()
            # New and idle clients start at the level. It is the service of the least served client before this image.
            # For the first image, the service after it counts: if batches have one image, the level would lag behind.
            before_s = entry.account.served_s
            entry.account.served_s += (new_rows - rows) * row_s
            self._level_s = max(self._level_s, before_s if keys else entry.account.served_s)
            keys.append(entry.key)
            rows = new_rows
        return Batch(shape, keys, rows, self._at_most_all(self.costs.step_bytes(shape, rows)))

    def _at_most_all(self, memory_bytes: int) -> int:
        """Return `memory_bytes`, or the device's whole working memory if it is less.

        An accepted image runs even if it needs more memory than estimated.
        """
        return min(memory_bytes, self.limits.memory_bytes)

    def _reserve_decoding(self) -> None:
        """Reserve memory for the next decoding if enough is free. Does nothing while another is reserved or runs."""
        if self._decoding is None and self._to_decode:
            key = next(iter(self._to_decode))
            needed = self._at_most_all(self.costs.decode_bytes(self._backlog.images[key].item.shape))
            if needed <= self.limits.memory_bytes - self.used_bytes:
                self._decoding = _Decoding(key, needed)

    def _remove(self, key: Key) -> None:
        """Remove an image and its remaining work. The queues drop its entry later."""
        image = self._backlog.remove(key)
        if 2 * self._backlog.rows.total() <= self.limits.max_rows:  # the device is half empty
            self._generated_while_busy, self._is_overloaded = 0, False
        self._to_decode.pop(key, None)
        image.account.images -= 1
        if not image.account.images:
            del self._accounts[image.item.client]

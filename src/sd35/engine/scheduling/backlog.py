"""The accepted images of a device, and estimates of their remaining work."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Literal

from sd35.engine.scheduling.cost_model import CostModel, Shape
from sd35.engine.scheduling.fair_queue import Account, Key


@dataclass(frozen=True)
class WorkItem:
    """An image as the scheduler sees it. `rows` is 2 if guidance needs a second transformer row, else 1."""

    client: Hashable
    shape: Shape
    evaluations: int
    rows: Literal[1, 2]
    priority: int = 0


@dataclass(slots=True)
class AcceptedImage:
    """An accepted image. `left` counts its remaining evaluations; `place` is its number in the order of acceptance."""

    item: WorkItem
    account: Account
    deadline_s: float
    place: int
    left: int


class Backlog(Generic[Key]):
    """The accepted images by key, and their totals: rows, remaining evaluations and decodings of each shape."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self.images: dict[Key, AcceptedImage] = {}
        self.rows: Counter[Shape] = Counter()  # transformer rows of all images
        self._row_steps_left: Counter[Shape] = Counter()
        self._decodings_left: Counter[Shape] = Counter()

    def add(self, key: Key, image: AcceptedImage) -> None:
        """Add an image before its first evaluation."""
        item = image.item
        self.images[key] = image
        self.rows[item.shape] += item.rows
        self._row_steps_left[item.shape] += item.evaluations * item.rows
        self._decodings_left[item.shape] += 1

    def count_evaluation(self, image: AcceptedImage) -> None:
        """Subtract an evaluation from an image's remaining work."""
        image.left -= 1
        _decrease(self._row_steps_left, image.item.shape, image.item.rows)

    def remove(self, key: Key) -> AcceptedImage:
        """Remove an image and its remaining work, and return the image."""
        image = self.images.pop(key)
        _decrease(self.rows, image.item.shape, image.item.rows)
        _decrease(self._row_steps_left, image.item.shape, image.left * image.item.rows)
        _decrease(self._decodings_left, image.item.shape, 1)
        return image

    @property
    def total_s(self) -> float:
        """Estimated seconds of work left in all images, for steps and decoding."""
        stepping_s = sum(left * self._costs.row_s(shape) for shape, left in self._row_steps_left.items())
        return stepping_s + sum(left * self._costs.decode_s(shape) for shape, left in self._decodings_left.items())

    @property
    def slowdown(self) -> float:
        """The estimated duration of an image, relative to its duration alone on the device.

        Between two steps of an image, all other images make a step. So with n rows in all, an image takes n times as
        long, or less if rows in a batch are faster than one by one.
        """
        return sum(rows * self._costs.batching(shape) for shape, rows in self.rows.items())

    def wait_s(self, item: WorkItem) -> float:
        """Return the estimated seconds that a new image waits.

        It waits for all remaining work, or less if fair queueing serves it before the work of other clients.
        """
        own = [image for image in self.images.values() if image.item.client == item.client]
        own_s = sum(self.item_s(image.item) * image.left / image.item.evaluations for image in own)
        clients = len({item.client, *(image.item.client for image in self.images.values())})
        # The device is shared equally, so work of this client takes `clients` times as long.
        return min(self.total_s, (own_s + self.item_s(item)) * clients - self.item_s(item))

    def item_s(self, item: WorkItem) -> float:
        """Return the seconds of work in all steps of an image, without decoding."""
        return item.evaluations * item.rows * self._costs.row_s(item.shape)


def _decrease(counter: Counter[Shape], shape: Shape, amount: int) -> None:
    """Decrease the count of a shape, and drop the shape at zero."""
    counter[shape] -= amount
    if not counter[shape]:
        del counter[shape]

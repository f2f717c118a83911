"""The cost of an image on this device by latent shape: measured, or estimated by area before the first measurement."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

_NEWEST_WEIGHT = 0.2
_FIRST_ROW_S = 0.1  # the estimate before any measurement


@dataclass(frozen=True)
class Shape:
    """What the rows of a batch have in common: the pipeline's key, and the latent's sides (8 px each)."""

    pipeline: Hashable
    height: int
    width: int

    @property
    def area(self) -> int:
        """The number of latent positions."""
        return self.height * self.width


class CostModel:
    """Seconds and bytes of a transformer row's step and of decoding. Not thread-safe."""

    def __init__(self) -> None:
        self._row_s: dict[Shape, float] = {}
        self._smallest_batch_rows: dict[Shape, int] = {}
        self._smallest_batch_row_s: dict[Shape, float] = {}
        self._decode_s: dict[Shape, float] = {}
        self._max_rows: dict[Shape, int] = {}  # only of shapes with failed steps
        self._row_bytes: dict[Shape, float] = {}
        self._row_bytes_at_rows: dict[Shape, int] = {}
        self._decode_bytes: dict[Shape, float] = {}

    def row_s(self, shape: Shape) -> float:
        """Return the seconds of a step for one transformer row of this shape, as a share of its batch."""
        return _by_nearest(self._row_s, shape, _FIRST_ROW_S)

    def batching(self, shape: Shape) -> float:
        """Return a row's time in recent batches relative to its time in the smallest batch so far, at most 1.

        Near 1, a batch takes as long as its rows one by one, as on most CPUs. Far below 1, further rows cost little.
        The value is 1 before the first measurement of this shape.
        """
        return min(1.0, self._row_s[shape] / self._smallest_batch_row_s[shape]) if shape in self._row_s else 1.0

    def decode_s(self, shape: Shape) -> float:
        """Return the seconds of decoding one latent."""
        return _by_nearest(self._decode_s, shape, 0)

    def max_rows(self, shape: Shape, limit: int) -> int:
        """Return the maximum number of transformer rows of a step: `limit`, or fewer if steps of this shape failed."""
        return min(limit, self._max_rows.get(shape, limit))

    def step_bytes(self, shape: Shape, rows: int) -> int:
        """Return the peak bytes of a step with `rows` transformer rows, without the weights."""
        return int(rows * _by_largest(self._row_bytes, shape))

    def decode_bytes(self, shape: Shape) -> int:
        """Return the peak bytes of decoding one latent."""
        return int(_by_largest(self._decode_bytes, shape))

    def measured_bytes(self, shape: Shape, rows: int) -> int:
        """Return the larger of the measured bytes of a step and of decoding. Never an estimate: 0 if not measured."""
        return int(max(rows * self._row_bytes.get(shape, 0), self._decode_bytes.get(shape, 0)))

    def is_measured(self, shape: Shape) -> bool:
        """Return whether the memory of a step of this shape was measured."""
        return shape in self._row_bytes

    def wants_step_bytes(self, shape: Shape, rows: int) -> bool:
        """Return whether no step of this shape with at least this many transformer rows was measured yet."""
        return rows > self._row_bytes_at_rows.get(shape, 0)

    def wants_decode_bytes(self, shape: Shape) -> bool:
        """Return whether the memory of decoding this shape was not measured yet."""
        return shape not in self._decode_bytes

    def learn_step_time(self, shape: Shape, rows: int, took_s: float) -> None:
        """Record the time of a step with `rows` transformer rows. Newer steps weigh more."""
        _learn(self._row_s, shape, took_s / rows)
        self.learn_smallest_batch(shape, rows, took_s)

    def learn_smallest_batch(self, shape: Shape, rows: int, took_s: float) -> None:
        """Record a step's time for `batching`, unless a smaller batch of this shape was recorded."""
        fewest = self._smallest_batch_rows.setdefault(shape, rows)
        if rows < fewest:
            self._smallest_batch_rows[shape] = rows
            self._smallest_batch_row_s[shape] = took_s / rows
        elif rows == fewest:
            _learn(self._smallest_batch_row_s, shape, took_s / rows)

    def learn_decode_time(self, shape: Shape, took_s: float) -> None:
        """Record the time of decoding one latent. Newer ones weigh more."""
        _learn(self._decode_s, shape, took_s)

    def learn_too_many_rows(self, shape: Shape, rows: int) -> None:
        """Halve the rows of later steps, because a step with `rows` rows failed and smaller ones did not."""
        self._max_rows[shape] = max(1, rows // 2)

    def learn_step_bytes(self, shape: Shape, rows: int, peak_bytes: int) -> None:
        """Record the peak memory of a step with `rows` transformer rows. The step with the most rows counts."""
        if self.wants_step_bytes(shape, rows):
            self._row_bytes[shape] = peak_bytes / rows
            self._row_bytes_at_rows[shape] = rows

    def learn_decode_bytes(self, shape: Shape, peak_bytes: int) -> None:
        """Record the peak memory of decoding one latent. The largest counts."""
        self._decode_bytes[shape] = max(self._decode_bytes.get(shape, 0), peak_bytes)


def _learn(known: dict[Shape, float], shape: Shape, took_s: float) -> None:
    before = known.get(shape, took_s)
    known[shape] = before + _NEWEST_WEIGHT * (took_s - before)


def _by_nearest(known: Mapping[Shape, float], shape: Shape, default: float) -> float:
    """Return a shape's measured value. If there is none, estimate it from the nearest shape of the pipeline by area.

    Return `default` if the pipeline has no measured shape.
    """
    if shape in known:
        return known[shape]
    others = [other for other in known if other.pipeline == shape.pipeline]
    if not others:
        return default
    nearest = min(others, key=lambda other: abs(math.log(other.area / shape.area)))
    return known[nearest] * shape.area / nearest.area


def _by_largest(known: Mapping[Shape, float], shape: Shape) -> float:
    """Return a shape's measured value. If there is none, estimate it by area from the pipeline's most costly shape.

    The most costly shape has the largest value for its area. Return 0 if the pipeline has no measured shape.
    """
    if shape in known:
        return known[shape]
    return shape.area * max(
        (cost / other.area for other, cost in known.items() if other.pipeline == shape.pipeline), default=0
    )

"""The cost of an image on this device by latent shape: measured, or estimated from the area of measured shapes.

A transformer row is one image's share of a step: one row, or two with guidance.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

_NEWEST_WEIGHT = 0.2  # of the newest time in the moving average
_FIRST_ROW_S = 0.1  # the estimate before any measurement


@dataclass(frozen=True)
class Shape:
    """What the rows of a batch have in common: the pipeline's key, and the latent's size in positions of 8x8 px."""

    pipeline: Hashable
    height: int
    width: int

    @property
    def area(self) -> int:
        """The number of latent positions."""
        return self.height * self.width


class CostModel:
    """The seconds and the bytes that a step takes per transformer row, and decoding per image. Not thread-safe."""

    def __init__(self) -> None:
        self._row_s: dict[Shape, float] = {}
        self._smallest_batch_rows: dict[Shape, int] = {}
        self._smallest_batch_row_s: dict[Shape, float] = {}
        self._decode_s: dict[Shape, float] = {}
        self._max_rows: dict[Shape, int] = {}  # only of shapes with failed steps
        self._row_bytes: dict[Shape, float] = {}
        self._row_bytes_at_rows: dict[Shape, int] = {}  # the rows of the step that `_row_bytes` is from
        self._decode_bytes: dict[Shape, float] = {}

    def row_s(self, shape: Shape) -> float:
        """Return the seconds of a step per transformer row of this shape: the step's time divided by its rows."""
        return _by_nearest(self._row_s, shape, _FIRST_ROW_S)

    def batching(self, shape: Shape) -> float:
        """Return the time per row in recent batches, divided by the time per row in the smallest batch so far.

        At 1, the largest value, a batch takes as long as its rows one by one, as on most CPUs. Far below 1, more rows
        cost little. The value is 1 before the first measurement of this shape.
        """
        if shape not in self._row_s:
            return 1.0
        return min(1.0, self._row_s[shape] / self._smallest_batch_row_s[shape])

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
        """Return the measured peak bytes of a step or of decoding, whichever is larger; 0 if neither was measured."""
        return int(max(rows * self._row_bytes.get(shape, 0), self._decode_bytes.get(shape, 0)))

    def is_measured(self, shape: Shape) -> bool:
        """Return whether the memory of a step of this shape was measured."""
        return shape in self._row_bytes

    def wants_step_bytes(self, shape: Shape, rows: int) -> bool:
        """Return whether to measure the memory of a step: if it has more rows than all measured steps of its shape."""
        return rows > self._row_bytes_at_rows.get(shape, 0)

    def wants_decode_bytes(self, shape: Shape) -> bool:
        """Return whether to measure the memory of decoding this shape: if it was not measured yet."""
        return shape not in self._decode_bytes

    def learn_step_time(self, shape: Shape, rows: int, took_s: float) -> None:
        """Record the time of a step with `rows` transformer rows. Newer steps weigh more."""
        _learn(self._row_s, shape, took_s / rows)
        self.learn_smallest_batch(shape, rows, took_s)

    def learn_smallest_batch(self, shape: Shape, rows: int, took_s: float) -> None:
        """Record the time of a step for `batching`. Ignores it if a step with fewer rows of this shape was recorded."""
        fewest = self._smallest_batch_rows.setdefault(shape, rows)
        if rows < fewest:
            self._smallest_batch_rows[shape] = rows
            self._smallest_batch_row_s[shape] = took_s / rows
        elif rows == fewest:
            _learn(self._smallest_batch_row_s, shape, took_s / rows)

    def learn_decode_time(self, shape: Shape, took_s: float) -> None:
        """Record the time of decoding one latent. Newer times weigh more."""
        _learn(self._decode_s, shape, took_s)

    def learn_too_many_rows(self, shape: Shape, rows: int) -> None:
        """Halve the number of rows of later steps, because a step failed with `rows` rows but not with fewer."""
        self._max_rows[shape] = max(1, rows // 2)

    def learn_step_bytes(self, shape: Shape, rows: int, peak_bytes: int) -> None:
        """Record the peak memory of a step with `rows` transformer rows. Only the step with the most rows counts."""
        if self.wants_step_bytes(shape, rows):
            self._row_bytes[shape] = peak_bytes / rows
            self._row_bytes_at_rows[shape] = rows

    def learn_decode_bytes(self, shape: Shape, peak_bytes: int) -> None:
        """Record the peak memory of decoding one latent. The largest peak counts."""
        self._decode_bytes[shape] = max(self._decode_bytes.get(shape, 0), peak_bytes)


def _learn(known: dict[Shape, float], shape: Shape, took_s: float) -> None:
    """Add a time to the exponential moving average of a shape."""
    average_s = known.get(shape, took_s)
    known[shape] = average_s + _NEWEST_WEIGHT * (took_s - average_s)


def _by_nearest(known: Mapping[Shape, float], shape: Shape, default: float) -> float:
    """Return a shape's measured value. If missing, scale the value of the pipeline's shape with the nearest area.

    Return `default` if the pipeline has no measured shape.
    """
    if shape in known:
        return known[shape]
    others = [other for other in known if other.pipeline == shape.pipeline]
    if not others:
        return default
    nearest = min(others, key=lambda other: abs(math.log(other.area / shape.area)))  # by ratio, not by difference
    return known[nearest] * shape.area / nearest.area


def _by_largest(known: Mapping[Shape, float], shape: Shape) -> float:
    """Return a shape's measured value. If missing, multiply its area by the pipeline's largest measured value per area.

    Return 0 if the pipeline has no measured shape.
    """
    if shape in known:
        return known[shape]
    per_area = (value / other.area for other, value in known.items() if other.pipeline == shape.pipeline)
    return shape.area * max(per_area, default=0)

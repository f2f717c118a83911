"""What an image costs on this device, by latent shape: learnt from what it took, guessed by area until then."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

_NEWEST_WEIGHT = 0.2
_FIRST_ROW_S = 0.1  # before anything was timed


@dataclass(frozen=True)
class Shape:
    """What rows of one batch share: the pipeline, as an engine finds it, and the latent's sides (8 px each)."""

    pipeline: Hashable
    height: int
    width: int

    @property
    def area(self) -> int:
        """Latent positions."""
        return self.height * self.width


class CostModel:
    """Seconds and bytes of a transformer row's step and of a decoding. Not safe for threads."""

    def __init__(self) -> None:
        self._row_s: dict[Shape, float] = {}
        self._fewest_rows: dict[Shape, int] = {}
        self._fewest_row_s: dict[Shape, float] = {}
        self._decode_s: dict[Shape, float] = {}
        self._most_rows: dict[Shape, int] = {}
        self._row_bytes: dict[Shape, float] = {}
        self._rows_measured: dict[Shape, int] = {}
        self._decode_bytes: dict[Shape, float] = {}

    def row_s(self, shape: Shape) -> float:
        """Seconds that a transformer row of this shape takes for a step, its part of a batch."""
        return _by_nearest(self._row_s, shape, _FIRST_ROW_S)

    def batching(self, shape: Shape) -> float:
        """Return a row's time in recent batches over its time in the smallest batch seen, at most 1.

        Near 1, a batch takes as long as its rows one by one, as on most CPUs; far below, rows in company cost little. 1
        if no step of this shape was timed.
        """
        return min(1.0, self._row_s[shape] / self._fewest_row_s[shape]) if shape in self._row_s else 1.0

    def decode_s(self, shape: Shape) -> float:
        """Seconds that decoding one latent takes."""
        return _by_nearest(self._decode_s, shape, 0)

    def most_rows(self, shape: Shape, rows: int) -> int:
        """The given number of transformer rows, or fewer where a step of so many failed."""
        return min(rows, self._most_rows.get(shape, rows))

    def step_bytes(self, shape: Shape, rows: int) -> int:
        """Bytes that a step with so many transformer rows takes at its peak, beyond what the device always holds."""
        return int(rows * _by_dearest(self._row_bytes, shape))

    def decode_bytes(self, shape: Shape) -> int:
        """Bytes that decoding one latent takes at its peak."""
        return int(_by_dearest(self._decode_bytes, shape))

    def measured_bytes(self, shape: Shape, rows: int) -> int:
        """What a step or a decoding of this very shape was seen to take; nothing that is only guessed."""
        return int(max(rows * self._row_bytes.get(shape, 0), self._decode_bytes.get(shape, 0)))

    def is_measured(self, shape: Shape) -> bool:
        """Whether the memory of this shape's step was seen."""
        return shape in self._row_bytes

    def wants_step_bytes(self, shape: Shape, rows: int) -> bool:
        """Whether the memory of a step with so many transformer rows would be news."""
        return rows > self._rows_measured.get(shape, 0)

    def wants_decode_bytes(self, shape: Shape) -> bool:
        """Whether the memory of this shape's decoding was never seen."""
        return shape not in self._decode_bytes

    def learn_step_time(self, shape: Shape, rows: int, took_s: float) -> None:
        """A step of so many transformer rows took so long; newer ones count more."""
        _learn(self._row_s, shape, took_s / rows)
        self.learn_smallest_batch(shape, rows, took_s)

    def learn_smallest_batch(self, shape: Shape, rows: int, took_s: float) -> None:
        """Note a step's time for `batching`, if no smaller batch of this shape was seen."""
        fewest = self._fewest_rows.setdefault(shape, rows)
        if rows < fewest:
            self._fewest_rows[shape] = rows
            self._fewest_row_s[shape] = took_s / rows
        elif rows == fewest:
            _learn(self._fewest_row_s, shape, took_s / rows)

    def learn_decode_time(self, shape: Shape, took_s: float) -> None:
        """Decoding one latent took so long; newer ones count more."""
        _learn(self._decode_s, shape, took_s)

    def learn_too_many_rows(self, shape: Shape, rows: int) -> None:
        """A step of so many transformer rows failed where fewer did not: half as many from now on."""
        self._most_rows[shape] = max(1, rows // 2)

    def learn_step_bytes(self, shape: Shape, rows: int, peak_bytes: int) -> None:
        """A step of so many transformer rows took so much memory; what was seen with the most rows counts."""
        if self.wants_step_bytes(shape, rows):
            self._row_bytes[shape] = peak_bytes / rows
            self._rows_measured[shape] = rows

    def learn_decode_bytes(self, shape: Shape, peak_bytes: int) -> None:
        """Decoding one latent took so much memory; the most ever seen is kept."""
        self._decode_bytes[shape] = max(self._decode_bytes.get(shape, 0), peak_bytes)


def _learn(known: dict[Shape, float], shape: Shape, took_s: float) -> None:
    before = known.get(shape, took_s)
    known[shape] = before + _NEWEST_WEIGHT * (took_s - before)


def _by_nearest(known: Mapping[Shape, float], shape: Shape, otherwise: float) -> float:
    """What is known of a shape; else of the same pipeline's nearest in area, scaled by area."""
    if shape in known:
        return known[shape]
    others = [other for other in known if other.pipeline == shape.pipeline]
    if not others:
        return otherwise
    nearest = min(others, key=lambda other: abs(math.log(other.area / shape.area)))
    return known[nearest] * shape.area / nearest.area


def _by_dearest(known: Mapping[Shape, float], shape: Shape) -> float:
    """What is known of a shape; else of the same pipeline's others, the dearest for its area, scaled by area."""
    if shape in known:
        return known[shape]
    return shape.area * max(
        (cost / other.area for other, cost in known.items() if other.pipeline == shape.pipeline), default=0
    )

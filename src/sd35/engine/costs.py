"""What a picture costs on this device, by latent shape: learnt from what it took, guessed by area until then."""

from collections.abc import Mapping
from dataclasses import dataclass

_NEWEST_WEIGHT = 0.2
_FIRST_ROW_S = 0.1  # before anything was timed


@dataclass(frozen=True)
class Shape:
    """What rows of one batch share: the model, and the latent's sides (8 px each)."""

    model: str
    height: int
    width: int

    @property
    def area(self) -> int:
        """Latent positions."""
        return self.height * self.width


class Costs:
    """Seconds and bytes of a transformer row's step and of a decoding. Not safe for threads."""

    def __init__(self) -> None:
        self._row_s: dict[Shape, float] = {}
        self._row_bytes: dict[Shape, float] = {}
        self._rows_measured: dict[Shape, int] = {}
        self._decode_bytes: dict[Shape, float] = {}

    def row_s(self, shape: Shape) -> float:
        """Seconds that a transformer row of this shape takes for a step, its part of a batch."""
        return _scaled(self._row_s, shape, _FIRST_ROW_S)

    def step_bytes(self, shape: Shape, rows: int) -> int:
        """Bytes that a step with so many transformer rows takes at its peak, beyond what the device always holds."""
        return int(rows * _scaled(self._row_bytes, shape, 0))

    def decode_bytes(self, shape: Shape) -> int:
        """Bytes that decoding one latent takes at its peak."""
        return int(_scaled(self._decode_bytes, shape, 0))

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
        before = self._row_s.get(shape, took_s / rows)
        self._row_s[shape] = before + _NEWEST_WEIGHT * (took_s / rows - before)

    def learn_step_bytes(self, shape: Shape, rows: int, peak_bytes: int) -> None:
        """A step of so many transformer rows took so much memory; the most ever seen is kept."""
        self._row_bytes[shape] = max(self._row_bytes.get(shape, 0), peak_bytes / rows)
        self._rows_measured[shape] = max(self._rows_measured.get(shape, 0), rows)

    def learn_decode_bytes(self, shape: Shape, peak_bytes: int) -> None:
        """Decoding one latent took so much memory; the most ever seen is kept."""
        self._decode_bytes[shape] = max(self._decode_bytes.get(shape, 0), peak_bytes)


def _scaled(known: Mapping[Shape, float], shape: Shape, otherwise: float) -> float:
    """What is known of a shape; else of the same model's others, the dearest for its area, scaled by area."""
    if shape in known:
        return known[shape]
    per_position = [cost / other.area for other, cost in known.items() if other.model == shape.model]
    return max(per_position) * shape.area if per_position else otherwise

"""Sides that draw the same images in turns, never at once: what each took, and how far their images are apart.

A machine that warms up or slows down does so for all of them. The first image of each only warms it up.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, TypeAlias

import numpy as np

from benchmarks.outcome import spread

Sample: TypeAlias = dict[str, Any]
"""What a side answers to an image that is asked of it (see `benchmarks.worker`), and the processor's time, `cpu_s`."""
_PARTS = (("encode", "encode_s"), ("step", "step_s"), ("decode", "decode_s"))


@dataclass(frozen=True)
class SequentialOffload:
    """What each side answered, image by image, in the order in which they drew."""

    answers: Mapping[str, Sequence[Sample]]

    def ratio(self, side: str, other: str, of: Literal["total_s", "cpu_s"] = "total_s") -> float:
        """How many times the other's time, or its processor's, a side took: of the medians."""
        return self._median(side, of) / self._median(other, of)

    def pairs(self, side: str, other: str) -> str:
        """The range of the ratios of single images: "1.05-1.21"."""
        times = zip(self._measured(side), self._measured(other), strict=True)
        ratios = [one["total_s"] / another["total_s"] for one, another in times]
        return f"{min(ratios):.2f}-{max(ratios):.2f}"

    def difference(self, side: str, other: str) -> int:
        """The largest difference of their images at any pixel, of 255."""
        return max(_difference(*pair) for pair in zip(self.answers[side], self.answers[other], strict=True))

    @property
    def idle_share(self) -> float:
        """The most of a core that any side took between two of its images, while the others drew."""
        return max(map(self._idle_share, range(len(self.answers))))

    def described(self, side: str) -> str:
        """A side's time and its parts, medians, and what it took of processor and memory."""
        parts = ", ".join(f"{part} {1000 * self._median(side, key):.1f} ms" for part, key in _PARTS)
        samples = self._measured(side)
        width = max(map(len, self.answers))
        return (
            f"{side:<{width}} {spread([sample['total_s'] for sample in samples])}: {parts};"
            f" {self._median(side, 'cpu_s'):.3f} s of CPU; peak memory {samples[-1]['peak_bytes'] / 1e6:.0f} MB"
        )

    def numbers(self) -> dict[str, list[dict[str, float]]]:
        """Every sample but the first of each side, without its pixels."""
        return {
            side: [{key: value for key, value in sample.items() if key != "pixels"} for sample in self._measured(side)]
            for side in self.answers
        }

    def _measured(self, side: str) -> Sequence[Sample]:
        return self.answers[side][1:]

    def _median(self, side: str, key: str) -> float:
        return median(sample[key] for sample in self._measured(side))

    def _idle_share(self, place: int) -> float:
        rows = list(self.answers.values())
        shares = [0.0]
        for turn, (before, after) in enumerate(zip(rows[place], rows[place][1:], strict=False)):
            between = [row[turn + (at < place)] for at, row in enumerate(rows) if at != place]
            waited_s = sum(other["total_s"] for other in between)
            shares.append((after["cpu_before_s"] - before["cpu_after_s"]) / waited_s)
        return max(shares)


def draw_in_turns(sides: Mapping[str, Callable[..., Sample]], rounds: int, **asked: float) -> SequentialOffload:
    """One image of each side to warm it up, then `rounds` of each; a new seed, and so new text, for every round."""
    answers: dict[str, list[Sample]] = {side: [] for side in sides}
    for seed in range(rounds + 1):
        for side, draw in sides.items():
            answer = draw(seed=seed, **asked)
            answers[side].append({**answer, "cpu_s": answer["cpu_after_s"] - answer["cpu_before_s"]})
    return SequentialOffload(answers)


def _difference(one: Sample, other: Sample) -> int:
    arrays = [np.frombuffer(base64.b64decode(each["pixels"]), np.uint8).astype(np.int16) for each in (one, other)]
    return int(np.abs(arrays[0] - arrays[1]).max())

"""Time several implementations, called sides, that generate the same images alternately, and compare their images.

Because the sides alternate, a change of the machine's speed affects all of them alike. The first image of each side is
a warm-up and does not count.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, TypeAlias

import numpy as np

from benchmarks.outcome import spread

Sample: TypeAlias = dict[str, Any]
"""A side's answer for one image (see `benchmarks.worker`), with the processor time `cpu_s`."""
_PARTS = (("encode", "encode_s"), ("step", "step_s"), ("decode", "decode_s"))


@dataclass(frozen=True)
class InterleavedSamples:
    """The answers of each side by name, in the order of the images. The first answer of each side is the warm-up."""

    answers: Mapping[str, Sequence[Sample]]

    def ratio(self, side: str, other: str, key: Literal["total_s", "cpu_s"] = "total_s") -> float:
        """Return the median time (or with `cpu_s`, processor time) of a side, divided by that of another side."""
        return self._median(side, key) / self._median(other, key)

    def pair_ratios(self, side: str, other: str) -> str:
        """Return the smallest and the largest ratio of the times of the same image: "1.05-1.21"."""
        pairs = zip(self._measured(side), self._measured(other), strict=True)
        ratios = [one["total_s"] / another["total_s"] for one, another in pairs]
        return f"{min(ratios):.2f}-{max(ratios):.2f}"

    def difference(self, side: str, other: str) -> int:
        """Return the largest difference of a pixel's channel between the images of two sides, from 0 to 255."""
        return max(_difference(*pair) for pair in zip(self.answers[side], self.answers[other], strict=True))

    @property
    def idle_share(self) -> float:
        """The largest share of a core that a side used while the other sides generated. Near 0 if they were idle."""
        return max(map(self._idle_share, range(len(self.answers))))

    def describe(self, side: str) -> str:
        """Return a line with a side's time, the times of its parts, its processor time and its peak memory."""
        parts = ", ".join(f"{part} {1000 * self._median(side, key):.1f} ms" for part, key in _PARTS)
        samples = self._measured(side)
        width = max(map(len, self.answers))
        return (
            f"{side:<{width}} {spread([sample['total_s'] for sample in samples])}: {parts};"
            f" {self._median(side, 'cpu_s'):.3f} s of CPU; peak memory {samples[-1]['peak_bytes'] / 1e6:.0f} MB"
        )

    def numbers(self) -> dict[str, list[dict[str, float]]]:
        """Return the samples of each side for the JSON file: without warm-ups and pixels."""
        return {
            side: [{key: value for key, value in sample.items() if key != "pixels"} for sample in self._measured(side)]
            for side in self.answers
        }

    def _measured(self, side: str) -> Sequence[Sample]:
        return self.answers[side][1:]

    def _median(self, side: str, key: str) -> float:
        return median(sample[key] for sample in self._measured(side))

    def _idle_share(self, index: int) -> float:
        """Return the largest share of a core that a side used between two of its images.

        This is its processor time between the images, divided by the time of the images of the other sides in between.
        `index` is the position of the side in `answers`.
        """
        sides = list(self.answers.values())
        shares = [0.0]
        for round_, (before, after) in enumerate(zip(sides[index], sides[index][1:], strict=False)):
            # Between two images of this side, later sides generate in the same round, and earlier sides in the next.
            between = [answers[round_ + (other < index)] for other, answers in enumerate(sides) if other != index]
            waited_s = sum(sample["total_s"] for sample in between)
            shares.append((after["cpu_before_s"] - before["cpu_after_s"]) / waited_s)
        return max(shares)


def run_interleaved(sides: Mapping[str, Callable[..., Sample]], rounds: int, **request: float) -> InterleavedSamples:
    """Generate a warm-up image and `rounds` images with each side. Each round has a new seed, and so new prompts.

    Args:
        sides: The function of each side that generates an image, by name. See `benchmarks.worker`.
        rounds: Number of images that count.
        request: The other arguments of the functions: steps, guidance and size.
    """
    answers: dict[str, list[Sample]] = {side: [] for side in sides}
    for seed in range(rounds + 1):
        for side, generate in sides.items():
            answer = generate(seed=seed, **request)
            answers[side].append({**answer, "cpu_s": answer["cpu_after_s"] - answer["cpu_before_s"]})
    return InterleavedSamples(answers)


def _difference(one: Sample, other: Sample) -> int:
    """Return the largest difference of a pixel's channel between two images, from 0 to 255."""
    arrays = [np.frombuffer(base64.b64decode(sample["pixels"]), np.uint8).astype(np.int16) for sample in (one, other)]
    return int(np.abs(arrays[0] - arrays[1]).max())

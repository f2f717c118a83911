"""The quality gate: a transformer in FP8 has to draw what it drew before, or it is not built."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sd35.backends.base import Backend
from sd35.compile.reference_sampling import Guided, Recipe, draw
from sd35.compile.stages import Advance
from sd35.tensors import Array

BAR_DB = 25.0
_FIRST_SEED = 1000  # apart from calibration's


@dataclass(frozen=True)
class Quality:
    """Peak signal-to-noise ratio of each judged image against the one before, in decibels."""

    psnr_db: list[float]

    @property
    def mean_db(self) -> float:
        """Their mean."""
        return float(np.mean(self.psnr_db))

    @property
    def is_enough(self) -> bool:
        """Whether the bar is reached."""
        return self.mean_db >= BAR_DB


def images(backend: Backend, recipe: Recipe, texts: Sequence[Guided], advance: Advance) -> list[Array]:
    """What is judged: an image of each text, from noise of its own, the same for every backend."""
    drawn = []
    for index, text in enumerate(texts):
        drawn.append(draw(backend, recipe, text, _FIRST_SEED + index))
        advance()
    return drawn


def compare(got: Sequence[Array], expected: Sequence[Array]) -> Quality:
    """Each image with the one before."""
    return Quality([psnr_db(*pair) for pair in zip(got, expected, strict=True)])


def psnr_db(got: Array, expected: Array) -> float:
    """Of two images of 8 bits; 100 where they are equal."""
    squared = float(np.mean((got.astype(np.float64) - expected) ** 2))
    return min(100.0, 10 * float(np.log10(255**2 / squared))) if squared else 100.0

"""The quality gate: a transformer in FP8 has to draw what it drew before, or it is not built."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sd35.backends.contract import Array, Backend, TextEmbedding
from sd35.backends.diffusers import DiffusersBackend
from sd35.compile.drawing import Recipe, as_arrays, draw
from sd35.compile.stages import Advance

BAR_DB = 25.0
_FIRST_SEED = 1000  # apart from calibration's


@dataclass(frozen=True)
class Quality:
    """Peak signal-to-noise ratio of each judged picture against the reference's, in decibels."""

    psnr_db: list[float]

    @property
    def mean_db(self) -> float:
        """Their mean."""
        return float(np.mean(self.psnr_db))

    @property
    def is_enough(self) -> bool:
        """Whether the bar is reached."""
        return self.mean_db >= BAR_DB


def judge(
    reference: DiffusersBackend,
    candidate: Backend,
    recipe: Recipe,
    embeddings: Sequence[tuple[TextEmbedding, TextEmbedding]],
    advance: Advance,
) -> Quality:
    """Draws each prompt with both, from the same embeddings and noise; `advance` is called twice for each."""
    found = []
    for index, (positive, negative) in enumerate(embeddings):
        painted = partial(draw, recipe=recipe, seed=_FIRST_SEED + index)
        expected = painted(reference, embeddings=(positive, negative))
        advance()
        got = painted(candidate, embeddings=(as_arrays(positive), as_arrays(negative)))
        advance()
        found.append(psnr_db(got, expected))
    return Quality(found)


def psnr_db(got: Array, expected: Array) -> float:
    """Of two pictures of 8 bits; 100 where they are equal."""
    squared = float(np.mean((got.astype(np.float64) - expected) ** 2))
    return min(100.0, 10 * float(np.log10(255**2 / squared))) if squared else 100.0

"""The quality gate: an FP8 transformer is stored only if its images are close to the reference images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sd35.backends.base import Backend
from sd35.compile.reference_sampling import Guided, Recipe, generate_image
from sd35.compile.stages import Advance
from sd35.tensors import Array

MIN_MEAN_DB = 25.0  # minimum of the mean PSNR over all images
_FIRST_SEED = 1000  # so that the images differ from those of the calibration, with the seeds 0, 1, 2, ...


@dataclass(frozen=True)
class Quality:
    """The peak signal-to-noise ratio of each image against its reference, in decibels."""

    psnr_db: list[float]

    @property
    def mean_db(self) -> float:
        """The mean over all images."""
        return float(np.mean(self.psnr_db))

    @property
    def is_sufficient(self) -> bool:
        """Whether the mean reaches `MIN_MEAN_DB`."""
        return self.mean_db >= MIN_MEAN_DB


def generate_images(backend: Backend, recipe: Recipe, texts: Sequence[Guided], advance: Advance) -> list[Array]:
    """Generate an image of each text, uint8 `[height, width, 3]`. Every backend gets the same initial noise.

    Calls `advance` after each image.
    """
    images = []
    for index, text in enumerate(texts):
        images.append(generate_image(backend, recipe, text, _FIRST_SEED + index))
        advance()
    return images


def compare(images: Sequence[Array], references: Sequence[Array]) -> Quality:
    """Compare each image with the reference image of the same index."""
    return Quality([psnr_db(*pair) for pair in zip(images, references, strict=True)])


def psnr_db(image: Array, reference: Array) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit images in dB, at most 100. Equal images have 100."""
    squared_error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return min(100.0, 10 * float(np.log10(255**2 / squared_error))) if squared_error else 100.0

"""Images against a reference's, of the same requests: how far apart they are, and whether both show what was asked.

SSIM is that of Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
Similarity" (2004): a Gaussian window of 11x11 px with sigma 1.5, K1 = 0.01, K2 = 0.03, on luma (ITU-R BT.601).
"""

import base64
import io
from collections.abc import Sequence
from math import log10

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict

Picture = UInt8[np.ndarray, "height width 3"]
WINDOW_PX, _SIGMA_PX = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_SHOWN, _SHOWN_PX = 4, 192
_LUMA = np.array([0.299, 0.587, 0.114])


class ShownObjects(BaseModel):
    """A pair for people to look at: WebP files, small and not exact, in base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    image: str
    expected: str


class Quality(BaseModel):
    """`psnr_db` is of all images together, `least_psnr_db` of the worst; None where no pixel differs.

    `why_not`: why images were not compared. `right` and `reference_right`: the share of images that show what was
    asked; None where the model is not the embedded one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    images: int
    why_not: str | None = None
    identical: int = 0
    psnr_db: float | None = None
    least_psnr_db: float | None = None
    ssim: float | None = None
    least_ssim: float | None = None
    right: float | None = None
    reference_right: float | None = None
    shown: list[ShownObjects] = []


def compared(reference: str, images: Sequence[Picture], expected: Sequence[Picture]) -> Quality:
    """Images against the reference's, which are as many."""
    sizes = {one.shape[:2] == other.shape[:2] for one, other in zip(images, expected, strict=True)}
    if sizes != {True}:
        why_not = f"the server's images are of {_size(images[0])}, the reference's of {_size(expected[0])}"
        return Quality(reference=reference, images=len(images), why_not=why_not)
    errors = [mean_square(one, other) for one, other in zip(images, expected, strict=True)]
    alike = [ssim(one, other) for one, other in zip(images, expected, strict=True)]
    return Quality(
        reference=reference,
        images=len(images),
        identical=errors.count(0.0),
        psnr_db=psnr_db(float(np.mean(errors))),
        least_psnr_db=psnr_db(max(errors)),
        ssim=float(np.mean(alike)),
        least_ssim=min(alike),
    )


def shown(prompts: Sequence[str], images: Sequence[Picture], expected: Sequence[Picture]) -> list[ShownObjects]:
    """The first few pairs."""
    trios = list(zip(prompts, images, expected, strict=True))[:_SHOWN]
    return [ShownObjects(prompt=words, image=_small(one), expected=_small(other)) for words, one, other in trios]


def opened(file: bytes) -> Picture:
    """The pixels of an image's file."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def mean_square(one: Picture, other: Picture) -> float:
    """The mean squared difference, of levels from 0 to 255."""
    return float(np.square(one.astype(np.float64) - other).mean())


def psnr_db(mean_square_error: float) -> float | None:
    """The peak signal-to-noise ratio; None where nothing differs."""
    return 10 * log10(255**2 / mean_square_error) if mean_square_error else None


def ssim(one: Picture, other: Picture) -> float:
    """The mean structural similarity, 1 for the same; of images that the window fits into."""
    x, y = one @ _LUMA, other @ _LUMA
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    likeness = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    )
    return float(likeness.mean())


def _blurred(levels: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "inner_height inner_width"]:
    """Under the Gaussian window, where it lies inside."""
    offsets = np.arange(WINDOW_PX) - WINDOW_PX // 2
    window = np.exp(-np.square(offsets) / (2 * _SIGMA_PX**2))
    window /= window.sum()
    for axis in (0, 1):
        levels = np.lib.stride_tricks.sliding_window_view(levels, WINDOW_PX, axis) @ window
    return levels


def _small(image: Picture) -> str:
    thumbnail, file = Image.fromarray(image), io.BytesIO()
    thumbnail.thumbnail((_SHOWN_PX, _SHOWN_PX))
    thumbnail.save(file, "WEBP", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def _size(image: Picture) -> str:
    height, width = image.shape[:2]
    return f"{width}x{height} px"

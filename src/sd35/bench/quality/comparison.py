"""Compare the images of a server with reference images of the same requests: PSNR and SSIM.

SSIM as defined by Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
Similarity" (2004): a Gaussian window of 11x11 px with sigma 1.5, K1 = 0.01, K2 = 0.03, on luma (ITU-R BT.601).
"""

import base64
import io
from collections.abc import Sequence
from itertools import islice
from math import log10

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field

from sd35.bench.frozen import Frozen

Pixels = UInt8[np.ndarray, "height width 3"]
WINDOW_PX, _SIGMA_PX = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_MAX_EXAMPLES, _THUMBNAIL_PX = 4, 192
_LUMA = np.array([0.299, 0.587, 0.114])


class ImagePair(Frozen):
    """Thumbnails of an image and of its reference image: lossy WebP files in base64."""

    prompt: str
    image: str
    reference_image: str


class Quality(Frozen):
    """The difference between a server's images and the reference images.

    `images` is their number, and `identical` the number of images without a different pixel. `psnr_db` is over the
    pixels of all images, and `min_psnr_db` is that of the worst image. Both are None if no pixel differs. `ssim` is the
    mean over all images, and `min_ssim` is that of the worst. `correct_share` and `reference_correct_share` are the
    shares of images that show their prompts, or None if the model is not the embedded one. `skip_reason` says why
    images were not compared, or is None.
    """

    reference: str
    images: int
    skip_reason: str | None = None
    identical: int = 0
    psnr_db: float | None = None
    min_psnr_db: float | None = None
    ssim: float | None = None
    min_ssim: float | None = None
    correct_share: float | None = None
    reference_correct_share: float | None = None
    examples: list[ImagePair] = Field(default=[])


def compare_images(reference: str, images: Sequence[Pixels], reference_images: Sequence[Pixels]) -> Quality:
    """Compare each image with the reference image at the same position. `reference` is the reference's name.

    If the sizes of a pair differ, no images are compared, and the result has a `skip_reason`.
    """
    pairs = list(zip(images, reference_images, strict=True))
    for image, expected in pairs:
        if image.shape != expected.shape:
            reason = f"the server's image is {_describe_size(image)}, the reference image {_describe_size(expected)}"
            return Quality(reference=reference, images=len(images), skip_reason=reason)
    errors = [mean_squared_error(image, expected) for image, expected in pairs]
    similarities = [ssim(image, expected) for image, expected in pairs]
    return Quality(
        reference=reference,
        images=len(images),
        identical=errors.count(0.0),
        psnr_db=psnr_db(float(np.mean(errors))),
        min_psnr_db=psnr_db(max(errors)),
        ssim=float(np.mean(similarities)),
        min_ssim=min(similarities),
    )


def example_pairs(prompts: Sequence[str], images: Sequence[Pixels], expected: Sequence[Pixels]) -> list[ImagePair]:
    """Make thumbnails of the first images and of their reference images (`expected`), for the report."""
    first = islice(zip(prompts, images, expected, strict=True), _MAX_EXAMPLES)
    return [
        ImagePair(prompt=prompt, image=_encode_thumbnail(image), reference_image=_encode_thumbnail(reference_image))
        for prompt, image, reference_image in first
    ]


def decode_image(file: bytes) -> Pixels:
    """Decode an image file to RGB."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def mean_squared_error(one: Pixels, other: Pixels) -> float:
    """Return the mean squared difference of two images, in squared levels (0 to 255)."""
    return float(np.square(one.astype(np.float64) - other).mean())


def psnr_db(error: float) -> float | None:
    """Return the peak signal-to-noise ratio in dB for a mean squared error, or None if the error is 0."""
    return 10 * log10(255**2 / error) if error else None


def ssim(one: Pixels, other: Pixels) -> float:
    """Return the mean structural similarity: 1 for equal images. Width and height must be at least `WINDOW_PX`."""
    x, y = one @ _LUMA, other @ _LUMA
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    )
    return float(similarity.mean())


def _blur(levels: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "inner_height inner_width"]:
    """Convolve with the Gaussian window at all positions where it lies inside the image."""
    offsets = np.arange(WINDOW_PX) - WINDOW_PX // 2
    window = np.exp(-np.square(offsets) / (2 * _SIGMA_PX**2))
    window /= window.sum()
    for axis in (0, 1):
        levels = np.lib.stride_tricks.sliding_window_view(levels, WINDOW_PX, axis) @ window
    return levels


def _encode_thumbnail(image: Pixels) -> str:
    """Shrink an image to fit into a square, and return it as a WebP file in base64."""
    thumbnail, file = Image.fromarray(image), io.BytesIO()
    thumbnail.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    thumbnail.save(file, "WEBP", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def _describe_size(image: Pixels) -> str:
    height, width = image.shape[:2]
    return f"{width}x{height} px"

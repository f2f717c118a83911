"""Enlarge and blur images."""

from typing import cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter, ImageOps

from sd35.tensors import Array


def enlarge(pixels: UInt8[Array, "h w 3"], width_px: int, height_px: int) -> UInt8[Array, "height_px width_px 3"]:
    """Resize an image with the Lanczos filter until it covers another size, and crop it to that size at its centre."""
    fitted = ImageOps.fit(Image.fromarray(pixels), (width_px, height_px), Image.Resampling.LANCZOS)
    return cast(Array, np.asarray(fitted))


def blurred(pixels: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w 3"]:
    """Return an image blurred so much that only its colours can be recognised."""
    radius = max(pixels.shape) / 12  # in pixels: a twelfth of the longer side
    return cast(Array, np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius))))

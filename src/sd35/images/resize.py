"""Enlarge and blur images."""

from typing import cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter, ImageOps

from sd35.tensors import Array


def enlarge(pixels: UInt8[Array, "h w 3"], width_px: int, height_px: int) -> UInt8[Array, "height_px width_px 3"]:
    """Resize an image with Lanczos until it covers another size, and crop it around the centre."""
    fitted = ImageOps.fit(Image.fromarray(pixels), (width_px, height_px), Image.Resampling.LANCZOS)
    return cast(Array, np.asarray(fitted))


def blurred(pixels: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w 3"]:
    """Blur an image so much that only its colours can be recognised."""
    radius = max(pixels.shape) / 12
    return cast(Array, np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius))))

"""The image sizes that a model can generate, and the size at which an enlarged image is generated."""

import math

from sd35.checkpoints.card import Card
from sd35.errors import InvalidRequest
from sd35.request import SIZE_MULTIPLE_PX


def generated_size(width_px: int, height_px: int, card: Card, max_pixels: int) -> tuple[int, int]:
    """Return the size (width, height) at which an image of the requested size is generated.

    It is the requested size, or the nearest native size if a side exceeds the card's range and the card `enlarges`.
    Raises InvalidRequest if the requested size exceeds `max_pixels` or the card does not allow it.
    """
    for field, side_px in (("width", width_px), ("height", height_px)):
        if side_px % SIZE_MULTIPLE_PX or side_px <= 0:
            raise InvalidRequest(field, side_px, f"positive multiples of {SIZE_MULTIPLE_PX}")
    longer, longer_px = ("width", width_px) if width_px >= height_px else ("height", height_px)
    shorter, shorter_px = ("height", height_px) if width_px >= height_px else ("width", width_px)
    low_px, high_px = card.side_px
    if width_px * height_px > max_pixels:
        raise InvalidRequest(longer, longer_px, f"width x height of {max_pixels} pixels at most")
    if longer_px > high_px:
        if not card.enlarges:
            raise InvalidRequest(longer, longer_px, f"{low_px} to {high_px}")
        if longer_px * low_px > shorter_px * high_px:
            aspect = f"{high_px / low_px:g}:1"
            raise InvalidRequest(longer, longer_px, f"{low_px} to {high_px}, or more at an aspect of {aspect} at most")
        return _native_size(width_px, height_px, card)
    if shorter_px < low_px:
        raise InvalidRequest(shorter, shorter_px, size_rule(card))
    return width_px, height_px


def size_rule(card: Card) -> str:
    """Describe the sides that a card allows, for error messages."""
    low_px, high_px = card.side_px
    larger = f", or larger at an aspect of {high_px / low_px:g}:1 at most (generated smaller, then enlarged)"
    return f"{low_px} to {high_px}{larger if card.enlarges else ''}"


def aspect_size(aspect_width: int, aspect_height: int, card: Card) -> tuple[int, int]:
    """Return the size (width, height) for an aspect ratio. It has at most the pixels of the card's default size.

    At a megapixel, sides are multiples of 64. This gives the sizes that SDXL and SD3 were trained with (1344x768,
    1216x832, 1536x640). For other default sizes, the multiple scales with the side; it is at least 16.
    """
    area = card.width * card.height
    multiple_px = SIZE_MULTIPLE_PX * max(1, 4 * math.isqrt(area) // 1024)
    width, height = (
        max(math.isqrt(area * side // other) // multiple_px * multiple_px, SIZE_MULTIPLE_PX)
        for side, other in ((aspect_width, aspect_height), (aspect_height, aspect_width))
    )
    return width, height


def _native_size(width_px: int, height_px: int, card: Card) -> tuple[int, int]:
    """Return the nearest size with this aspect ratio and the native number of pixels, within the card's range."""
    scale = math.sqrt(card.native_pixels / (width_px * height_px))
    low_px, high_px = card.side_px
    width, height = (
        min(max(SIZE_MULTIPLE_PX * round(side * scale / SIZE_MULTIPLE_PX), low_px), high_px)
        for side in (width_px, height_px)
    )
    return width, height

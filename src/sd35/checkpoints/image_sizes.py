"""The image sizes that a model can generate, and the size at which an enlarged image is generated."""

import math

from sd35.checkpoints.card import Card
from sd35.errors import InvalidRequest
from sd35.request import SIZE_MULTIPLE_PX


def generated_size(width_px: int, height_px: int, card: Card, max_pixels: int) -> tuple[int, int]:
    """Return the size (width, height) at which an image of the requested size is generated.

    Usually, this is the requested size. If a side is longer than the card allows and the card has `enlarges`, it is a
    smaller size of nearly the same aspect ratio. The image is enlarged later.

    Raises InvalidRequest if the requested size exceeds `max_pixels` or the card's limits.
    """
    for field, side_px in (("width", width_px), ("height", height_px)):
        if side_px % SIZE_MULTIPLE_PX or side_px <= 0:
            raise InvalidRequest(field, side_px, f"positive multiples of {SIZE_MULTIPLE_PX}")
    longer, longer_px = ("width", width_px) if width_px >= height_px else ("height", height_px)
    shorter, shorter_px = ("height", height_px) if width_px >= height_px else ("width", width_px)
    low_px, high_px = card.side_px
    if width_px * height_px > max_pixels:
        raise InvalidRequest(longer, longer_px, f"at most {max_pixels} pixels in total (width x height)")
    if longer_px > high_px:
        if not card.enlarges or longer_px * low_px > shorter_px * high_px:
            raise InvalidRequest(longer, longer_px, size_rule(card))
        return _native_size(width_px, height_px, card)
    if shorter_px < low_px:
        raise InvalidRequest(shorter, shorter_px, size_rule(card))
    return width_px, height_px


def size_rule(card: Card) -> str:
    """Describe the sides that a card allows, for the "allowed" part of error messages."""
    low_px, high_px = card.side_px
    if not card.enlarges:
        return f"{low_px} to {high_px}"
    aspect = f"{high_px / low_px:g}:1"
    return f"{low_px} to {high_px}, or larger with an aspect ratio of at most {aspect} (enlarged from a smaller image)"


def aspect_size(aspect_width: int, aspect_height: int, card: Card) -> tuple[int, int]:
    """Return the size (width, height) for an aspect ratio, with at most as many pixels as the card's default size.

    If the default size has a megapixel, sides are multiples of 64 px. This gives the sizes that SDXL and SD3 were
    trained with (1344x768, 1216x832, 1536x640). Smaller default sizes have a smaller multiple: 16, 32 or 48 px.
    """
    area = card.width * card.height
    multiple_px = SIZE_MULTIPLE_PX * max(1, 4 * math.isqrt(area) // 1024)
    width, height = (
        max(math.isqrt(area * side // other) // multiple_px * multiple_px, SIZE_MULTIPLE_PX)
        for side, other in ((aspect_width, aspect_height), (aspect_height, aspect_width))
    )
    return width, height


def _native_size(width_px: int, height_px: int, card: Card) -> tuple[int, int]:
    """Return the size (width, height) with this aspect ratio and about `native_pixels`, within the card's range."""
    scale = math.sqrt(card.native_pixels / (width_px * height_px))
    low_px, high_px = card.side_px
    width, height = (
        min(max(SIZE_MULTIPLE_PX * round(side * scale / SIZE_MULTIPLE_PX), low_px), high_px)
        for side in (width_px, height_px)
    )
    return width, height

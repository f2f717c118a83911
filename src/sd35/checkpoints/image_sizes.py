"""Which sizes a model makes, and at which size a stand-in draws what it then enlarges."""

import math

from sd35.checkpoints.checkpoint import Card
from sd35.errors import InvalidRequest
from sd35.request import SIZE_MULTIPLE_PX


def drawn_size(width_px: int, height_px: int, card: Card, max_pixels: int) -> tuple[int, int]:
    """The size to draw at, (width, height): the requested one, or for a card that `enlarges`, the nearest native one.

    Raises InvalidRequest where the size is beyond `max_pixels` or the card.
    """
    for field, side_px in (("width", width_px), ("height", height_px)):
        if side_px % SIZE_MULTIPLE_PX or side_px <= 0:
            raise InvalidRequest(field, side_px, f"multiples of {SIZE_MULTIPLE_PX}")
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
    """The sides a card allows, in words."""
    low_px, high_px = card.side_px
    larger = f", or larger at an aspect of {high_px / low_px:g}:1 at most (drawn smaller, then enlarged)"
    return f"{low_px} to {high_px}{larger if card.enlarges else ''}"


def aspect_size(wide: int, high: int, card: Card) -> tuple[int, int]:
    """The size, (width, height), of the aspect `wide`:`high` with no more pixels than a card's default size has.

    Sides are multiples of 64 where that is a megapixel, the sizes that SDXL and SD3 were trained with (1344x768,
    1216x832, 1536x640), and of as much more or less where it is larger or smaller, down to 16.
    """
    area = card.width * card.height
    multiple_px = SIZE_MULTIPLE_PX * max(1, 4 * math.isqrt(area) // 1024)
    width, height = (
        max(math.isqrt(area * side // other) // multiple_px * multiple_px, SIZE_MULTIPLE_PX)
        for side, other in ((wide, high), (high, wide))
    )
    return width, height


def _native_size(width_px: int, height_px: int, card: Card) -> tuple[int, int]:
    """The multiples of 16 nearest to this aspect at the native number of pixels, inside the card's range."""
    scale = math.sqrt(card.native_pixels / (width_px * height_px))
    low_px, high_px = card.side_px
    width, height = (
        min(max(SIZE_MULTIPLE_PX * round(side * scale / SIZE_MULTIPLE_PX), low_px), high_px)
        for side in (width_px, height_px)
    )
    return width, height

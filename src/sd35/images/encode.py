"""Encodes a PNG file as one of the other formats, with its record."""

import asyncio
import io
from typing import Any

from PIL import Image

from sd35.images.formats import Format, check_quality
from sd35.images.png import read_png, without_text
from sd35.images.xmp import to_segments, to_xmp

# The scales of quality are each format's own: at these three, an image's error is about the same. All are set to be
# quick, for half the time saves but a twentieth of the bytes. JPEG keeps colours at full resolution: hard edges of
# saturated colours, which are halved else, are what one sees first.
_OPTIONS: dict[Format, dict[str, Any]] = {
    Format.JPEG: {"quality": 90, "subsampling": 0},
    Format.WEBP: {"quality": 90, "method": 0},
    Format.AVIF: {"quality": 75, "speed": 10},
}


def encode(png: bytes, output_format: Format, *, has_metadata: bool, quality: int | None = None) -> bytes:
    """An image's PNG file in another format, with or without what made it. Keeps a core busy where it is not PNG.

    `quality` is 1 to 100, None for the format's default. Raises InvalidRequest where it is another, or for a PNG file.
    """
    check_quality(output_format, quality)
    if output_format is Format.PNG:
        return png if has_metadata else without_text(png)
    pixels, text = read_png(png)
    options = dict(_OPTIONS[output_format])
    if quality is not None:
        options["quality"] = quality
    if has_metadata and text:
        packet = to_xmp(text)
        options |= {"extra": to_segments(packet)} if output_format is Format.JPEG else {"xmp": packet}
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, output_format, **options)
    return out.getvalue()


async def encoded(png: bytes, output_format: Format, *, has_metadata: bool, quality: int | None = None) -> bytes:
    """`encode`, on an event loop: in a thread, where it keeps a core busy."""
    if output_format is Format.PNG:
        return encode(png, output_format, has_metadata=has_metadata)
    return await asyncio.to_thread(encode, png, output_format, has_metadata=has_metadata, quality=quality)

"""Encode a PNG file in another format, with its record.

The record is the metadata of an image: its request, and the versions that generated it. See record.py.
"""

import asyncio
import io
from typing import Any

from PIL import Image

from sd35.images.formats import Format, check_quality
from sd35.images.png import read_png, without_text
from sd35.images.xmp import to_segments, to_xmp

# Each format has its own quality scale. At these values, the error of an image is about the same in all formats. All
# options favour speed, because twice the time saves only a twentieth of the bytes. JPEG stores colours at full
# resolution (`subsampling` 0), because half the resolution visibly blurs the edges of saturated colours.
_OPTIONS: dict[Format, dict[str, Any]] = {
    Format.JPEG: {"quality": 90, "subsampling": 0},
    Format.WEBP: {"quality": 90, "method": 0},
    Format.AVIF: {"quality": 75, "speed": 10},
}


def encode(png: bytes, output_format: Format, *, has_metadata: bool, quality: int | None = None) -> bytes:
    """Encode a PNG file in another format, with or without its record. CPU-bound, except for PNG.

    Args:
        png: A PNG file of this project.
        output_format: The format of the result.
        has_metadata: Whether the result contains the record.
        quality: 1 to 100, or None for the default of the format.

    Raises:
        InvalidRequest: `quality` is out of range, or given for PNG.
    """
    check_quality(output_format, quality)
    if output_format is Format.PNG:
        return png if has_metadata else without_text(png)
    pixels, text = read_png(png)
    options = _OPTIONS[output_format] | ({} if quality is None else {"quality": quality})
    if has_metadata and text:
        packet = to_xmp(text)
        options |= {"extra": to_segments(packet)} if output_format is Format.JPEG else {"xmp": packet}
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, output_format, **options)
    return out.getvalue()


async def encode_async(png: bytes, output_format: Format, *, has_metadata: bool, quality: int | None = None) -> bytes:
    """Call `encode` without blocking the event loop: on a thread, or directly if it only copies a PNG file."""
    if output_format is Format.PNG:
        return encode(png, output_format, has_metadata=has_metadata)
    return await asyncio.to_thread(encode, png, output_format, has_metadata=has_metadata, quality=quality)

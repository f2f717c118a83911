"""Read the chunks of PNG files and the texts in them, without decoding pixels.

Pillow reads texts behind the image data only if it decodes that data, and it allows 64 MB of text.

Source: the PNG specification, third edition (W3C, 2025): 5.3 (chunk layout), 11.3.3 (tEXt, zTXt, iTXt), eXIf.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sd35.errors import NotReplayable
from sd35.images.text_budget import TextBudget

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 65_536  # with the usual chunks of at least 8 KiB, this allows half a gigabyte of image data
_KEYWORD_BYTES = 79
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


class Chunk(NamedTuple):
    """The type of a chunk, and the offsets of its content in the file."""

    kind: bytes
    start: int
    end: int


def chunks(png: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a file, up to its end or the first damage. Truncated image data counts as a chunk.

    Raises NotReplayable if there are too many chunks.
    """
    offset = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if offset + 8 > len(png):
            return
        size_bytes, kind = struct.unpack_from(">I4s", png, offset)
        chunk = Chunk(kind, offset + 8, offset + 8 + size_bytes)
        is_complete = chunk.end + 4 <= len(png)
        if is_complete or kind == b"IDAT":
            yield chunk
        if not is_complete or kind == b"IEND":
            return
        offset = chunk.end + 4
    raise NotReplayable(f"it is a damaged image: a PNG file with more than {_MAX_CHUNKS} chunks")


def has_valid_crc(png: bytes, chunk: Chunk) -> bool:
    """Return whether the CRC of a chunk matches its content. The file must contain the whole chunk."""
    (crc,) = struct.unpack_from(">I", png, chunk.end)
    return zlib.crc32(memoryview(png)[chunk.start - 4 : chunk.end]) == int(crc)


def read_chunks(png: bytes, budget: TextBudget) -> tuple[dict[str, str], bytes]:
    """Return the texts of a file by keyword, and its EXIF data. If a keyword repeats, its last text counts.

    A file may be truncated in its image data or later. Raises NotReplayable if it is truncated before that, or if a
    text does not match its CRC.
    """
    texts: dict[str, str] = {}
    exif = b""
    kinds = []
    for chunk in chunks(png):
        kinds.append(chunk.kind)
        if chunk.kind in _TEXTS:
            texts.update(_text(png, chunk, budget))
        elif chunk.kind == b"eXIf" and not exif:
            exif = png[chunk.start : chunk.end]
    if kinds[:1] != [b"IHDR"] or b"IDAT" not in kinds:
        raise NotReplayable("it is a damaged image: a PNG file that ends before its image data")
    return texts, exif


def only_pixels(png: bytes) -> bytes:
    """Remove all chunks that do not affect the pixels, so that a decoder reads no text."""
    pixel_chunks = [png[chunk.start - 8 : chunk.end + 4] for chunk in chunks(png) if chunk.kind in _PIXELS]
    return b"".join([png[: len(SIGNATURE)], *pixel_chunks])


def _text(png: bytes, chunk: Chunk, budget: TextBudget) -> dict[str, str]:
    """Return the text of a chunk by its keyword; {} if it has no keyword, exceeds the budget or cannot be decoded."""
    if not has_valid_crc(png, chunk):
        raise NotReplayable(f"it is a damaged image: the CRC of its {chunk.kind.decode()} chunk is wrong")
    separator = png.find(b"\0", chunk.start, min(chunk.end, chunk.start + _KEYWORD_BYTES + 1))
    if separator <= chunk.start:
        return {}
    keyword = png[chunk.start : separator].decode("latin-1")
    is_compressed, content = _content(chunk.kind, png[separator + 1 : chunk.end])
    if is_compressed:
        text = budget.decompress(keyword, content)
    else:
        text = content if budget.allows(keyword, len(content)) else None
    try:
        return {} if text is None else {keyword: text.decode("utf-8" if chunk.kind == b"iTXt" else "latin-1")}
    except UnicodeDecodeError:
        return {}


def _content(kind: bytes, fields: bytes) -> tuple[bool, bytes]:
    """Return whether a text is compressed, and its bytes. `fields` is the part of the chunk after the keyword."""
    if kind == b"tEXt":
        return False, fields
    if kind == b"zTXt":
        return True, fields[1:]  # after the compression method; only one exists
    _language, _, rest = fields[2:].partition(b"\0")
    _translated_keyword, _, text = rest.partition(b"\0")
    return fields[:1] == b"\1", text

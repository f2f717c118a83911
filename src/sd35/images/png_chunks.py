"""The chunks of PNG files, and the texts in them, wherever they stand. Pixels are not decoded.

Pillow reads the texts behind the image data only if it decodes that data, and it allows 64 MB of text.

Source: the PNG specification, third edition (W3C, 2025): 5.3 (chunk layout), 11.3.3 (tEXt, zTXt, iTXt), eXIf.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sd35.errors import NotReplayable
from sd35.images.text_budget import TextBudget

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 65_536  # encoders write image data in chunks of 8 KiB or more: half a gigabyte
_KEYWORD_BYTES = 79
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


class Chunk(NamedTuple):
    """The place of a chunk in its file. `start` and `end` are those of its content."""

    kind: bytes
    start: int
    end: int


def chunks(png: bytes) -> Iterator[Chunk]:
    """The chunks of a file, up to its end or to where it is damaged; image data that is cut off counts as a chunk.

    Raises NotReplayable if there are too many.
    """
    place = len(SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        if place + 8 > len(png):
            return
        size_bytes, kind = struct.unpack_from(">I4s", png, place)
        chunk = Chunk(kind, place + 8, place + 8 + size_bytes)
        is_whole = chunk.end + 4 <= len(png)
        if is_whole or kind == b"IDAT":
            yield chunk
        if not is_whole or kind == b"IEND":
            return
        place = chunk.end + 4
    raise NotReplayable(f"it is a damaged image: a PNG file of more than {_MOST_CHUNKS} chunks")


def has_valid_crc(png: bytes, chunk: Chunk) -> bool:
    """Whether the CRC of a chunk, of which the file holds all, matches its content."""
    (crc,) = struct.unpack_from(">I", png, chunk.end)
    return zlib.crc32(memoryview(png)[chunk.start - 4 : chunk.end]) == int(crc)


def read_chunks(png: bytes, budget: TextBudget) -> tuple[dict[str, str], bytes]:
    """The texts of a file by keyword, the last of each keyword, and its EXIF data.

    A file that is cut off in its image data still has the texts before. Raises NotReplayable if a file is cut off
    before that data, or a text does not match its checksum.
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
    """Keep only the chunks that decide the pixels, so that a decoder reads no text."""
    kept = [png[chunk.start - 8 : chunk.end + 4] for chunk in chunks(png) if chunk.kind in _PIXELS]
    return b"".join([png[: len(SIGNATURE)], *kept])


def _text(png: bytes, chunk: Chunk, budget: TextBudget) -> dict[str, str]:
    """Keyword and text of a chunk; nothing if it has no keyword, does not fit or is not decodable."""
    if not has_valid_crc(png, chunk):
        raise NotReplayable(f"it is a damaged image: the checksum of its {chunk.kind.decode()} chunk is wrong")
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
    """Whether a text is compressed, and its bytes, from what follows the keyword in its chunk."""
    if kind == b"tEXt":
        return False, fields
    if kind == b"zTXt":
        return True, fields[1:]  # the method of compression, of which there is one
    _language, _, rest = fields[2:].partition(b"\0")
    _translated_keyword, _, text = rest.partition(b"\0")
    return fields[:1] == b"\1", text

"""Read the chunks of PNG files and the texts in them, without decoding pixels.

Pillow is not used, because it decodes the image data to read texts after it, and it allows 64 MB of text.

Source: the PNG specification, third edition (W3C, 2025): 5.3 (chunk layout), 11.3.3 (tEXt, zTXt, iTXt), eXIf.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sd35.errors import NotReplayable
from sd35.images.text_budget import TextBudget

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 65_536  # enough for half a gigabyte of image data in the usual chunks of at least 8 KiB
_KEYWORD_BYTES = 79
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


class Chunk(NamedTuple):
    """The type of a chunk, and where its content begins and ends in the file."""

    kind: bytes
    start: int
    end: int


def chunks(png: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a file up to the first incomplete one. Yields that one too if it is image data (IDAT).

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
    raise NotReplayable(f"it is a damaged PNG file with more than {_MAX_CHUNKS} chunks; use the original file")


def has_valid_crc(png: bytes, chunk: Chunk) -> bool:
    """Return whether the CRC of a chunk matches its content. The file must contain the whole chunk."""
    (crc,) = struct.unpack_from(">I", png, chunk.end)
    return zlib.crc32(memoryview(png)[chunk.start - 4 : chunk.end]) == int(crc)  # the CRC includes the type


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
            texts.update(_read_text(png, chunk, budget))
        elif chunk.kind == b"eXIf" and not exif:
            exif = png[chunk.start : chunk.end]
    if kinds[:1] != [b"IHDR"] or b"IDAT" not in kinds:
        raise NotReplayable("it is a damaged PNG file that ends before its image data; use the original file")
    return texts, exif


def only_pixels(png: bytes) -> bytes:
    """Return the PNG file without the chunks that do not affect its pixels, so that a decoder reads no text."""
    pixel_chunks = [png[chunk.start - 8 : chunk.end + 4] for chunk in chunks(png) if chunk.kind in _PIXELS]
    return b"".join([png[: len(SIGNATURE)], *pixel_chunks])


def _read_text(png: bytes, chunk: Chunk, budget: TextBudget) -> dict[str, str]:
    """Return {keyword: text} for a text chunk; {} if it has no keyword, exceeds the budget or cannot be decoded.

    Raises NotReplayable if the chunk does not match its CRC.
    """
    if not has_valid_crc(png, chunk):
        kind = chunk.kind.decode()
        raise NotReplayable(f"it is a damaged PNG file with a wrong CRC of its {kind} chunk; use the original file")
    separator = png.find(b"\0", chunk.start, min(chunk.end, chunk.start + _KEYWORD_BYTES + 1))
    if separator <= chunk.start:  # the keyword is empty, or longer than allowed
        return {}
    keyword = png[chunk.start : separator].decode("latin-1")
    is_compressed, content = _split_text(chunk.kind, png[separator + 1 : chunk.end])
    if is_compressed:
        text = budget.decompress(keyword, content)
    else:
        text = content if budget.allows(keyword, len(content)) else None
    try:
        return {} if text is None else {keyword: text.decode("utf-8" if chunk.kind == b"iTXt" else "latin-1")}
    except UnicodeDecodeError:
        return {}


def _split_text(kind: bytes, fields: bytes) -> tuple[bool, bytes]:
    """Return whether a text is compressed, and its bytes. `fields` is the part of the chunk after the keyword."""
    if kind == b"tEXt":
        return False, fields
    if kind == b"zTXt":
        return True, fields[1:]  # after the compression method; only one exists
    # iTXt: whether it is compressed, the compression method, the language, the keyword in that language, the text
    _language, _, keyword_and_text = fields[2:].partition(b"\0")
    _translated_keyword, _, text = keyword_and_text.partition(b"\0")
    return fields[:1] == b"\1", text

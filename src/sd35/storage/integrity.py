"""Checks that a stored image file is whole.

A file is compared with the checksums that were recorded when it was written. A file without a recorded checksum was
written before checksums existed: it is checked by what a PNG file says of itself.

Source: the PNG specification, third edition (W3C, 2025): chunk layout, CRC, tEXt, iTXt.
"""

import hashlib
import struct
import zlib
from collections.abc import Collection, Iterator

from sd35.images.png_chunks import SIGNATURE
from sd35.images.record import DIGEST_KEY, REQUEST_KEY
from sd35.storage.names import digest_of, name_of

_ITXT_KEYWORD_END = bytes(5)  # NUL after the keyword, not compressed, and no language: as `write_png` writes it


class DamagedFile(Exception):  # noqa: N818  it reads as a sentence: "except DamagedFile"
    """A stored file is not what was written. Internal: readers of the store treat such a file as missing."""


def checksum_of(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def check_file(name: str, content: bytes, checksums: Collection[str]) -> None:
    """Raise DamagedFile, with the reason, unless a file is whole.

    Args:
        name: Name of the file in the store: the digest of its request and a suffix.
        content: What was read.
        checksums: The SHA-256 of each content that was written under this name. Empty for a file that was written
            before checksums existed.
    """
    if not checksums:
        _check_png(name, content)
    elif checksum_of(content) not in checksums:
        raise DamagedFile(f"its checksum is not one that was recorded when it was written ({len(content)} bytes)")


def _check_png(name: str, content: bytes) -> None:
    """Raise DamagedFile unless a PNG file is complete, every CRC is right, and its record names this file."""
    texts = {}
    kinds = []
    for kind, data in _chunks(content):
        kinds.append(kind)
        if kind == b"iTXt":
            keyword, _, text = data.partition(_ITXT_KEYWORD_END)
            texts[keyword.decode("latin-1")] = text
    if kinds[:1] != [b"IHDR"] or b"IDAT" not in kinds:
        raise DamagedFile("it has no image data")
    digest = digest_of(name)
    has_record = name == name_of(digest)  # a blurred image does not say how to make it again
    if has_record and not _is_record_of(digest, texts):
        raise DamagedFile("its record is missing, or is that of another image")


def _is_record_of(digest: str, texts: dict[str, bytes]) -> bool:
    return texts.get(DIGEST_KEY) == digest.encode() == checksum_of(texts.get(REQUEST_KEY, b"")).encode()


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and data of each chunk up to the end of the file. Raise DamagedFile at the first fault."""
    if not content.startswith(SIGNATURE):
        raise DamagedFile("it is empty" if not content else "it does not begin as a PNG file does")
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if place + 12 > len(content):
            raise DamagedFile(f"it ends too early, after {len(content)} bytes")
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 12 + length
        if end > len(content):
            raise DamagedFile(f"it ends too early, after {len(content)} bytes")
        (crc,) = struct.unpack_from(">I", content, end - 4)
        if zlib.crc32(memoryview(content)[place + 4 : end - 4]) != crc:
            raise DamagedFile(f"the CRC of the chunk at byte {place} is wrong")
        yield kind, content[place + 8 : end - 4]
        place = end
    if place != len(content):
        raise DamagedFile(f"{len(content) - place} bytes follow its end")

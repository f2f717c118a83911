"""Integrity check of stored image files.

A file is compared with the checksums that were recorded when it was written. A file without a recorded checksum was
written before this project recorded checksums: its PNG CRCs and the record in it are checked instead.
"""

import hashlib
from collections.abc import Collection

from sd35.errors import NotReplayable
from sd35.images.png_chunks import SIGNATURE, chunks, has_valid_crc
from sd35.images.record import DIGEST_KEY, REQUEST_KEY
from sd35.storage.names import digest_of, name_of

_ITXT_KEYWORD_END = bytes(5)  # NUL after the keyword, not compressed, and no language: as `write_png` writes it


class DamagedFile(Exception):  # noqa: N818  it reads as a sentence: "except DamagedFile"
    """A stored file differs from the file that was written. Internal: readers treat it as missing."""


def checksum_of(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def check_file(name: str, content: bytes, checksums: Collection[str]) -> None:
    """Check a file for damage.

    Args:
        name: Name of the file in the store: the digest of its request and a suffix.
        content: Content of the file.
        checksums: The SHA-256 of each content that was written under this name. Empty if none was recorded.

    Raises:
        DamagedFile: The file is damaged. The message is the reason.
    """
    if not checksums:
        _check_png(name, content)
    elif checksum_of(content) not in checksums:
        raise DamagedFile(f"its content ({len(content)} bytes) does not match the recorded checksum")


def _check_png(name: str, content: bytes) -> None:
    """Check that a PNG file is complete, every CRC is right, and its record names this file. Raises DamagedFile."""
    if not content.startswith(SIGNATURE):
        raise DamagedFile("it is empty" if not content else "it does not begin with the signature of a PNG file")
    kinds, texts = _read_chunks(content)
    if kinds[:1] != [b"IHDR"] or b"IDAT" not in kinds:
        raise DamagedFile("it has no image data")
    digest = digest_of(name)
    has_record = name == name_of(digest)  # blurred images have none, so that nobody can regenerate the original
    if has_record and not _is_record_of(digest, texts):
        raise DamagedFile("its record is missing or belongs to another image")


def _is_record_of(digest: str, texts: dict[str, bytes]) -> bool:
    return texts.get(DIGEST_KEY) == digest.encode() == checksum_of(texts.get(REQUEST_KEY, b"")).encode()


def _read_chunks(content: bytes) -> tuple[list[bytes], dict[str, bytes]]:
    """Return the types of all chunks, and the texts by keyword. Raises DamagedFile at the first fault."""
    kinds, texts = [], {}
    end = len(SIGNATURE)
    try:
        for chunk in chunks(content):
            end = chunk.end + 4
            if end > len(content):
                break
            if not has_valid_crc(content, chunk):
                raise DamagedFile(f"the CRC of the chunk at byte {chunk.start - 8} is wrong")
            kinds.append(chunk.kind)
            if chunk.kind == b"iTXt":
                keyword, _, text = content[chunk.start : chunk.end].partition(_ITXT_KEYWORD_END)
                texts[keyword.decode("latin-1")] = text
    except NotReplayable as error:
        raise DamagedFile(str(error)) from error
    if kinds[-1:] != [b"IEND"]:
        raise DamagedFile(f"it ends too early, after {len(content)} bytes")
    if end != len(content):
        raise DamagedFile(f"{len(content) - end} bytes follow its end")
    return kinds, texts

"""Integrity check of stored image files.

A file is compared with the checksums that were recorded when it was written. Early versions of this project recorded
none. For a file without checksums, the CRCs of its PNG chunks and its record are checked instead. The record is the
texts in the file that describe how the image was generated.
"""

import hashlib
from collections.abc import Collection

from sd35.errors import NotReplayable
from sd35.images.png_chunks import SIGNATURE, chunks, has_valid_crc
from sd35.images.record import DIGEST_KEY, REQUEST_KEY
from sd35.storage.names import digest_of, name_of

# `write_png` writes five zero bytes after the keyword of an iTXt chunk: the end of the keyword, two bytes that mean
# "not compressed", an empty language and an empty translated keyword.
_ITXT_KEYWORD_END = bytes(5)


class DamagedFile(Exception):  # noqa: N818  it reads as a sentence: "except DamagedFile"
    """A stored file differs from the file that was written. Internal: callers treat the file as missing.

    The message is a clause about the file: "it is empty".
    """


def checksum_of(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def check_file(name: str, content: bytes, checksums: Collection[str]) -> None:
    """Check a file for damage.

    Args:
        name: Name of the file in the store: the digest of the image's request, and a suffix.
        content: Content of the file.
        checksums: The SHA-256 of each content that was written under this name. Empty if none was recorded.

    Raises:
        DamagedFile: The file is damaged.
    """
    if not checksums:
        _check_png(name, content)
    elif checksum_of(content) not in checksums:
        raise DamagedFile(f"its content ({len(content)} bytes) does not match the recorded checksum")


def _check_png(name: str, content: bytes) -> None:
    """Check that a PNG file is complete, that every CRC is right, and that its record belongs to this file name.

    A blurred image needs no record. Raises DamagedFile if the file does not pass.
    """
    if not content.startswith(SIGNATURE):
        raise DamagedFile("it is empty" if not content else "it does not begin with the signature of a PNG file")
    kinds, texts = _read_chunks(content)
    if kinds[:1] != [b"IHDR"] or b"IDAT" not in kinds:
        raise DamagedFile("it has no header or no image data")
    digest = digest_of(name)
    is_blurred = name != name_of(digest)  # without a record, so that nobody can regenerate the original
    if not is_blurred and not _is_record_of(digest, texts):
        raise DamagedFile("its record is missing or belongs to another image")


def _is_record_of(digest: str, texts: dict[str, bytes]) -> bool:
    """Return whether the texts contain this digest, and the request that has this digest."""
    request = texts.get(REQUEST_KEY, b"")
    return texts.get(DIGEST_KEY) == digest.encode() and checksum_of(request) == digest


def _read_chunks(content: bytes) -> tuple[list[bytes], dict[str, bytes]]:
    """Return the types of all chunks, and the texts by keyword.

    Raises DamagedFile if a chunk is incomplete, a CRC is wrong, or bytes follow the last chunk.
    """
    kinds, texts = [], {}
    end = len(SIGNATURE)
    try:
        for chunk in chunks(content):
            end = chunk.end + 4  # after the CRC
            if end > len(content):
                break
            if not has_valid_crc(content, chunk):
                # A chunk begins 8 bytes before its content, with its length and type.
                raise DamagedFile(f"the CRC of the chunk at byte {chunk.start - 8} is wrong")
            kinds.append(chunk.kind)
            if chunk.kind == b"iTXt":
                keyword, _, text = content[chunk.start : chunk.end].partition(_ITXT_KEYWORD_END)
                texts[keyword.decode("latin-1")] = text
    except NotReplayable as error:
        raise DamagedFile("it has too many chunks") from error
    if kinds[-1:] != [b"IEND"]:
        raise DamagedFile(f"it ends too early, at byte {len(content)}")
    if end != len(content):
        raise DamagedFile(f"it continues after its last chunk, at byte {end}")
    return kinds, texts

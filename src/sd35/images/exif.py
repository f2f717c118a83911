"""Read the user comment in EXIF data, where AUTOMATIC1111 writes its text in JPEG, WebP and AVIF files.

Only the two EXIF directories that lead to the comment are read. Pillow's parser copies the value of every entry, and
entries may overlap: EXIF data of 1 MB can declare 65,535 values of 1 MB each.

Sources: CIPA DC-008 (EXIF 3.0), sections 4.5.2 and 4.6.6.7.1 (UserComment); TIFF 6.0, section 2.
"""

import struct
from contextlib import suppress
from typing import NamedTuple

USER_COMMENT = "UserComment"
_PREFIX = b"Exif\0\0"
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}  # in the notation of `struct`
_EXIF_DIRECTORY, _COMMENT = 0x8769, 0x9286
_BYTE_TYPES = {1, 2, 7}  # BYTE, ASCII, UNDEFINED: the count of such a value is its size in bytes
_INLINE_BYTES = 4  # values up to this size are stored in their entry
_CODE_BYTES = 8  # the character code before the comment
_BYTE_ORDER_MARKS = {"utf-8": b"\xef\xbb\xbf", "utf-16-be": b"\xfe\xff", "utf-16-le": b"\xff\xfe"}
_ZERO_RATIO = 8  # zero bytes decide the encoding if at least every eighth character has one
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\r")


class _Entry(NamedTuple):
    """The type code of a value, the number of its elements, and the value itself or, if it is long, its offset."""

    kind: int
    elements: int
    value: bytes


def comment_bytes(exif: bytes) -> bytes:
    """Return the stored user comment, including its character code; b"" if it is missing or the data is damaged."""
    exif = exif.removeprefix(_PREFIX)
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None:
        return b""
    try:
        (first_directory,) = struct.unpack_from(f"{order}I", exif, 4)
        pointer = _find_entry(exif, order, first_directory, _EXIF_DIRECTORY)
        if pointer is None:
            return b""
        (exif_directory,) = struct.unpack(f"{order}I", pointer.value)
        comment = _find_entry(exif, order, exif_directory, _COMMENT)
    except struct.error:  # the data is truncated
        return b""
    if comment is None or comment.kind not in _BYTE_TYPES:
        return b""
    if comment.elements <= _INLINE_BYTES:
        return comment.value[: comment.elements]
    (start,) = struct.unpack(f"{order}I", comment.value)
    return exif[start : start + comment.elements]


def comment_text(comment: bytes) -> str:
    """Decode a user comment. Invalid bytes become U+FFFD."""
    code, text = comment[:_CODE_BYTES], comment[_CODE_BYTES:]
    encoding = _guess_encoding(text) if code == b"UNICODE\0" else "utf-8"
    return text.removeprefix(_BYTE_ORDER_MARKS[encoding]).decode(encoding, "replace").rstrip("\0")


def _find_entry(exif: bytes, order: str, start: int, tag: int) -> _Entry | None:
    """Return the entry of a tag in the directory at `start`, or None. Raises struct.error if the data is truncated."""
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    entries = exif[start + 2 : start + 2 + 12 * count]  # of 12 bytes each
    complete = entries[: len(entries) // 12 * 12]
    for entry_tag, kind, elements, value in struct.iter_unpack(f"{order}HHI4s", complete):
        if entry_tag == tag:
            return _Entry(kind, elements, value)
    return None


def _guess_encoding(text: bytes) -> str:
    """Return the probable encoding of text with the character code UNICODE: "utf-8", "utf-16-be" or "utf-16-le".

    EXIF does not specify the byte order of UTF-16, and some programs write UTF-8. The first rule that applies decides:

    1. A byte order mark names the encoding.
    2. Many zero bytes mean UTF-16, because each ASCII character has one. They are at even offsets in big-endian text.
    3. Valid UTF-8 without control characters is UTF-8.
    4. Otherwise, the text is UTF-16. The first bytes of its characters vary less than the second ones if it is
       big-endian, because characters of one script have the same high byte.
    """
    for encoding, mark in _BYTE_ORDER_MARKS.items():
        if text.startswith(mark):
            return encoding
    text = text.rstrip(b"\0")
    even, odd = text[::2], text[1::2]
    zeros = even.count(0) - odd.count(0)
    if abs(zeros) * _ZERO_RATIO >= len(odd) and zeros:
        return "utf-16-be" if zeros > 0 else "utf-16-le"
    if not _CONTROLS & set(text):
        with suppress(UnicodeDecodeError):
            text.decode()
            return "utf-8"
    return "utf-16-le" if len(set(odd)) < len(set(even)) else "utf-16-be"

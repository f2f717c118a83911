"""Read the user comment in EXIF data, where AUTOMATIC1111 writes its text in JPEG, WebP and AVIF files.

Only the two EXIF directories that lead to the comment are read. Pillow's parser copies the value of every entry, and
entries may overlap: EXIF data of 1 MB can declare 65,535 values of 1 MB each.

Sources: CIPA DC-008 (EXIF 3.0), sections 4.5.2 and 4.6.6.7.1 (UserComment); TIFF 6.0, section 2.
"""

import struct

USER_COMMENT = "UserComment"
_PREFIX = b"Exif\0\0"
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_EXIF_DIRECTORY, _COMMENT = 0x8769, 0x9286
_BYTE_TYPES = {1, 2, 7}  # BYTE, ASCII, UNDEFINED: the count of such a value is its size in bytes
_INLINE_BYTES = 4  # values up to this size are stored in their entry
_CODE_BYTES = 8  # the character code before the comment
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}
_ZERO_RATIO = 8  # zero bytes decide the encoding if at least every eighth character has one
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\r")


def comment_bytes(exif: bytes) -> bytes:
    """Return the stored user comment, including its character code; b"" if it is missing or the data is damaged."""
    exif = exif.removeprefix(_PREFIX)
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None:
        return b""
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        directory = _entry(exif, order, first, _EXIF_DIRECTORY)
        entry = _entry(exif, order, struct.unpack(f"{order}I", directory[2])[0], _COMMENT) if directory else None
    except struct.error:
        return b""
    if entry is None or entry[0] not in _BYTE_TYPES:
        return b""
    _, size, value = entry
    if size <= _INLINE_BYTES:
        return value[:size]
    (start,) = struct.unpack(f"{order}I", value)
    return exif[start : start + size]


def comment_text(comment: bytes) -> str:
    """Decode a user comment. Invalid bytes become U+FFFD."""
    code, text = comment[:_CODE_BYTES], comment[_CODE_BYTES:]
    encoding = _guess(text) if code == b"UNICODE\0" else "utf-8"
    marks = (mark for mark, of_mark in _BYTE_ORDER_MARKS.items() if of_mark == encoding and text.startswith(mark))
    mark = next(marks, b"")
    return text.removeprefix(mark).decode(encoding, "replace").rstrip("\0")


def _entry(exif: bytes, order: str, start: int, tag: int) -> tuple[int, int, bytes] | None:
    """Return type, count and value of an entry, or None if it is missing. Raises struct.error if EXIF is truncated."""
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    entries = exif[start + 2 : start + 2 + 12 * count]
    for found, kind, size, value in struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12]):
        if found == tag:
            return kind, size, value
    return None


def _guess(text: bytes) -> str:
    """Guess the encoding of text after the character code UNICODE. EXIF does not specify the byte order of UTF-16.

    The first of these decides: a byte order mark; many zero bytes, because each ASCII character has one in UTF-16;
    valid UTF-8 without control characters, which some programs write. Otherwise, it is UTF-16, and the bytes that vary
    less are the high ones.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if text.startswith(mark):
            return encoding
    text = text.rstrip(b"\0")
    even, odd = text[::2], text[1::2]
    zeros = even.count(0) - odd.count(0)
    if abs(zeros) * _ZERO_RATIO >= len(odd) and zeros:
        return "utf-16-be" if zeros > 0 else "utf-16-le"
    if not _CONTROLS & set(text):
        try:
            text.decode()
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8"
    return "utf-16-le" if len(set(odd)) < len(set(even)) else "utf-16-be"

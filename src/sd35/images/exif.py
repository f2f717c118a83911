"""The user comment in EXIF data: where AUTOMATIC1111 writes its text in JPEG, WebP and AVIF files.

The two directories on the way to it are looked up here. Pillow's reader copies the value of every entry, and entries
may overlap: a block of 1 MB can name 65,535 values of 1 MB each.

Source: CIPA DC-008 (EXIF 3.0), sections 4.5.2 and 4.6.6.7.1 (UserComment); TIFF 6.0, section 2.
"""

import struct

USER_COMMENT = "UserComment"
_PREFIX = b"Exif\0\0"
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_EXIF_DIRECTORY, _COMMENT = 0x8769, 0x9286
_BYTE_TYPES = {1, 2, 7}  # BYTE, ASCII, UNDEFINED: a value's count is its size in bytes
_INLINE_BYTES = 4  # a value that is not longer is stored in its entry
_CODE_BYTES = 8  # before the comment; they name its characters
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}
_MANY = 8  # zeros are many if every eighth character has one
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\r")


def comment_bytes(exif: bytes) -> bytes:
    """The user comment as it is stored, with its character code; b"" if there is none or the data is damaged."""
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
    """The text of a user comment; "" if it has none. Bytes that are no characters become U+FFFD."""
    code, text = comment[:_CODE_BYTES], comment[_CODE_BYTES:]
    encoding = _guess(text) if code == b"UNICODE\0" else "utf-8"
    mark = next((mark for mark, its in _BYTE_ORDER_MARKS.items() if its == encoding and text.startswith(mark)), b"")
    return text.removeprefix(mark).decode(encoding, "replace").rstrip("\0")


def _entry(exif: bytes, order: str, start: int, tag: int) -> tuple[int, int, bytes] | None:
    """Type, count and value field of a directory's entry. Raises struct.error if the directory is not in the data."""
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    entries = exif[start + 2 : start + 2 + 12 * count]
    for found, kind, size, value in struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12]):
        if found == tag:
            return kind, size, value
    return None


def _guess(text: bytes) -> str:
    """How text behind the UNICODE code is encoded. EXIF does not say which UTF-16, and some programs write UTF-8.

    A byte order mark decides. Else zeros do, if there are many: in UTF-16, letters, digits and spaces of ASCII have one
    each. UTF-8 has no zeros and no control characters. What remains is UTF-16 in which the high bytes vary less.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if text.startswith(mark):
            return encoding
    text = text.rstrip(b"\0")
    even, odd = text[::2], text[1::2]
    zeros = even.count(0) - odd.count(0)
    if abs(zeros) * _MANY >= len(odd) and zeros:
        return "utf-16-be" if zeros > 0 else "utf-16-le"
    if not _CONTROLS & set(text):
        try:
            text.decode()
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8"
    return "utf-16-le" if len(set(odd)) < len(set(even)) else "utf-16-be"

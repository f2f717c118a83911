"""Find EXIF data and XMP packets in AVIF files, where they are items next to the image.

Pillow can find them too, but a hostile file can make its EXIF parser use gigabytes of memory (see exif.py).

Sources: ISO/IEC 14496-12 (boxes, `meta`, `iinf`, `iloc`), ISO/IEC 23008-12, annex A (items of EXIF and XMP).
"""

from collections.abc import Iterator
from typing import NamedTuple

from sd35.errors import NotReplayable
from sd35.images.containers import EmbeddedMetadata
from sd35.images.text_budget import TextBudget

_BRANDS = {b"avif", b"avis"}
_MAX_FILE_TYPE_BYTES = 1024  # of the first box, because a file can declare any size
_MAX_PARTS = 65_536  # boxes, items and extents
_XMP = b"application/rdf+xml"
_IN_FILE, _IN_IDAT = 0, 1  # whether the offsets of an item count from the start of the file or of the `idat` box


class _Box(NamedTuple):
    """The type of a box, and where its content begins and ends in the file."""

    kind: bytes
    start: int
    end: int


class _ItemLocation(NamedTuple):
    """The number of an item, and where its parts are.

    Each extent is the (start, end) of a part, counted from the content of the `idat` box if `is_in_idat`, else from the
    start of the file.
    """

    number: int
    extents: list[tuple[int, int]]
    is_in_idat: bool


def is_avif(data: bytes) -> bool:
    """Return whether the first box of a file lists AVIF as a format."""
    if data[4:8] != b"ftyp":
        return False
    brands = data[8 : min(int.from_bytes(data[:4]), _MAX_FILE_TYPE_BYTES)]  # codes of 4 bytes
    return any(brands[start : start + 4] in _BRANDS for start in range(0, len(brands), 4))


def read_avif(data: bytes, budget: TextBudget) -> EmbeddedMetadata:
    """Read the metadata of an AVIF file. Raises NotReplayable if its boxes are damaged or too many."""
    reader = _Reader(data)
    meta = next((box for box in reader.boxes(0, len(data)) if box.kind == b"meta"), None)
    if meta is None:
        raise _damaged("without metadata")
    children = {box.kind: box for box in reader.boxes(meta.start + 4, meta.end)}  # 4 bytes of version and flags
    if b"iinf" not in children or b"iloc" not in children:
        raise _damaged("without a list of its items")
    kinds = reader.metadata_items(children[b"iinf"])
    idat = children.get(b"idat")
    contents: dict[bytes, bytes] = {}  # of the first item of each type
    for number, extents, is_in_idat in reader.locations(children[b"iloc"]):
        kind = kinds.get(number)
        size_bytes = sum(end - start for start, end in extents)
        # The budget does not count EXIF data, because only the comment in it is text.
        if kind is None or kind in contents or (kind == b"mime" and not budget.allows("XMP", size_bytes)):
            continue
        if size_bytes > len(data):  # extents that overlap
            raise _damaged("with an item larger than the file")
        source = data[idat.start : idat.end] if is_in_idat and idat else data
        contents[kind] = b"".join(source[start:end] for start, end in extents)
    exif = contents.get(b"Exif", b"")
    exif_start = 4 + int.from_bytes(exif[:4])  # the item begins with the distance from these 4 bytes to the EXIF data
    return EmbeddedMetadata(exif[exif_start:], contents.get(b"mime", b""))


def _damaged(fault: str) -> NotReplayable:
    return NotReplayable(f"it is a damaged AVIF file {fault}; use the original file")


class _Reader:
    """Reads the boxes of one file, up to a maximum number.

    All methods raise NotReplayable if the file has too many parts or ends too early.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._parts_left = data, _MAX_PARTS

    def boxes(self, offset: int, end: int) -> Iterator[_Box]:
        """Yield the boxes between two offsets. Raises NotReplayable if a box has a wrong size."""
        while offset + 8 <= end:
            self._count_part()
            size_bytes = self.read_int(offset, 4)
            kind, start = self._data[offset + 4 : offset + 8], offset + 8
            if size_bytes == 1:  # a 64-bit size follows
                size_bytes, start = self.read_int(start, 8), start + 8
            box_end = offset + size_bytes if size_bytes else end  # a box of size 0 is the last one
            if not start <= box_end <= end:
                raise _damaged(f"with a wrong size of its {kind.decode('latin-1')!r} box")
            yield _Box(kind, start, box_end)
            offset = box_end

    def metadata_items(self, iinf: _Box) -> dict[int, bytes]:
        """Return the type, `Exif` or `mime`, of each item with EXIF data or XMP, by item number."""
        kinds = {}
        count_bytes = 4 if self.read_int(iinf.start, 1) else 2
        for box in self.boxes(iinf.start + 4 + count_bytes, iinf.end):
            version = self.read_int(box.start, 1)
            if box.kind != b"infe" or version < 2:  # older versions have no item type
                continue
            number_bytes = 2 if version == 2 else 4
            start = box.start + 4 + number_bytes + 2  # after version and flags, item number and protection
            kind, name_and_type = self._data[start : start + 4], self._data[start + 4 : box.end]
            media_type = name_and_type.partition(b"\0")[2]
            if kind == b"Exif" or (kind == b"mime" and media_type.startswith(_XMP)):
                kinds[self.read_int(box.start + 4, number_bytes)] = kind
        return kinds

    def locations(self, iloc: _Box) -> Iterator[_ItemLocation]:
        """Yield where each item is. Skips items that are stored in other items."""
        version = self.read_int(iloc.start, 1)
        sizes = self.read_int(iloc.start + 4, 2)  # of four kinds of fields, in bytes; each size has 4 bits
        offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        number_bytes = 4 if version == 2 else 2
        cursor = _Cursor(self, iloc.start + 6)
        for _ in range(cursor.read(number_bytes)):
            self._count_part()
            number = cursor.read(number_bytes)
            method = cursor.read(2) & 15 if version else _IN_FILE
            cursor.skip(2)  # the data reference, because items in other files are not supported
            base = cursor.read(base_bytes)
            extents = []
            for _ in range(cursor.read(2)):
                self._count_part()
                cursor.skip(index_bytes if version else 0)
                start = base + cursor.read(offset_bytes)
                extents.append((start, start + cursor.read(length_bytes)))
            if method in (_IN_FILE, _IN_IDAT):
                yield _ItemLocation(number, extents, method == _IN_IDAT)

    def read_int(self, offset: int, size_bytes: int) -> int:
        """Return the big-endian number at an offset; 0 if it has no bytes."""
        if offset + size_bytes > len(self._data):
            raise _damaged("that ends in its metadata")
        return int.from_bytes(self._data[offset : offset + size_bytes])

    def _count_part(self) -> None:
        """Count a box, item or extent, so that a hostile file cannot take long. Raises NotReplayable at the limit."""
        self._parts_left -= 1
        if self._parts_left < 0:
            raise _damaged(f"with more than {_MAX_PARTS} parts")


class _Cursor:
    """Reads one number after the other."""

    def __init__(self, reader: _Reader, offset: int) -> None:
        self._reader, self._offset = reader, offset

    def read(self, size_bytes: int) -> int:
        """Return the number at the cursor, and move behind it."""
        value = self._reader.read_int(self._offset, size_bytes)
        self._offset += size_bytes
        return value

    def skip(self, size_bytes: int) -> None:
        """Move the cursor without reading."""
        self._offset += size_bytes

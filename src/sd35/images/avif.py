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
_MAX_PARTS = 65_536  # boxes and extents of items
_XMP = b"application/rdf+xml"
_IN_FILE, _IN_IDAT = 0, 1  # whether the offsets of an item count from the start of the file or of the `idat` box
_DAMAGED = "it is a damaged image: an AVIF file "


class _Box(NamedTuple):
    kind: bytes
    start: int  # offsets of its content in the file
    end: int


def is_avif(data: bytes) -> bool:
    """Return whether the first box of a file lists AVIF as a format."""
    if data[4:8] != b"ftyp":
        return False
    brands = data[8 : min(int.from_bytes(data[:4]), 1024)]
    return any(brands[start : start + 4] in _BRANDS for start in range(0, len(brands), 4))


def read_avif(data: bytes, budget: TextBudget) -> EmbeddedMetadata:
    """Read the metadata of an AVIF file. Raises NotReplayable if its boxes are damaged or too many."""
    reader = _Reader(data)
    meta = next((box for box in reader.boxes(0, len(data)) if box.kind == b"meta"), None)
    if meta is None:
        raise NotReplayable(f"{_DAMAGED}without metadata")
    inside = {box.kind: box for box in reader.boxes(meta.start + 4, meta.end)}
    if b"iinf" not in inside or b"iloc" not in inside:
        raise NotReplayable(f"{_DAMAGED}without a list of its items")
    names = reader.items(inside[b"iinf"])
    idat = inside.get(b"idat")
    found: dict[bytes, bytes] = {}
    for item, extents, is_in_idat in reader.locations(inside[b"iloc"]):
        kind = names.get(item)
        size_bytes = sum(end - start for start, end in extents)
        if kind is None or kind in found or (kind == b"mime" and not budget.allows("XMP", size_bytes)):
            continue
        if size_bytes > len(data):  # extents that overlap
            raise NotReplayable(f"{_DAMAGED}with an item larger than the file")
        source = data[idat.start : idat.end] if is_in_idat and idat else data
        found[kind] = b"".join(source[start:end] for start, end in extents)
    exif = found.get(b"Exif", b"")
    return EmbeddedMetadata(exif[4 + int.from_bytes(exif[:4]) :], found.get(b"mime", b""))


class _Reader:
    """Reads the boxes of one file, up to a maximum number."""

    def __init__(self, data: bytes) -> None:
        self._data, self._left = data, _MAX_PARTS

    def boxes(self, offset: int, end: int) -> Iterator[_Box]:
        """Yield the boxes between two offsets."""
        while offset + 8 <= end:
            self._count()
            size_bytes, kind, start = self._int(offset, 4), self._data[offset + 4 : offset + 8], offset + 8
            if size_bytes == 1:
                size_bytes, start = self._int(start, 8), start + 8
            box_end = offset + size_bytes if size_bytes else end
            if not start <= box_end <= end:
                raise NotReplayable(f"{_DAMAGED}with a wrong size of its {kind.decode('latin-1')!r} box")
            yield _Box(kind, start, box_end)
            offset = box_end

    def items(self, iinf: _Box) -> dict[int, bytes]:
        """Return the type, `Exif` or `mime`, of each item with EXIF data or XMP, by item number."""
        found = {}
        count_bytes = 4 if self._int(iinf.start, 1) else 2
        for box in self.boxes(iinf.start + 4 + count_bytes, iinf.end):
            version = self._int(box.start, 1)
            if box.kind != b"infe" or version < 2:
                continue
            number_bytes = 2 if version == 2 else 4
            start = box.start + 4 + number_bytes + 2
            kind, named = self._data[start : start + 4], self._data[start + 4 : box.end]
            if kind == b"Exif" or (kind == b"mime" and named.partition(b"\0")[2].startswith(_XMP)):
                found[self._int(box.start + 4, number_bytes)] = kind
        return found

    def locations(self, iloc: _Box) -> Iterator[tuple[int, list[tuple[int, int]], bool]]:
        """Yield the number of each item, start and end of its extents, and whether they count from the `idat` box."""
        version, sizes, offset = self._int(iloc.start, 1), self._int(iloc.start + 4, 2), iloc.start + 6
        offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        number_bytes = 4 if version == 2 else 2
        count, offset = self._int(offset, number_bytes), offset + number_bytes
        for _ in range(count):
            self._count()
            number, offset = self._int(offset, number_bytes), offset + number_bytes
            method = _IN_FILE
            if version:
                method, offset = self._int(offset, 2) & 15, offset + 2
            base, offset = self._int(offset + 2, base_bytes), offset + 2 + base_bytes
            extents = []
            extent_count, offset = self._int(offset, 2), offset + 2
            for _ in range(extent_count):
                self._count()
                offset += index_bytes if version else 0
                start, offset = self._int(offset, offset_bytes), offset + offset_bytes
                length, offset = self._int(offset, length_bytes), offset + length_bytes
                extents.append((base + start, base + start + length))
            if method in (_IN_FILE, _IN_IDAT):
                yield number, extents, method == _IN_IDAT

    def _int(self, offset: int, size_bytes: int) -> int:
        if offset + size_bytes > len(self._data):
            raise NotReplayable(f"{_DAMAGED}that ends in its metadata")
        return int.from_bytes(self._data[offset : offset + size_bytes])

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise NotReplayable(f"{_DAMAGED}with more than {_MAX_PARTS} parts")

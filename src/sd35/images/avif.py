"""Where AVIF files carry EXIF data and XMP packets: as items beside the image.

Pillow reads them too, but hands the EXIF data to a reader of its own that can be made to use gigabytes (see exif.py).

Sources: ISO/IEC 14496-12 (boxes, `meta`, `iinf`, `iloc`), ISO/IEC 23008-12, annex A (items of EXIF and XMP).
"""

from collections.abc import Iterator
from typing import NamedTuple

from sd35.errors import NotReplayable
from sd35.images.containers import Carried
from sd35.images.text_budget import TextBudget

_BRANDS = {b"avif", b"avis"}
_MOST_PARTS = 65_536  # boxes, and pieces of items
_XMP = b"application/rdf+xml"
_IN_FILE, _IN_IDAT = 0, 1  # what an item's offsets count from
_DAMAGED = "it is a damaged image: an AVIF file "


class _Box(NamedTuple):
    kind: bytes
    start: int  # of its content
    end: int


def is_avif(data: bytes) -> bool:
    """Whether a file's first box names AVIF among the formats that it follows."""
    if data[4:8] != b"ftyp":
        return False
    brands = data[8 : min(int.from_bytes(data[:4]), 1024)]
    return any(brands[place : place + 4] in _BRANDS for place in range(0, len(brands), 4))


def read_avif(data: bytes, budget: TextBudget) -> Carried:
    """What an AVIF file carries. Raises NotReplayable if its boxes are damaged or too many."""
    reader = _Reader(data)
    meta = next((box for box in reader.boxes(0, len(data)) if box.kind == b"meta"), None)
    if meta is None:
        raise NotReplayable(f"{_DAMAGED}without a description of its image")
    inside = {box.kind: box for box in reader.boxes(meta.start + 4, meta.end)}
    if b"iinf" not in inside or b"iloc" not in inside:
        raise NotReplayable(f"{_DAMAGED}without a list of its items")
    names = reader.items(inside[b"iinf"])
    idat = inside.get(b"idat")
    carried: dict[bytes, bytes] = {}
    for item, pieces, is_in_idat in reader.places(inside[b"iloc"]):
        kind = names.get(item)
        size_bytes = sum(end - start for start, end in pieces)
        if kind is None or kind in carried or (kind == b"mime" and not budget.allows("XMP", size_bytes)):
            continue
        if size_bytes > len(data):  # pieces that overlap
            raise NotReplayable(f"{_DAMAGED}with an item larger than the file")
        source = data[idat.start : idat.end] if is_in_idat and idat else data
        carried[kind] = b"".join(source[start:end] for start, end in pieces)
    exif = carried.get(b"Exif", b"")
    return Carried(exif[4 + int.from_bytes(exif[:4]) :], carried.get(b"mime", b""))


class _Reader:
    """Reads boxes of one file, and counts them."""

    def __init__(self, data: bytes) -> None:
        self._data, self._left = data, _MOST_PARTS

    def boxes(self, place: int, end: int) -> Iterator[_Box]:
        """The boxes between two places."""
        while place + 8 <= end:
            self._count()
            size_bytes, kind, start = self._int(place, 4), self._data[place + 4 : place + 8], place + 8
            if size_bytes == 1:
                size_bytes, start = self._int(start, 8), start + 8
            box_end = place + size_bytes if size_bytes else end
            if not start <= box_end <= end:
                raise NotReplayable(f"{_DAMAGED}that ends before its {kind.decode('latin-1')!r} box")
            yield _Box(kind, start, box_end)
            place = box_end

    def items(self, iinf: _Box) -> dict[int, bytes]:
        """The numbers of the items of EXIF and XMP, and their types: `Exif` or `mime`."""
        found = {}
        count_bytes = 4 if self._int(iinf.start, 1) else 2
        for box in self.boxes(iinf.start + 4 + count_bytes, iinf.end):
            version = self._int(box.start, 1)
            if box.kind != b"infe" or version < 2:
                continue
            number_bytes = 2 if version == 2 else 4
            place = box.start + 4 + number_bytes + 2
            kind, named = self._data[place : place + 4], self._data[place + 4 : box.end]
            if kind == b"Exif" or (kind == b"mime" and named.partition(b"\0")[2].startswith(_XMP)):
                found[self._int(box.start + 4, number_bytes)] = kind
        return found

    def places(self, iloc: _Box) -> Iterator[tuple[int, list[tuple[int, int]], bool]]:
        """Of each item its number, where its pieces start and end, and whether they lie in the `idat` box."""
        version, sizes, place = self._int(iloc.start, 1), self._int(iloc.start + 4, 2), iloc.start + 6
        offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        number_bytes = 4 if version == 2 else 2
        count, place = self._int(place, number_bytes), place + number_bytes
        for _ in range(count):
            self._count()
            number, place = self._int(place, number_bytes), place + number_bytes
            method = _IN_FILE
            if version:
                method, place = self._int(place, 2) & 15, place + 2
            base, place = self._int(place + 2, base_bytes), place + 2 + base_bytes
            pieces = []
            extents, place = self._int(place, 2), place + 2
            for _ in range(extents):
                self._count()
                place += index_bytes if version else 0
                offset, place = self._int(place, offset_bytes), place + offset_bytes
                length, place = self._int(place, length_bytes), place + length_bytes
                pieces.append((base + offset, base + offset + length))
            if method in (_IN_FILE, _IN_IDAT):
                yield number, pieces, method == _IN_IDAT

    def _int(self, place: int, size_bytes: int) -> int:
        if place + size_bytes > len(self._data):
            raise NotReplayable(f"{_DAMAGED}that ends in its description")
        return int.from_bytes(self._data[place : place + size_bytes])

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise NotReplayable(f"{_DAMAGED}of more than {_MOST_PARTS} parts")

"""Where JPEG and WebP files carry EXIF data and XMP packets.

Sources: ITU-T T.81, annex B (JPEG's markers); EXIF 3.0, 4.7.2 (APP1); RFC 9649 (WebP).
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from sd35.errors import NotReplayable
from sd35.images.text_budget import TextBudget
from sd35.images.xmp import from_segments, is_xmp

_EXIF = b"Exif\0\0"
_MOST_PARTS = 4096  # ICC profiles and long XMP packets take some hundred segments at most
_MOST_CHUNKS = 65_536  # an animation has one for each frame
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_NO_FILL = re.compile(b"[^\xff]")
_WEBP_IMAGES = {b"VP8 ", b"VP8L", b"ANMF"}


class Carried(NamedTuple):
    """EXIF data and an XMP packet; b"" for what a file does not have."""

    exif: bytes
    xmp: bytes


def read_jpeg(jpeg: bytes, budget: TextBudget) -> Carried:
    """What a JPEG file carries. Raises NotReplayable if it has no image or too many segments."""
    exif = b""
    packets: list[bytes] = []
    for segment in _app1_segments(jpeg):
        if segment.startswith(_EXIF):
            exif = exif or segment
        elif is_xmp(segment) and budget.allows("XMP", len(segment)):
            packets.append(segment)
    return Carried(exif, from_segments(packets))


def read_webp(webp: bytes, budget: TextBudget) -> Carried:
    """What a WebP file carries. Raises NotReplayable if it has no image or too many chunks."""
    found: dict[bytes, bytes] = {}
    place, has_image = 12, False  # behind RIFF, the size and WEBP
    for _ in range(_MOST_CHUNKS):
        if place + 8 > len(webp):
            break
        kind, size_bytes = struct.unpack_from("<4sI", webp, place)
        start, place = place + 8, place + 8 + size_bytes + size_bytes % 2
        has_image = has_image or kind in _WEBP_IMAGES
        is_wanted = kind == b"EXIF" or (kind == b"XMP " and budget.allows("XMP", size_bytes))
        if is_wanted and start + size_bytes <= len(webp):
            found.setdefault(kind, webp[start : start + size_bytes])
    else:
        raise NotReplayable(f"it is a damaged image: a WebP file of more than {_MOST_CHUNKS} chunks")
    if not has_image:
        raise NotReplayable("it is a damaged image: a WebP file without an image")
    return Carried(found.get(b"EXIF", b""), found.get(b"XMP ", b""))


def _app1_segments(jpeg: bytes) -> Iterator[bytes]:
    """The contents of the APP1 segments before the image."""
    place = 2
    for _ in range(_MOST_PARTS):
        place = _next_marker(jpeg, place)
        marker = jpeg[place] if place < len(jpeg) else _END_OF_IMAGE
        if marker == _START_OF_SCAN:
            return
        if marker == _END_OF_IMAGE:
            raise NotReplayable("it is a damaged image: a JPEG file without an image")
        place += 1
        if marker in _WITHOUT_LENGTH:
            continue
        size_bytes = int.from_bytes(jpeg[place : place + 2])
        if marker == _APP1:
            yield jpeg[place + 2 : place + size_bytes]
        place += max(2, size_bytes)
    raise NotReplayable(f"it is a damaged image: a JPEG file of more than {_MOST_PARTS} segments")


def _next_marker(jpeg: bytes, place: int) -> int:
    """The place of the next marker's code: behind 0xFF, and any number of 0xFF may fill the space before it."""
    place = jpeg.find(b"\xff", place)
    found = _NO_FILL.search(jpeg, place) if place >= 0 else None
    return found.start() if found else len(jpeg)

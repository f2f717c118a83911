"""Find EXIF data and XMP packets in JPEG and WebP files.

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
_MAX_SEGMENTS = 4096  # ICC profiles and long XMP packets have a few hundred segments at most
_MAX_CHUNKS = 65_536  # an animation has one chunk for each frame
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}  # markers without content: TEM, RST0 to RST7
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_NOT_FILL = re.compile(b"[^\xff]")
_WEBP_IMAGES = {b"VP8 ", b"VP8L", b"ANMF"}


class EmbeddedMetadata(NamedTuple):
    """The EXIF data and the XMP packet of a file; b"" if it has none."""

    exif: bytes
    xmp: bytes


def read_jpeg(jpeg: bytes, budget: TextBudget) -> EmbeddedMetadata:
    """Read the metadata of a JPEG file. Raises NotReplayable if it has no image or too many segments."""
    exif = b""
    packets: list[bytes] = []
    for segment in _app1_segments(jpeg):
        if segment.startswith(_EXIF):
            exif = exif or segment
        elif is_xmp(segment) and budget.allows("XMP", len(segment)):
            packets.append(segment)
    return EmbeddedMetadata(exif, from_segments(packets))


def read_webp(webp: bytes, budget: TextBudget) -> EmbeddedMetadata:
    """Read the metadata of a WebP file. Raises NotReplayable if it has no image or too many chunks."""
    contents: dict[bytes, bytes] = {}  # of the first metadata chunk of each type
    offset, has_image = 12, False  # after RIFF, the size and WEBP
    for _ in range(_MAX_CHUNKS):
        if offset + 8 > len(webp):
            break
        kind, size_bytes = struct.unpack_from("<4sI", webp, offset)
        start = offset + 8
        offset = start + size_bytes + size_bytes % 2  # chunks are padded to an even size
        has_image = has_image or kind in _WEBP_IMAGES
        is_metadata = kind == b"EXIF" or (kind == b"XMP " and budget.allows("XMP", size_bytes))
        if is_metadata and start + size_bytes <= len(webp):
            contents.setdefault(kind, webp[start : start + size_bytes])
    else:  # the loop did not reach the end of the file
        raise NotReplayable(f"it is a damaged WebP file with more than {_MAX_CHUNKS} chunks; use the original file")
    if not has_image:
        raise NotReplayable("it is a damaged WebP file without an image; use the original file")
    return EmbeddedMetadata(contents.get(b"EXIF", b""), contents.get(b"XMP ", b""))


def _app1_segments(jpeg: bytes) -> Iterator[bytes]:
    """Yield the contents of the APP1 segments before the image.

    Raises NotReplayable if the file has no image or too many segments.
    """
    offset = 2  # after the marker at the start of the file
    for _ in range(_MAX_SEGMENTS):
        offset = _next_marker(jpeg, offset)
        marker = jpeg[offset] if offset < len(jpeg) else _END_OF_IMAGE
        if marker == _START_OF_SCAN:
            return
        if marker == _END_OF_IMAGE:
            raise NotReplayable("it is a damaged JPEG file without an image; use the original file")
        offset += 1
        if marker in _WITHOUT_LENGTH:
            continue
        size_bytes = int.from_bytes(jpeg[offset : offset + 2])
        if marker == _APP1:
            yield jpeg[offset + 2 : offset + size_bytes]
        offset += max(2, size_bytes)  # a size includes its own 2 bytes, so a smaller one is damaged
    raise NotReplayable(f"it is a damaged JPEG file with more than {_MAX_SEGMENTS} segments; use the original file")


def _next_marker(jpeg: bytes, offset: int) -> int:
    """Return the offset of the next marker's code, or the length of the file if there is no marker.

    A marker is one or more bytes of 0xFF, followed by a code.
    """
    offset = jpeg.find(b"\xff", offset)
    code = _NOT_FILL.search(jpeg, offset) if offset >= 0 else None
    return code.start() if code else len(jpeg)

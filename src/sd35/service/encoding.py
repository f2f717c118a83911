"""From a picture's PNG file to the other formats, and from a file of any of them to what made it."""

import asyncio
import io
import struct
import warnings
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from sd35.errors import NotReplayable
from sd35.service.formats import Format, check_quality
from sd35.service.png import read_png, without_text
from sd35.service.record import Record, from_text
from sd35.service.xmp import from_segments, from_xmp, to_segments, to_xmp

USER_COMMENT = "UserComment"
_COMMENT_CODE_BYTES = 8  # before the comment, which characters it is in

# The scales of quality are each format's own: at these three, a picture's error is about the same. All are set to be
# quick, for half the time saves but a twentieth of the bytes. JPEG keeps colours at full resolution: hard edges of
# saturated colours, which are halved else, are what one sees first.
_OPTIONS: dict[Format, dict[str, Any]] = {
    Format.JPEG: {"quality": 90, "subsampling": 0},
    Format.WEBP: {"quality": 90, "method": 0},
    Format.AVIF: {"quality": 75, "speed": 10},
}


def encode(png: bytes, output_format: Format, *, has_metadata: bool, quality: int | None = None) -> bytes:
    """A picture's PNG file in another format, with or without what made it. Keeps a core busy where it is not PNG.

    `quality` is 1 to 100, None for the format's default. Raises InvalidRequest where it is another, or for a PNG file.
    """
    check_quality(output_format, quality)
    if output_format is Format.PNG:
        return png if has_metadata else without_text(png)
    pixels, text = read_png(png)
    options = dict(_OPTIONS[output_format])
    if quality is not None:
        options["quality"] = quality
    if has_metadata and text:
        packet = to_xmp(text)
        options |= {"extra": to_segments(packet)} if output_format is Format.JPEG else {"xmp": packet}
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, output_format, **options)
    return out.getvalue()


async def encoded(png: bytes, output_format: Format, *, has_metadata: bool, quality: int | None = None) -> bytes:
    """`encode`, on an event loop: in a thread, where it keeps a core busy."""
    if output_format is Format.PNG:
        return encode(png, output_format, has_metadata=has_metadata)
    return await asyncio.to_thread(encode, png, output_format, has_metadata=has_metadata, quality=quality)


def format_of(data: bytes) -> Format:
    """The format of a file. Raises NotReplayable where it is none of them, or damaged at its beginning."""
    return _opened(data)[0]


def read_record(data: bytes) -> Record:
    """What made a picture, from its file in any of the formats; its pixels are not looked at.

    Raises NotReplayable where it does not say so, is damaged, or was edited.
    """
    return from_text(texts_of(data))


def texts_of(data: bytes) -> dict[str, str]:
    """The texts in a file of any of the formats; an EXIF user comment is one of that name. Pixels are not looked at.

    Raises NotReplayable where it is none of them, or damaged.
    """
    return _opened(data)[1]


def _opened(data: bytes) -> tuple[Format, dict[str, str]]:
    """The format and the texts of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, which matters to nobody here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=[*Format]) as image:
                found = Format(str(image.format).lower())
                info, segments = image.info, getattr(image, "applist", [])
    except UnidentifiedImageError as error:
        raise NotReplayable(f"it is no picture of these formats: {', '.join(Format)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise NotReplayable(f"it is a damaged picture: {error}") from error
    if found is Format.PNG:
        return found, {str(key): str(value) for key, value in info.items() if isinstance(value, str)}
    comment = _user_comment(info.get("exif", b""))
    if found is Format.JPEG:
        return found, comment | from_xmp(from_segments(content for kind, content in segments if kind == "APP1"))
    return found, comment | from_xmp(info.get("xmp", b""))


def _user_comment(exif: bytes) -> dict[str, str]:
    """What a person or program remarked (EXIF 2.32, tag 37510), by the tag's name; nothing where that is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = Image.Exif()
            read.load(exif)
            comment = read.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    except (SyntaxError, ValueError, LookupError, TypeError, OSError, struct.error):
        return {}
    if not isinstance(comment, bytes) or len(comment) <= _COMMENT_CODE_BYTES:
        return {}
    code, text = comment[:_COMMENT_CODE_BYTES], comment[_COMMENT_CODE_BYTES:]
    encoding = "utf-16-be" if code == b"UNICODE\0" else "utf-8"
    return {USER_COMMENT: text.decode(encoding, "replace")}

"""Read the texts of image files in all formats that this project writes, without decoding pixels.

`POST /sdapi/v1/png-info`, the user interface and `sd35 replay` share this code, so they find the same texts. The files
come from users. Therefore, text_budget.py limits the amount of text, and each reader limits the number of chunks,
segments or boxes that it reads.
"""

from collections.abc import Callable
from typing import NamedTuple

from sd35.errors import NotReplayable
from sd35.images import avif, containers, exif, png_chunks
from sd35.images.record import Record, from_text
from sd35.images.text_budget import MAX_TEXT_BYTES, TextBudget
from sd35.images.xmp import from_xmp

_MAX_NAMES = 5
FORMATS = ("png", "jpeg", "webp", "avif")


class ImageTexts(NamedTuple):
    """The format of an image file, its texts by name, and the names of texts that were too long to read."""

    image_format: str
    texts: dict[str, str]
    left_out: list[str]

    def names_left_out(self) -> list[str]:
        """Return the first 5 distinct names of `left_out`, sorted, because a file can have thousands."""
        return sorted(set(self.left_out))[:_MAX_NAMES]


def format_of(data: bytes) -> str | None:
    """Detect the format of a file from its first bytes. Returns None if it is not one of FORMATS."""
    if data.startswith(png_chunks.SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return "avif" if avif.is_avif(data) else None


def read_texts(data: bytes) -> ImageTexts:
    """Read the texts of an image file: PNG chunks, this project's XMP, and EXIF's `UserComment`.

    Reads at most MAX_TEXT_BYTES of text. Raises NotReplayable if the file is not an image or is damaged.
    """
    image_format = format_of(data)
    if image_format is None:
        raise NotReplayable(f"it is not an image in any of the formats {', '.join(FORMATS)}; use the original file")
    budget = TextBudget()
    if image_format == "png":
        texts, exif_data = png_chunks.read_chunks(data, budget)
    else:
        metadata = _READERS[image_format](data, budget)
        texts, exif_data = from_xmp(metadata.xmp), metadata.exif
    comment = exif.comment_bytes(exif_data)
    if comment and budget.allows(exif.USER_COMMENT, len(comment)) and (text := exif.comment_text(comment)):
        texts.setdefault(exif.USER_COMMENT, text)
    return ImageTexts(image_format, texts, budget.left_out)


def read_record(data: bytes) -> Record:
    """Return the record in an image file of any of FORMATS: its request, and the versions that generated it.

    Raises NotReplayable if the file has no record or is damaged, or if the record was edited.
    """
    image_texts = read_texts(data)
    try:
        return from_text(image_texts.texts)
    except NotReplayable as error:
        if not image_texts.left_out:
            raise
        names = ", ".join(image_texts.names_left_out())
        raise NotReplayable(
            f"{error}. At most {MAX_TEXT_BYTES} bytes of text are read from a file, so these texts were"
            f" skipped: {names}"
        ) from error


_READERS: dict[str, Callable[[bytes, TextBudget], containers.EmbeddedMetadata]] = {
    "jpeg": containers.read_jpeg,
    "webp": containers.read_webp,
    "avif": avif.read_avif,
}

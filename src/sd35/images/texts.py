"""Reads the texts of image files in any of the formats that this project writes.

`POST /sdapi/v1/png-info`, the page and `sd35 replay` all read files here, so that they agree on what a file says. What
comes from users is limited: see budget.py for the text, and each reader for its parts. Pixels are not decoded.
"""

from collections.abc import Callable
from typing import NamedTuple

from sd35.errors import NotReplayable
from sd35.images import avif, containers, exif, png_chunks
from sd35.images.record import Record, from_text
from sd35.images.text_budget import MAX_TEXT_BYTES, TextBudget
from sd35.images.xmp import from_xmp

_MOST_NAMES = 5
FORMATS = ("png", "jpeg", "webp", "avif")


class ImageTexts(NamedTuple):
    """The format of an image file, its texts by name, and the names of texts that were not read for their size."""

    image_format: str
    texts: dict[str, str]
    left_out: list[str]

    def names_left_out(self) -> list[str]:
        """The first names of `left_out`, each once: a file can have thousands of them."""
        return sorted(set(self.left_out))[:_MOST_NAMES]


def format_of(data: bytes) -> str | None:
    """The format of a file, by its first bytes; None if it is none of FORMATS."""
    if data.startswith(png_chunks.SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return "avif" if avif.is_avif(data) else None


def read_texts(data: bytes) -> ImageTexts:
    """The texts of an image file: those of PNG chunks, of this project's XMP, and EXIF's `UserComment`.

    Reads at most MAX_TEXT_BYTES of text. Raises NotReplayable if it is no image, or is damaged.
    """
    image_format = format_of(data)
    if image_format is None:
        raise NotReplayable(f"it is no image of these formats: {', '.join(FORMATS)}")
    budget = TextBudget()
    if image_format == "png":
        texts, exif_data = png_chunks.read_chunks(data, budget)
    else:
        carried = _READERS[image_format](data, budget)
        texts, exif_data = from_xmp(carried.xmp), carried.exif
    comment = exif.comment_bytes(exif_data)
    if comment and budget.allows(exif.USER_COMMENT, len(comment)) and (text := exif.comment_text(comment)):
        texts.setdefault(exif.USER_COMMENT, text)
    return ImageTexts(image_format, texts, budget.left_out)


def read_record(data: bytes) -> Record:
    """What made an image, from its file in any of the formats.

    Raises NotReplayable if the file does not say it, is damaged, or its record was edited.
    """
    found = read_texts(data)
    try:
        return from_text(found.texts)
    except NotReplayable as error:
        if not found.left_out:
            raise
        names = ", ".join(found.names_left_out())
        raise NotReplayable(
            f"{error}. At most {MAX_TEXT_BYTES} bytes of a file's texts are read, so these texts were left out: {names}"
        ) from error


_READERS: dict[str, Callable[[bytes, TextBudget], containers.Carried]] = {
    "jpeg": containers.read_jpeg,
    "webp": containers.read_webp,
    "avif": avif.read_avif,
}

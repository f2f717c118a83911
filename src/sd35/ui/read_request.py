"""The request in an image file that the service made, so that the page can fill in its settings."""

from pathlib import Path

from sd35.errors import NotReplayable
from sd35.images.record import REQUEST_KEY, from_text
from sd35.images.text_budget import MAX_TEXT_BYTES
from sd35.images.texts import ImageTexts, format_of, read_texts
from sd35.request import Request

_WRITTEN = "An image keeps them as long as it is not converted, edited, or sent through a messenger."


def read_request(path: Path) -> Request:
    """The request that an image file was made from. Raises NotReplayable, in words for the page's visitor."""
    data = path.read_bytes()
    if format_of(data) is None:
        raise NotReplayable(f"This is not a PNG, JPEG, WebP or AVIF file, and only those carry settings. {_WRITTEN}")
    try:
        found = read_texts(data)
    except NotReplayable as error:
        raise NotReplayable("This image's file is damaged.") from error
    try:
        return from_text(found.texts).request
    except NotReplayable as error:
        raise NotReplayable(_why_not(found)) from error


def _why_not(found: ImageTexts) -> str:
    """Why the texts of an image file do not give its request."""
    if found.left_out:
        names = ", ".join(found.names_left_out())
        return (
            f"This image's settings cannot be read: its texts are damaged, or longer than {MAX_TEXT_BYTES} bytes"
            f" together. These were not read: {names}."
        )
    if REQUEST_KEY not in found.texts:
        return f"This image does not say what made it: it was not made by this service. {_WRITTEN}"
    return "What this image says of its settings is damaged, was edited, or is of a newer version."

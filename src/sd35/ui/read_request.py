"""Read the request in an image file of the service, so that the page can fill in its settings."""

from pathlib import Path

from sd35.errors import NotReplayable
from sd35.images.record import REQUEST_KEY, from_text
from sd35.images.text_budget import MAX_TEXT_BYTES
from sd35.images.texts import ImageTexts, format_of, read_texts
from sd35.request import Request

_LOST = "A file loses its settings if it is converted, edited, or sent through a messenger."


def read_request(path: Path) -> Request:
    """Return the request of an image file.

    Raises NotReplayable, with a message for the user, if the file is damaged or has no readable request.
    """
    file = path.read_bytes()
    if format_of(file) is None:
        raise NotReplayable(f"This is not a PNG, JPEG, WebP or AVIF file, and only those have settings. {_LOST}")
    try:
        metadata = read_texts(file)
    except NotReplayable as error:
        raise NotReplayable("This image file is damaged. Use the original file.") from error
    try:
        return from_text(metadata.texts).request
    except NotReplayable as error:
        raise NotReplayable(_explain_missing_request(metadata)) from error


def _explain_missing_request(metadata: ImageTexts) -> str:
    """Return a message for the user that says why the metadata of an image file has no readable request."""
    if metadata.left_out:
        names = ", ".join(metadata.names_left_out())
        return (
            "The settings of this image cannot be read, because these parts of its metadata are damaged or longer than"
            f" {MAX_TEXT_BYTES} bytes: {names}. Use the original file."
        )
    if REQUEST_KEY not in metadata.texts:
        return f"This image has no settings: another program made it, or it has no metadata. {_LOST}"
    return (
        "The settings of this image are damaged, were edited, or come from a newer version of this service. Use the"
        " original file, or enter the settings by hand."
    )

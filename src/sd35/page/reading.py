"""The request in a PNG file that the service made, so that its settings can be taken again."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError
from pydantic import TypeAdapter, ValidationError

from sd35.errors import InvalidRequest, NotReplayable
from sd35.request import Request

_KEY = "sd35.request"
_REQUEST = TypeAdapter(Request)
_WRITTEN = "A picture keeps them as long as it is not converted, edited, or sent through a messenger."


def read_request(path: Path) -> Request:
    """What a file says it was made from. Only its head is read, no pixel. Raises NotReplayable, in plain words."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(_KEY)
    except UnidentifiedImageError as error:
        raise NotReplayable(f"This is not a PNG file, and only those carry settings. {_WRITTEN}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NotReplayable("This PNG file is damaged.") from error
    if not isinstance(text, str):
        raise NotReplayable(f"This picture does not say what made it: it was not made by this service. {_WRITTEN}")
    try:
        return _REQUEST.validate_json(text, strict=True)
    except (ValidationError, InvalidRequest) as error:
        raise NotReplayable("What this picture says of its settings is damaged, or of a newer version.") from error

"""The file formats of pictures, and which one an answer is in."""

import re
from collections.abc import Iterator
from enum import StrEnum

from sd35.errors import InvalidRequest, NotAcceptable

QUALITY = (1, 100)
_WEIGHT = re.compile(r"[01](\.\d*)?", re.ASCII)


class Format(StrEnum):
    """A picture's file format, by the name that requests use: the exact one first, then the quickest to write."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"

    @property
    def media_type(self) -> str:
        """As in `Content-Type`."""
        return f"image/{self}"


def check_quality(output_format: Format, quality: int | None) -> None:
    """Whether a format can be written at a quality, None being its default. Raises InvalidRequest."""
    if quality is None:
        return
    if output_format is Format.PNG:
        raise InvalidRequest("quality", quality, "none with png, which is exact")
    if not QUALITY[0] <= quality <= QUALITY[1]:
        raise InvalidRequest("quality", quality, f"{QUALITY[0]} to {QUALITY[1]}")


def negotiate(accept: str | None, output_format: Format | None) -> Format:
    """The format of an answer: `output_format` where a request says it, else what its `Accept` header likes best.

    Of formats that it likes equally, one that is named goes before one that `image/*` or `*/*` covers; then the order
    of Format decides. Media ranges that are malformed are passed over. Source: RFC 9110, section 12.5.1.

    Raises NotAcceptable where the header takes none of them.
    """
    if output_format is not None:
        return output_format
    if accept is None or not accept.strip():
        return Format.PNG
    liking = {each: liking_of(accept, each.media_type) for each in Format}
    best = max(Format, key=lambda each: liking[each])
    if not liking[best][0]:
        raise NotAcceptable(accept, [each.media_type for each in Format])
    return best


def liking_of(accept: str, media_type: str) -> tuple[float, bool]:
    """How well an `Accept` header likes a media type, 0 for not at all, and whether it names it.

    The narrowest range decides.
    """
    weights = dict(sorted(_media_ranges(accept), key=lambda one: one[1]))  # the greatest of what comes twice
    for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if media_range in weights:
            return weights[media_range], media_range == media_type
    return 0.0, False


def _media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    for element in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        weight = next((value for name, _, value in (one.partition("=") for one in parameters) if name == "q"), "1")
        if _WEIGHT.fullmatch(weight) and float(weight) <= 1:
            yield media_range, float(weight)

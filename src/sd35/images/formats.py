"""The file formats of images, and which one an answer is in."""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from sd35.errors import InvalidRequest, NotAcceptable

QUALITY = (1, 100)
_WEIGHT = re.compile(r"[01](\.\d*)?", re.ASCII)


class Format(StrEnum):
    """An image's file format, by the name that requests use: the exact one first, then the quickest to write."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"

    @property
    def media_type(self) -> str:
        """As in `Content-Type`."""
        return f"image/{self}"


class FormatPreference(NamedTuple):
    """How well a media type is liked, 0 for not at all, and by what: 2 for its name, 1 for its type's range, 0."""

    weight: float
    narrowness: int


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
    weights = weights_of(accept)
    likings = {each: format_preference(weights, each.media_type) for each in Format}
    best = max(Format, key=lambda each: likings[each])
    if not likings[best].weight:
        raise NotAcceptable(accept or "", [each.media_type for each in Format])
    return best


def weights_of(accept: str | None) -> Mapping[str, float]:
    """How well an `Accept` header likes each of its media ranges. Without one, all media types are liked."""
    given = _media_ranges(accept) if accept and accept.strip() else [("*/*", 1.0)]
    return dict(sorted(given, key=lambda one: one[1]))  # the greatest of what comes twice


def format_preference(weights: Mapping[str, float], media_type: str) -> FormatPreference:
    """How well a media type is liked by a header's `weights_of`: the narrowest range decides."""
    ranges = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
    narrowness = max((place for place, media_range in enumerate(ranges) if media_range in weights), default=0)
    return FormatPreference(weights.get(ranges[narrowness], 0.0), narrowness)


def _media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    for element in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        weight = next((value for name, _, value in (one.partition("=") for one in parameters) if name == "q"), "1")
        if _WEIGHT.fullmatch(weight) and float(weight) <= 1:
            yield media_range, float(weight)

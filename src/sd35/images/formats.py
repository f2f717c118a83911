"""The file formats of images, and the negotiation of a response's format."""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from sd35.errors import InvalidRequest, NotAcceptable

QUALITY = (1, 100)
_WEIGHT = re.compile(r"[01](\.\d*)?", re.ASCII)


class Format(StrEnum):
    """A file format by its name in requests. The lossless format comes first, then the others by encoding speed."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"

    @property
    def media_type(self) -> str:
        """The value of `Content-Type`."""
        return f"image/{self}"


class FormatPreference(NamedTuple):
    """The weight of a media type in an `Accept` header, and how specific the media range is that sets it.

    A `weight` of 0 means not acceptable. `narrowness` is 2 for the type itself, 1 for `image/*`, and 0 for `*/*`.
    """

    weight: float
    narrowness: int


def check_quality(output_format: Format, quality: int | None) -> None:
    """Check that a format supports a quality. None is the default of the format. Raises InvalidRequest."""
    if quality is None:
        return
    if output_format is Format.PNG:
        raise InvalidRequest("quality", quality, "none with png, because it is lossless")
    if not QUALITY[0] <= quality <= QUALITY[1]:
        raise InvalidRequest("quality", quality, f"{QUALITY[0]} to {QUALITY[1]}")


def negotiate(accept: str | None, output_format: Format | None) -> Format:
    """Return the format of a response: `output_format` if given, otherwise the best one by the `Accept` header.

    Among formats of equal weight, a format that the header names comes before one that only `image/*` or `*/*` covers.
    Then the order of `Format` decides. Malformed media ranges are ignored. Source: RFC 9110, section 12.5.1.

    Raises NotAcceptable if the header accepts none of the formats.
    """
    if output_format is not None:
        return output_format
    weights = weights_of(accept)
    preferences = {each: format_preference(weights, each.media_type) for each in Format}
    best = max(Format, key=lambda each: preferences[each])
    if not preferences[best].weight:
        raise NotAcceptable(accept or "", [each.media_type for each in Format])
    return best


def weights_of(accept: str | None) -> Mapping[str, float]:
    """Return the weight of each media range in an `Accept` header. Without a header, `*/*` has weight 1."""
    ranges = _media_ranges(accept) if accept and accept.strip() else [("*/*", 1.0)]
    return dict(sorted(ranges, key=lambda one: one[1]))  # sorted, so that the largest weight of duplicates counts


def format_preference(weights: Mapping[str, float], media_type: str) -> FormatPreference:
    """Look up a media type in the weights of a header. The most specific matching range decides."""
    ranges = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
    narrowness = max((index for index, media_range in enumerate(ranges) if media_range in weights), default=0)
    return FormatPreference(weights.get(ranges[narrowness], 0.0), narrowness)


def _media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    for element in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        weight = next((value for name, _, value in (one.partition("=") for one in parameters) if name == "q"), "1")
        if _WEIGHT.fullmatch(weight) and float(weight) <= 1:
            yield media_range, float(weight)

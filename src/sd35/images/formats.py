"""The file formats of images, and the negotiation of a response's format."""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from sd35.errors import InvalidRequest, NotAcceptable

QUALITY = (1, 100)
_WEIGHT = re.compile(r"[01](\.\d*)?", re.ASCII)


class Format(StrEnum):
    """A file format, by its name in requests: first PNG, which is lossless, then the others by encoding speed."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"

    @property
    def media_type(self) -> str:
        """The value of `Content-Type`."""
        return f"image/{self}"


class FormatPreference(NamedTuple):
    """How much a client prefers a media type, according to its `Accept` header. A larger tuple is preferred.

    Attributes:
        weight: The weight (`q`) of the media range that covers the type: 0 (not acceptable) to 1.
        narrowness: How specific that range is: 2 for the type itself, 1 for `image/*`, 0 for `*/*`.
    """

    weight: float
    narrowness: int


def check_quality(output_format: Format, quality: int | None) -> None:
    """Raise InvalidRequest if a format does not support a quality. None, for the default, is always valid."""
    if quality is None:
        return
    if output_format is Format.PNG:
        raise InvalidRequest("quality", quality, "no quality with png, which is lossless")
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
    preferences = {candidate: format_preference(weights, candidate.media_type) for candidate in Format}
    best = max(Format, key=lambda candidate: preferences[candidate])  # the first of equal ones
    if not preferences[best].weight:
        raise NotAcceptable(accept or "", [candidate.media_type for candidate in Format])
    return best


def weights_of(accept: str | None) -> Mapping[str, float]:
    """Return the weight of each media range in an `Accept` header. Without a header, `*/*` has weight 1."""
    ranges = _media_ranges(accept) if accept and accept.strip() else [("*/*", 1.0)]
    return dict(sorted(ranges, key=lambda pair: pair[1]))  # sorted, so that the largest weight of duplicates counts


def format_preference(weights: Mapping[str, float], media_type: str) -> FormatPreference:
    """Return the preference for a media type, from the weights of a header. The most specific range decides."""
    ranges = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
    narrowness = max((index for index, media_range in enumerate(ranges) if media_range in weights), default=0)
    return FormatPreference(weights.get(ranges[narrowness], 0.0), narrowness)


def _media_ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Yield each media range of an `Accept` header with its weight. Skips ranges with an invalid weight."""
    for element in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        weight = next((value for name, _, value in pairs if name == "q"), "1")
        if _WEIGHT.fullmatch(weight) and float(weight) <= 1:
            yield media_range, float(weight)

"""Range requests and conditional requests for files in memory.

Starlette supports them for files on disk only. Source: RFC 9110, sections 13 (conditions) and 14 (ranges).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?"[^"]*"')


class RangeResponse(NamedTuple):
    """The status, body and some headers of a response: those that depend on the range, and `ETag`."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer(content: bytes, etag: str, request_headers: Mapping[str, str]) -> RangeResponse:
    """Answer a request for the file `content`.

    The status is 200 with the file, 206 with a range of the file, 304 if the client has the file already, or 416 if the
    range is outside the file. If `Range` names several ranges or is malformed, the whole file is sent, which RFC 9110
    allows. `etag` is a strong tag in quotes. A date in `If-Range` never matches, because no `Last-Modified` is sent.
    """
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if _matches(request_headers.get("if-none-match", ""), etag):
        return RangeResponse(304, headers, b"")
    has_same_file = request_headers.get("if-range", etag) == etag
    match = _RANGE.fullmatch(request_headers.get("range", "")) if has_same_file else None
    bounds = _bounds(match[1], match[2], len(content)) if match else None
    if bounds is None:
        return RangeResponse(200, headers, content)
    start, stop = bounds
    if start >= stop:
        return RangeResponse(416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b"")
    return RangeResponse(
        206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]
    )


def _matches(if_none_match: str, etag: str) -> bool:
    """Return whether `If-None-Match` names the tag. A `W/` before the tag is ignored, because a proxy may add it."""
    return if_none_match.strip() == "*" or etag in {tag.removeprefix("W/") for tag in _TAG.findall(if_none_match)}


def _bounds(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return the first byte of a range and the byte after its last one, or None if the range is malformed.

    `first` and `last` are digits or empty. If `first` is empty, the range is the last `last` bytes of the file. If the
    range is outside the file, the returned start is not below the stop.
    """
    if first and last and int(last) < int(first):
        return None
    if first:
        return int(first), min(int(last) + 1, size) if last else size
    return (max(size - int(last), 0), size) if last else None

"""Range requests and conditional requests for files in memory.

Starlette supports them for files on disk only. Source: RFC 9110, sections 13 (conditions) and 14 (ranges).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?"[^"]*"')


class RangeResponse(NamedTuple):
    """The status, headers and body of a response. The caller adds the headers that do not depend on the range."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer(content: bytes, etag: str, request_headers: Mapping[str, str]) -> RangeResponse:
    """Answer a request for `content`: 200, 206 with a range, 304 if the client has the file already, or 416.

    `etag` is a strong tag in quotes. If `Range` names several ranges or is malformed, the whole file is sent, which
    RFC 9110 allows. A date in `If-Range` never matches, because no `Last-Modified` is sent.
    """
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if _matches(request_headers.get("if-none-match", ""), etag):
        return RangeResponse(304, headers, b"")
    applies = request_headers.get("if-range", etag) == etag
    match = _RANGE.fullmatch(request_headers.get("range", "")) if applies else None
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
    """Compare tags weakly, because a proxy may have marked the tag as weak."""
    return if_none_match.strip() == "*" or etag in {tag.removeprefix("W/") for tag in _TAG.findall(if_none_match)}


def _bounds(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return (start, stop) of a range in bytes, or None if it is malformed. A range outside the file is empty."""
    if first and last and int(last) < int(first):
        return None
    if first:
        return int(first), min(int(last) + 1, size) if last else size
    return (max(size - int(last), 0), size) if last else None

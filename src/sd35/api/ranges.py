"""Answers with a part of a file, or with none of it where the client has it already.

Starlette does so for files on disk only. Source: RFC 9110, sections 13 (conditions) and 14 (ranges).
"""

import re
from typing import NamedTuple

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?"[^"]*"')


class Partial(NamedTuple):
    """What to answer with, beside the headers that every answer has."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer(
    content: bytes,
    etag: str,
    *,
    byte_range: str | None = None,
    if_none_match: str | None = None,
    if_range: str | None = None,
) -> Partial:
    """200, 206 with a range, 304 where the client's copy is good, or 416; `etag` is strong, and comes in quotes.

    One range is given, the whole file where several are asked for, or where `Range` is malformed: RFC 9110 allows both.
    `If-Range` with a date is taken for a copy that is out of date: no date is ever given.
    """
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if if_none_match is not None and _matches(if_none_match, etag):
        return Partial(304, headers, b"")
    asked = _RANGE.fullmatch(byte_range) if byte_range and if_range in {None, etag} else None
    bounds = _bounds(asked[1], asked[2], len(content)) if asked else None
    if bounds is None:
        return Partial(200, headers, content)
    start, stop = bounds
    if start >= stop:
        return Partial(416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b"")
    return Partial(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop])


def _matches(if_none_match: str, etag: str) -> bool:
    """By weak comparison: what a proxy has marked as weak is the same file."""
    return if_none_match.strip() == "*" or etag in {tag.removeprefix("W/") for tag in _TAG.findall(if_none_match)}


def _bounds(first: str, last: str, size: int) -> tuple[int, int] | None:
    """(start, stop) of a range; None where it is none; with nothing between them where it lies outside the file."""
    if first and last and int(last) < int(first):
        return None
    if first:
        return int(first), min(int(last) + 1, size) if last else size
    return (max(size - int(last), 0), size) if last else None

"""Strict reading of forms, multipart/form-data (RFC 7578): a limited size, each field once, no files."""

import re
from typing import NamedTuple

from fastapi import Request
from pydantic import BeforeValidator

from sd35.api.body import Body, read_body, validate
from sd35.api.errors import ApiError
from sd35.multipart import MEDIA_TYPE, FormParserError, FormReader, Part, boundary_of
from sd35.threads import PARSING

MAX_FORM_BYTES = 10 * 1024 * 1024
MAX_PARTS = 50
_TRANSFER_ENCODINGS = {b"", b"7bit", b"8bit", b"binary"}
_INTEGER = re.compile(r"-?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,20})?", re.ASCII)

AS_INTEGER = BeforeValidator(lambda text: int(text) if isinstance(text, str) and _INTEGER.fullmatch(text) else text)
AS_NUMBER = BeforeValidator(lambda text: float(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else text)


class File(NamedTuple):
    """A file in a form. No field accepts files, so only the size is kept, for the error."""

    size_bytes: int

    def __str__(self) -> str:
        return f"a file of {self.size_bytes} bytes"


async def read_form(request: Request, model: type[Body]) -> Body:
    """Read the body as `model`. Empty files are ignored.

    Fields of `model` that are numbers need the annotation AS_INTEGER or AS_NUMBER, because a form contains text only.

    Raises ApiError with status 400, 413, 415 or 422.
    """
    content_type = request.headers.get("content-type", "")
    boundary = boundary_of(content_type)
    if boundary is None:
        media_type = content_type.partition(";")[0].strip().lower()
        raise ApiError.from_field(415, "content-type", media_type, f"{MEDIA_TYPE} (with curl: -F prompt=...)")
    content = await read_body(request, MAX_FORM_BYTES)
    # In a thread, because a malicious form can keep the parser busy for seconds and would block other requests.
    return validate(await PARSING.run(_values, content, boundary), model)


def _values(content: bytes, boundary: bytes) -> dict[str, str | File]:
    """Return the parts by name. Raises ApiError with status 400 (a malformed form) or 422 (an invalid part)."""
    values: dict[str, str | File] = {}
    try:
        reader = FormReader(boundary, MAX_PARTS)
        reader.write(content)
        parts = [(part.required_option(b"name"), part) for part in reader.finish()]
    except FormParserError as error:
        raise ApiError(400, f"the body is not {MEDIA_TYPE}: {error}") from error
    for name, part in parts:
        if part.option(b"filename") is not None and not part.content:
            continue  # with the library requests, clients add files={"none": ""} to make the body multipart
        if name in values:
            raise ApiError.from_field(422, name, "two values", "one value")
        values[name] = _value(name, part)
    return values


def _value(name: str, part: Part) -> str | File:
    encoding = part.headers.get(b"content-transfer-encoding", b"").lower()
    if encoding not in _TRANSFER_ENCODINGS:
        raise ApiError.from_field(422, name, encoding.decode("latin-1"), "no content-transfer-encoding")
    if part.option(b"filename") is not None:
        return File(len(part.content))
    try:
        return part.content.decode()
    except UnicodeDecodeError as error:
        raise ApiError.from_field(422, name, part.content.decode(errors="replace"), "text in UTF-8") from error

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
_TRANSFER_ENCODINGS = {b"", b"7bit", b"8bit", b"binary"}  # header values with which a part contains its text unchanged
_INTEGER = re.compile(r"-?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,20})?", re.ASCII)

# Convert the text of a form to a number. Other text stays as it is, and the type of the field refuses it.
AS_INTEGER = BeforeValidator(lambda text: int(text) if isinstance(text, str) and _INTEGER.fullmatch(text) else text)
AS_NUMBER = BeforeValidator(lambda text: float(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else text)


class File(NamedTuple):
    """A file in a form. No field accepts files, so only the size is kept, for the error."""

    size_bytes: int

    def __str__(self) -> str:
        return f"a file of {self.size_bytes} bytes"


async def read_form(request: Request, model: type[Body]) -> Body:
    """Read a form as a `model`. Empty files are ignored.

    Fields of `model` that are numbers need the annotation AS_INTEGER or AS_NUMBER, because a form contains text only.

    Raises ApiError like `read_body` and `validate`, and with status 400 if the form is malformed, 415 if the
    `Content-Type` is not that of a form, and 422 if a field is repeated or is not text.
    """
    content_type = request.headers.get("content-type", "")
    boundary = boundary_of(content_type)
    if boundary is None:
        media_type = content_type.partition(";")[0].strip().lower()
        raise ApiError.from_field(415, "content-type", media_type, f"{MEDIA_TYPE} (with curl: -F prompt=...)")
    content = await read_body(request, MAX_FORM_BYTES)
    # In a thread, because a malicious form can keep the parser busy for seconds and would block other requests.
    return validate(await PARSING.run(_parse_values, content, boundary), model)


def _parse_values(content: bytes, boundary: bytes) -> dict[str, str | File]:
    """Return the value of each field, by name.

    Raises ApiError with status 400 if the form is malformed, or 422 if a field is repeated or is not text.
    """
    values: dict[str, str | File] = {}
    try:
        reader = FormReader(boundary, MAX_PARTS)
        reader.write(content)
        parts = [(part.required_option(b"name"), part) for part in reader.finish()]
    except FormParserError as error:
        raise ApiError(400, f"the body is not valid {MEDIA_TYPE}: {error}. With curl, send fields with -F") from error
    for name, part in parts:
        if part.option(b"filename") is not None and not part.content:
            continue  # clients that use the library requests add files={"none": ""}, so that it sends a multipart body
        if name in values:
            raise ApiError.from_field(422, name, "two values", "one value")
        values[name] = _value_of(name, part)
    return values


def _value_of(name: str, part: Part) -> str | File:
    """Return the text of a part, or the size of its file. Raises ApiError with status 422 if it is not UTF-8 text."""
    encoding = part.headers.get(b"content-transfer-encoding", b"").lower()
    if encoding not in _TRANSFER_ENCODINGS:
        got = f"content-transfer-encoding {encoding.decode('latin-1')}"
        raise ApiError.from_field(422, name, got, "text in UTF-8 without that header")
    if part.option(b"filename") is not None:
        return File(len(part.content))
    try:
        return part.content.decode()
    except UnicodeDecodeError as error:
        raise ApiError.from_field(422, name, part.content.decode(errors="replace"), "text in UTF-8") from error

"""Reads a form, multipart/form-data (RFC 7578), strictly: bounded, each field once, each of its type, and no files."""

import re
from typing import Any, NamedTuple

from fastapi import Request
from pydantic import BeforeValidator
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sd35.api.body import Body, read_body, validate
from sd35.api.refusals import ApiError, FieldError, shown
from sd35.threads import PARSING

MAX_FORM_BYTES = 10 * 1024 * 1024
MAX_PARTS = 50
_MEDIA_TYPE = b"multipart/form-data"
_PLAIN = {b"", b"7bit", b"8bit", b"binary"}
_INTEGER = re.compile(r"-?\d{1,20}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,20})?", re.ASCII)

AS_INTEGER = BeforeValidator(lambda text: int(text) if isinstance(text, str) and _INTEGER.fullmatch(text) else text)
AS_NUMBER = BeforeValidator(lambda text: float(text) if isinstance(text, str) and _NUMBER.fullmatch(text) else text)


class File(NamedTuple):
    """A file that came; no field takes one."""

    size_bytes: int

    def __str__(self) -> str:
        return f"a file of {self.size_bytes} bytes"


async def read_form(request: Request, kind: type[Body]) -> Body:
    """The body as a model of `kind`, whose numbers are read AS_INTEGER or AS_NUMBER. Empty files are passed over.

    Raises ApiError: 400, 413, 415 or 422.
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type != _MEDIA_TYPE:
        got, allowed = shown(media_type.decode("latin-1")), f"{_MEDIA_TYPE.decode()} (with curl: -F prompt=...)"
        error = FieldError(field="content-type", got=got, allowed=allowed)
        raise ApiError.of_fields(415, [error])
    content = await read_body(request, MAX_FORM_BYTES)
    # In a thread: a form that is made to be slow takes the parser seconds, in which others have to be answered.
    return validate(await PARSING.run(_values, content, options.get(b"boundary", b"")), kind)


def _values(content: bytes, boundary: bytes) -> dict[str, str | File]:
    """What the parts hold, by name. Raises ApiError: 400 for what is no form, 422 for a part that is wrong."""
    parts = _Parts()
    try:
        parts.read(content, boundary)
    except FormParserError as error:
        raise ApiError(400, f"the body is no {_MEDIA_TYPE.decode()}: {error}") from error
    return parts.values


class _Parts:
    """Puts together what the parser finds. Of a file, nothing is kept but its size."""

    def __init__(self) -> None:
        self.values: dict[str, str | File] = {}
        self._count, self._is_whole = 0, False
        self._name, self._is_file = "", False
        self._header, self._value, self._content = bytearray(), bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}

    def read(self, content: bytes, boundary: bytes) -> None:
        """Raises FormParserError, ApiError."""
        if not boundary:
            raise FormParserError("its content-type names no boundary")
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._read_headers,
                "on_part_data": lambda data, start, end: self._content.extend(data[start:end]),
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )
        parser.write(content)
        if not self._is_whole:
            raise FormParserError("it ends before its last boundary")

    def _begin(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise FormParserError(f"it has more than the {MAX_PARTS} parts that are allowed")
        self._headers, self._content = {}, bytearray()

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value).strip()
        self._header, self._value = bytearray(), bytearray()

    def _read_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise FormParserError("a part has no name")
        self._name, self._is_file = options[b"name"].decode(errors="replace"), b"filename" in options
        encoding = self._headers.get(b"content-transfer-encoding", b"").lower()
        if encoding not in _PLAIN:
            raise self._refused(encoding.decode("latin-1"), "no content-transfer-encoding")

    def _end(self) -> None:
        if self._is_file and not self._content:  # how requests is told to send a form: files={"none": ""}
            return
        if self._name in self.values:
            raise self._refused("given twice", "each field once")
        try:
            self.values[self._name] = File(len(self._content)) if self._is_file else self._content.decode()
        except UnicodeDecodeError as error:
            raise self._refused(self._content.decode(errors="replace"), "text in UTF-8") from error

    def _finish(self) -> None:
        self._is_whole = True

    def _refused(self, got: Any, allowed: str) -> ApiError:  # noqa: ANN401  whatever came
        error = FieldError(field=shown(self._name), got=shown(got), allowed=allowed)
        return ApiError.of_fields(422, [error])

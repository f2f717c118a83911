"""Parse forms in multipart/form-data (RFC 7578). The parts of a form stay in memory.

The API and the user interface share this module, because they do not import each other. Both turn a FormParserError
into a response that names the form: in the messages here, "it" is the form.
"""

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

MEDIA_TYPE = "multipart/form-data"

__all__ = ["MEDIA_TYPE", "FormParserError", "FormReader", "Part", "boundary_of"]


def boundary_of(content_type: str | None) -> bytes | None:
    """Return the boundary in the `Content-Type` of a form; b"" if it has none. Return None for other types."""
    media_type, options = parse_options_header(content_type)
    return options.get(b"boundary", b"") if media_type == MEDIA_TYPE.encode() else None


@dataclass
class Part:
    """A part of a form. The names in `headers` are in lower case."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    def option(self, name: bytes) -> str | None:
        """Return an option of the part's `Content-Disposition`, such as `name` or `filename`, or None if missing."""
        _, options = parse_options_header(self.headers.get(b"content-disposition"))
        return options[name].decode(errors="replace") if name in options else None

    def required_option(self, name: bytes) -> str:
        """Return an option of the part's `Content-Disposition`. Raises FormParserError if it is missing or empty."""
        value = self.option(name)
        if not value:
            raise FormParserError(f"a part has no {name.decode()}; add it to the part's Content-Disposition")
        return value


class FormReader:
    """Reads a form piece by piece. Raises FormParserError if it is malformed or has more than `max_parts` parts."""

    def __init__(self, boundary: bytes, max_parts: int) -> None:
        if not boundary:
            raise FormParserError("its Content-Type has no boundary; let the client library set this header")
        self._parts: list[Part] = []
        self._max_parts, self._is_complete = max_parts, False
        self._header, self._value = bytearray(), bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_part_data": lambda data, start, end: self._parts[-1].content.extend(data[start:end]),
                "on_end": self._mark_complete,
            },
        )

    def write(self, piece: bytes) -> None:
        """Read the next piece of the form. Raises FormParserError if it is malformed."""
        self._parser.write(piece)

    def finish(self) -> list[Part]:
        """Return the parts of the complete form. Raises FormParserError if its end is missing."""
        if not self._is_complete:
            raise FormParserError("it ends before its last boundary; send the complete form")
        return self._parts

    def _begin_part(self) -> None:
        if len(self._parts) == self._max_parts:
            raise FormParserError(f"it has too many parts; allowed: {self._max_parts}")
        self._parts.append(Part())

    def _end_header(self) -> None:
        """Add the header that was read to its part."""
        self._parts[-1].headers[bytes(self._header).lower()] = bytes(self._value).strip()
        self._header, self._value = bytearray(), bytearray()

    def _mark_complete(self) -> None:
        self._is_complete = True

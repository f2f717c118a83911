"""Receives the files that visitors drop onto the page, in place of Gradio's own route.

Nobody needs a key to send one. Gradio takes 1,000 files in one form, writes each to disk on the event loop, and keeps
them for a day. Here, a form holds one file, the bytes that are held in memory are limited, and few files are kept.
"""

import re
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sd35.body_limits import BodyMemory, TooManyBytes

MOST_UPLOAD_BYTES = 32 * 1024 * 1024
MOST_FORM_BYTES = MOST_UPLOAD_BYTES + 16 * 1024  # a file, and what stands around it
# Forms that are being received are held in memory. Only the bytes that have arrived count, so that slow senders do not
# keep others out.
MOST_HELD_BYTES = 8 * MOST_FORM_BYTES
MOST_HELD_BYTES_EACH = 2 * MOST_FORM_BYTES  # of one address
MOST_KEPT = 32  # files that no event has used yet; an event follows its upload at once, and deletes the file
MOST_KEPT_BYTES = 256 * 1024 * 1024
_NAME_CHARACTERS = 60  # at most 240 bytes: file systems allow 255
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')


class Uploads:
    """ASGI app of the upload route. Files lie in directories of their own below `directory`, under random names.

    It counts what it keeps, so that no request has to look through the directory. The oldest file goes first.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held = BodyMemory(MOST_HELD_BYTES, MOST_HELD_BYTES_EACH)
        self._kept: deque[tuple[Path, int]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one upload, as Gradio does: with a list of the paths of its files."""
        response: Response
        address = (scope.get("client") or ("",))[0]
        try:
            with self._held.body_of(address) as count:
                response = await self._received(Request(scope, receive), count)
        except TooManyBytes:
            words = (
                f"Too many bytes of files are being sent. Allowed are {MOST_HELD_BYTES_EACH} at once from one address"
                f" and {MOST_HELD_BYTES} from all. Try again."
            )
            response = PlainTextResponse(words, 503, {"Retry-After": "1", "Connection": "close"})
        await response(scope, receive, send)

    async def _received(self, request: Request, count: Callable[[int], None]) -> Response:
        media_type, options = parse_options_header(request.headers.get("content-type"))
        if media_type != b"multipart/form-data" or not options.get(b"boundary"):
            return PlainTextResponse("content-type: allowed is multipart/form-data with a boundary.", 400)
        try:
            form = _OneFile(options[b"boundary"])
            async for piece in request.stream():
                count(len(piece))
                form.write(piece)
            form.finish()
        except FormParserError as error:
            return PlainTextResponse(f"The form cannot be read: {error}. Allowed is one file.", 400)
        if len(form.content) > MOST_UPLOAD_BYTES:
            return PlainTextResponse(f"The file is larger than {MOST_UPLOAD_BYTES} bytes.", 413)
        path = self._directory / secrets.token_hex(16) / _file_name(form.name)
        self._kept.append((path, len(form.content)))
        await run_in_threadpool(_write, path, form.content, self._too_many())
        return JSONResponse([str(path)])

    def _too_many(self) -> list[Path]:
        """The oldest files beyond what is kept, which are not counted any more."""
        removed = []
        while len(self._kept) > MOST_KEPT or sum(size_bytes for _, size_bytes in self._kept) > MOST_KEPT_BYTES:
            removed.append(self._kept.popleft()[0])
        return removed


class _OneFile:
    """Reads a form that holds one file and nothing else. Raises FormParserError for any other."""

    def __init__(self, boundary: bytes) -> None:
        self.name, self.content = "", bytearray()
        self._header, self._value, self._parts, self._is_whole = bytearray(), bytearray(), 0, False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._check_headers,
                "on_part_data": lambda data, start, end: self.content.extend(data[start:end]),
                "on_end": self._end,
            },
        )

    def write(self, piece: bytes) -> None:
        """Read the next piece of the form."""
        self._parser.write(piece)

    def finish(self) -> None:
        """Check that the form is whole and has a file."""
        if not self._is_whole:
            raise FormParserError("it ends before its last boundary")
        if not self.name:
            raise FormParserError("it has no part")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise FormParserError("it has more than one part")

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self.name = options.get(b"filename", b"").decode(errors="replace")
        self._header, self._value = bytearray(), bytearray()

    def _check_headers(self) -> None:
        if not self.name:
            raise FormParserError("its part is no file")

    def _end(self) -> None:
        self._is_whole = True


def _file_name(sent: str) -> str:
    """The last part of a name that was sent, without characters that a file system could refuse."""
    name = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", sent)[-1]).strip(". ")
    return name[-_NAME_CHARACTERS:].lstrip(". ") or "file"


def _write(path: Path, content: bytearray, removed: list[Path]) -> None:
    for each in removed:
        with suppress(OSError):  # an event has deleted the file, or Gradio has put another beside it
            each.unlink(missing_ok=True)
            each.parent.rmdir()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

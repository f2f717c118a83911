"""The upload route of the user interface, in place of Gradio's own.

Anyone may upload, without a key. Gradio accepts 1,000 files in one form, writes each to disk on the event loop, and
stores them for a day. Here, a form holds one file, the bytes held in memory are limited, and few files are stored.
"""

import re
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sd35.body_limits import BodyMemory, TooManyBytes
from sd35.multipart import MEDIA_TYPE, FormParserError, FormReader, boundary_of

MAX_UPLOAD_BYTES = 32 * 1024 * 1024
MAX_FORM_BYTES = MAX_UPLOAD_BYTES + 16 * 1024  # a file with its headers and boundaries
# Forms that are being received are held in memory. Only the bytes that have arrived count, so that slow senders do not
# block others.
MAX_HELD_BYTES = 8 * MAX_FORM_BYTES
MAX_HELD_BYTES_EACH = 2 * MAX_FORM_BYTES  # of one address
MAX_STORED = 32  # files that no event has used yet; an event follows its upload at once, and deletes the file
MAX_STORED_BYTES = 256 * 1024 * 1024
_NAME_CHARACTERS = 60  # at most 240 bytes: file systems allow 255
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')


class Uploads:
    """ASGI app of the upload route. Files lie in directories of their own below `directory`, under random names.

    It counts the files it stores, so that no request has to scan the directory. The oldest file is removed first.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held = BodyMemory(MAX_HELD_BYTES, MAX_HELD_BYTES_EACH)
        self._stored: deque[tuple[Path, int]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive an upload, and answer as Gradio does: with a list of the paths of its files."""
        response: Response
        address = (scope.get("client") or ("",))[0]
        try:
            with self._held.body_of(address) as count:
                response = await self._receive(Request(scope, receive), count)
        except TooManyBytes:
            message = (
                f"Too many bytes of files are being sent. Allowed are {MAX_HELD_BYTES_EACH} at once from one address"
                f" and {MAX_HELD_BYTES} from all. Try again."
            )
            response = PlainTextResponse(message, 503, {"Retry-After": "1", "Connection": "close"})
        await response(scope, receive, send)

    async def _receive(self, request: Request, count: Callable[[int], None]) -> Response:
        boundary = boundary_of(request.headers.get("content-type"))
        if not boundary:
            return PlainTextResponse(f"content-type: allowed is {MEDIA_TYPE} with a boundary.", 400)
        try:
            reader = FormReader(boundary, max_parts=1)
            async for piece in request.stream():
                count(len(piece))
                reader.write(piece)
            name, content = _file_in(reader)
        except FormParserError as error:
            return PlainTextResponse(f"The form cannot be read: {error}. Allowed is one file.", 400)
        if len(content) > MAX_UPLOAD_BYTES:
            return PlainTextResponse(f"The file is larger than {MAX_UPLOAD_BYTES} bytes.", 413)
        path = self._directory / secrets.token_hex(16) / _file_name(name)
        self._stored.append((path, len(content)))
        await run_in_threadpool(_write, path, content, self._pop_excess())
        return JSONResponse([str(path)])

    def _pop_excess(self) -> list[Path]:
        """Stop counting the oldest files beyond the limits, and return their paths."""
        removed = []
        while len(self._stored) > MAX_STORED or sum(size_bytes for _, size_bytes in self._stored) > MAX_STORED_BYTES:
            removed.append(self._stored.popleft()[0])
        return removed


def _file_in(reader: FormReader) -> tuple[str, bytearray]:
    """Return the name and content of the form's file. Raises FormParserError if it has none."""
    parts = reader.finish()
    if not parts:
        raise FormParserError("it has no part")
    return parts[0].required_option(b"filename"), parts[0].content


def _file_name(sent: str) -> str:
    """Return the last part of a received name, without characters that a file system could refuse."""
    name = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", sent)[-1]).strip(". ")
    return name[-_NAME_CHARACTERS:].lstrip(". ") or "file"


def _write(path: Path, content: bytearray, removed: list[Path]) -> None:
    for each in removed:
        with suppress(OSError):  # an event has deleted the file, or Gradio has added one to its directory
            each.unlink(missing_ok=True)
            each.parent.rmdir()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

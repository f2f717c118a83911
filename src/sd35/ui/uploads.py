"""The upload route of the user interface, which replaces Gradio's own.

Anyone can upload without a key. Gradio accepts 1,000 files in one form, writes each to disk on the event loop, and
keeps them for a day. This route accepts one file per form, limits the bytes in memory, and keeps few files.
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
# Forms are held in memory until they are complete. Only received bytes count, so that slow senders do not block others.
MAX_HELD_BYTES = 8 * MAX_FORM_BYTES
MAX_HELD_BYTES_EACH = 2 * MAX_FORM_BYTES  # for one address
MAX_STORED = 32  # unused files; normally, an event uses and deletes the file right after its upload
MAX_STORED_BYTES = 256 * 1024 * 1024
_NAME_CHARACTERS = 60  # at most 240 bytes: file systems allow 255
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')


class Uploads:
    """The ASGI app of the upload route. Each file is stored in its own directory with a random name below `directory`.

    It keeps a list of the stored files, so that no request has to scan the directory. The oldest are deleted first.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held = BodyMemory(MAX_HELD_BYTES, MAX_HELD_BYTES_EACH)
        self._stored: deque[tuple[Path, int]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive an upload, and respond as Gradio does: with a list of the paths of its files."""
        response: Response
        address = (scope.get("client") or ("",))[0]
        try:
            with self._held.body_of(address) as count:
                response = await self._receive(Request(scope, receive), count)
        except TooManyBytes:
            message = (
                f"Too many uploads at the same time. Allowed: {MAX_HELD_BYTES_EACH} bytes from one address and"
                f" {MAX_HELD_BYTES} bytes in total. Try again."
            )
            response = PlainTextResponse(message, 503, {"Retry-After": "1", "Connection": "close"})
        await response(scope, receive, send)

    async def _receive(self, request: Request, count: Callable[[int], None]) -> Response:
        boundary = boundary_of(request.headers.get("content-type"))
        if not boundary:
            return PlainTextResponse(f"content-type: allowed: {MEDIA_TYPE} with a boundary.", 400)
        try:
            reader = FormReader(boundary, max_parts=1)
            async for piece in request.stream():
                count(len(piece))
                reader.write(piece)
            name, content = _file_in(reader)
        except FormParserError as error:
            return PlainTextResponse(f"The form cannot be read: {error}. Send exactly one file.", 400)
        if len(content) > MAX_UPLOAD_BYTES:
            return PlainTextResponse(f"The file is larger than {MAX_UPLOAD_BYTES} bytes.", 413)
        path = self._directory / secrets.token_hex(16) / _file_name(name)
        self._stored.append((path, len(content)))
        await run_in_threadpool(_write, path, content, self._pop_excess())
        return JSONResponse([str(path)])

    def _pop_excess(self) -> list[Path]:
        """Remove the oldest files beyond the limits from the list, and return their paths."""
        excess = []
        while len(self._stored) > MAX_STORED or sum(size_bytes for _, size_bytes in self._stored) > MAX_STORED_BYTES:
            excess.append(self._stored.popleft()[0])
        return excess


def _file_in(reader: FormReader) -> tuple[str, bytearray]:
    """Return the name and content of the file in a form. Raises FormParserError if the form has none."""
    parts = reader.finish()
    if not parts:
        raise FormParserError("it has no part")
    return parts[0].required_option(b"filename"), parts[0].content


def _file_name(sent: str) -> str:
    """Return the last part of a received path, without characters that a file system could refuse."""
    name = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", sent)[-1]).strip(". ")
    return name[-_NAME_CHARACTERS:].lstrip(". ") or "file"


def _write(path: Path, content: bytearray, excess: list[Path]) -> None:
    """Delete the excess files, and write a new one."""
    for each in excess:
        with suppress(OSError):  # an event has deleted the file, or Gradio has added another to its directory
            each.unlink(missing_ok=True)
            each.parent.rmdir()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

"""The upload route of the user interface, which replaces Gradio's own.

Anyone can upload a file without an API key. Gradio's route accepts 1,000 files in one form, writes them to disk on the
event loop, and keeps them for a day. This route accepts one file per form, limits the bytes in memory, and keeps few
files.
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
    """The ASGI app of the upload route. It stores each file below `directory`, in a directory with a random name.

    Beyond `MAX_STORED` files or `MAX_STORED_BYTES`, it deletes the oldest files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held = BodyMemory(MAX_HELD_BYTES, MAX_HELD_BYTES_EACH)
        # Path and bytes of each stored file, oldest first. Without this list, each request would scan the directory.
        self._stored: deque[tuple[Path, int]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive an upload, and respond as Gradio does: with a list of the paths of its files."""
        response: Response
        address = (scope.get("client") or ("",))[0]
        try:
            with self._held.body_of(address) as count_bytes:
                response = await self._store_file(Request(scope, receive), count_bytes)
        except TooManyBytes:
            message = (
                f"The uploads in progress are too large. Allowed: {MAX_HELD_BYTES_EACH} bytes from one address and"
                f" {MAX_HELD_BYTES} bytes in total at the same time. Try again in a moment."
            )
            response = PlainTextResponse(message, 503, {"Retry-After": "1", "Connection": "close"})
        await response(scope, receive, send)

    async def _store_file(self, request: Request, count_bytes: Callable[[int], None]) -> Response:
        """Receive a form, store its file, and return a response with the path or an error.

        Raises TooManyBytes if other uploads use the memory for forms.
        """
        boundary = boundary_of(request.headers.get("content-type"))
        if not boundary:
            return PlainTextResponse(f"The Content-Type must be {MEDIA_TYPE} with a boundary.", 400)
        try:
            reader = FormReader(boundary, max_parts=1)
            async for piece in request.stream():
                count_bytes(len(piece))
                reader.write(piece)
            name, content = _file_in(reader)
        except FormParserError as error:
            return PlainTextResponse(f"The form cannot be read: {error}. Send exactly one file.", 400)
        if len(content) > MAX_UPLOAD_BYTES:
            message = f"The file has {len(content)} bytes. Allowed: at most {MAX_UPLOAD_BYTES}."
            return PlainTextResponse(message, 413)
        path = self._directory / secrets.token_hex(16) / _file_name(name)
        self._stored.append((path, len(content)))
        await run_in_threadpool(_replace_files, self._pop_excess(), path, content)
        return JSONResponse([str(path)])

    def _pop_excess(self) -> list[Path]:
        """Remove the oldest files beyond the limits from the list. Returns their paths, for the caller to delete."""
        excess = []
        while len(self._stored) > MAX_STORED or sum(size_bytes for _, size_bytes in self._stored) > MAX_STORED_BYTES:
            excess.append(self._stored.popleft()[0])
        return excess


def _file_in(reader: FormReader) -> tuple[str, bytearray]:
    """Return the name and the content of the file in a form. Raises FormParserError if the form has no file."""
    parts = reader.finish()
    if not parts:
        raise FormParserError("it has no part")
    return parts[0].required_option(b"filename"), parts[0].content


def _file_name(sent: str) -> str:
    """Return a safe file name for an upload: the end of the sent name or path, without problematic characters."""
    name = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", sent)[-1]).strip(". ")
    return name[-_NAME_CHARACTERS:].lstrip(". ") or "file"


def _replace_files(excess: list[Path], path: Path, content: bytearray) -> None:
    """Delete the files in `excess` with their directories, and write a new file."""
    for old_path in excess:
        with suppress(OSError):  # an event has deleted the directory, or Gradio has added a file to it
            old_path.unlink(missing_ok=True)
            old_path.parent.rmdir()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

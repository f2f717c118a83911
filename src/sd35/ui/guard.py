"""A guard around Gradio's app: it allows the requests of this user interface only, limits them, and can end them all.

Gradio offers more than this user interface needs: a proxy, an open API, files of other apps. None of it can be reached.
Gradio also fetches and stores any file that an event names, of the machine or of another host. Here, an event may name
only the user interface's own files.
"""

import asyncio
import json
import re
from pathlib import Path
from urllib.parse import unquote

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.body_limits import limit_body_time
from sd35.ui.uploads import MAX_FORM_BYTES, Uploads

MAX_BODY_BYTES = 1024 * 1024
_FILE = "/gradio_api/file="
_UPLOAD = "/gradio_api/upload"
_PROGRESS = "/gradio_api/upload_progress"
_JOIN = "/gradio_api/queue/join"
_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/pwa_icon|/(static|assets|svelte)/.*"
    r"|/gradio_api/(queue/data|upload_progress|heartbeat/\w+|startup-events|app_id/?|info)"
)
_WRITTEN = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset/?)")
# The browser may load fonts, scripts and images from this server only, and send nothing to others.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self';"
    " base-uri 'self'; form-action 'self'"
)
_DISCONNECT: Message = {"type": "http.disconnect"}  # what Gradio receives if a client's body is late
# The browser asks for the progress of an upload. Gradio would store a record of each such request for ever, so the
# stream is answered here, with its end only.
_UPLOADED = Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")


class Guard:
    """ASGI app around Gradio's. Files are served from `directory` only."""

    def __init__(self, app: ASGIApp, directory: Path, body_timeout_s: float) -> None:
        self._directory, self._body_timeout_s = directory.resolve(), body_timeout_s
        self._gradio = app
        self._apps: dict[str, ASGIApp] = {_UPLOAD: Uploads(self._directory), _PROGRESS: _UPLOADED}
        self._answering: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, to its end or until `close`."""
        receive = limit_body_time(receive, self._body_timeout_s, lambda: _DISCONNECT)
        if error := self._error(scope):
            await error(scope, receive, send)
            return
        path = get_route_path(scope)
        if path == _JOIN:
            receive, body = await _read(scope, receive)
            if not self._names_own_files_only(body):
                error = PlainTextResponse("An event may name only files of this user interface.", 403)
                await error(scope, receive, send)
                return
        inner_scope = {**scope, "app": None, "route": None}  # so that Gradio's routes are no labels of metrics
        await self._serve(self._apps.get(path, self._gradio), inner_scope, receive, send)

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request in a task that `close` cancels, and complete its response then."""
        has_open_response = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_open_response
            has_open_response = message["type"] == "http.response.start" or message.get("more_body", False)
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        task = asyncio.ensure_future(app(scope, receive, send_guarded))
        self._answering.add(task)
        try:
            await asyncio.shield(task)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            if not self._is_closed:  # the request itself is cancelled
                raise
            if has_open_response:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            task.cancel()
            self._answering.discard(task)

    def close(self) -> None:
        """End all responses. A browser keeps streams open as long as its tab is open."""
        self._is_closed = True
        for task in self._answering:
            task.cancel()

    def _error(self, scope: Scope) -> PlainTextResponse | None:
        """Return the response to a request that is not allowed, or None if it is."""
        method, path, headers = scope["method"], get_route_path(scope), Headers(scope=scope)
        if self._is_closed:
            return PlainTextResponse("The user interface is closing.", 503)
        if not self._is_known(method, path):
            return PlainTextResponse("There is no such page.", 404)
        if method != "POST":
            return None
        if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return PlainTextResponse("Pages of other sites may not use this user interface.", 403)
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return PlainTextResponse("The request needs a Content-Length.", 411)
        max_bytes = MAX_FORM_BYTES if path == _UPLOAD else MAX_BODY_BYTES
        return (
            PlainTextResponse(f"The body is larger than {max_bytes} bytes.", 413) if int(length) > max_bytes else None
        )

    def _is_known(self, method: str, path: str) -> bool:
        """Return whether a path is one that the user interface uses."""
        if method not in {"GET", "HEAD"}:
            return method == "POST" and bool(_WRITTEN.fullmatch(path))
        file = path.removeprefix(_FILE)
        return bool(_READ.fullmatch(path)) if file == path else self._is_own(unquote(file))

    def _is_own(self, file: object) -> bool:
        try:
            return isinstance(file, str) and Path(file).resolve().is_relative_to(self._directory)
        except (OSError, ValueError):  # a name that no file can have
            return False

    def _names_own_files_only(self, body: bytes) -> bool:
        """Return whether each file in an event's values is one of `directory`. Gradio treats any `path` as a file."""
        named: list[object] = []
        try:
            json.loads(body, object_hook=lambda found: named.append(found["path"]) if "path" in found else None)
        except (ValueError, RecursionError):
            return False
        return all(map(self._is_own, named))


async def _read(scope: Scope, receive: Receive) -> tuple[Receive, bytes]:
    """Read a body, empty if the client disconnects. Return it, and a `receive` that gives it again."""
    try:
        body = await Request(scope, receive).body()
    except ClientDisconnect:
        body = b""
    is_repeated = False

    async def receive_again() -> Message:
        nonlocal is_repeated
        if is_repeated:
            return await receive()
        is_repeated = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again, body

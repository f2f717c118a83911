"""A guard around Gradio's app: it allows only requests of this page, limits their bodies, and can end all responses.

Gradio has more routes than this user interface needs: a proxy, an open API, files of other apps. The guard blocks them.
Gradio also copies any file that an event names, from this machine or another host. The guard allows only events that
name the user interface's own files.
"""

import asyncio
import json
import re
from pathlib import Path
from urllib.parse import unquote

from starlette._utils import get_route_path  # the path below the mount: Starlette has no public function for it
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.body_limits import limit_body_time
from sd35.ui import PATH
from sd35.ui.uploads import MAX_FORM_BYTES, Uploads

MAX_BODY_BYTES = 1024 * 1024
_FILE = "/gradio_api/file="
_UPLOAD = "/gradio_api/upload"
_PROGRESS = "/gradio_api/upload_progress"
_JOIN = "/gradio_api/queue/join"
_GET_PATHS = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/pwa_icon|/(static|assets|svelte)/.*"
    r"|/gradio_api/(queue/data|upload_progress|heartbeat/\w+|startup-events|app_id/?|info)"
)
_POST_PATHS = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset/?)")
# With this policy, the browser loads fonts, scripts and images only from this server, and sends nothing to others.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self';"
    " base-uri 'self'; form-action 'self'"
)
_DISCONNECT: Message = {"type": "http.disconnect"}  # Gradio receives this if a request body does not arrive in time
# The browser requests the progress of each upload as a stream. Gradio would keep an object in memory for each such
# request forever. Therefore, the guard responds itself, with only the end of the stream.
_UPLOADED = Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")


class Guard:
    """An ASGI app around Gradio's app. It serves files only from `directory`."""

    def __init__(self, app: ASGIApp, directory: Path, body_timeout_s: float) -> None:
        self._directory, self._body_timeout_s = directory.resolve(), body_timeout_s
        self._gradio = app
        self._apps: dict[str, ASGIApp] = {_UPLOAD: Uploads(self._directory), _PROGRESS: _UPLOADED}  # others: Gradio
        self._tasks: set[asyncio.Task[None]] = set()  # one for each request in progress
        self._is_closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, and pass it on or refuse it. The response ends at the latest with `close`."""
        receive = limit_body_time(receive, self._body_timeout_s, lambda: _DISCONNECT)
        if error := self._check_request(scope):
            await error(scope, receive, send)
            return
        path = get_route_path(scope)
        if path == _JOIN:
            receive, body = await _read_body(scope, receive)
            if not self._names_own_files_only(body):
                error = PlainTextResponse(
                    "The event names a file outside the user interface's directory, or its body is not JSON. Allowed:"
                    " files that the page has uploaded or generated.",
                    403,
                )
                await error(scope, receive, send)
                return
        inner_scope = {**scope, "app": None, "route": None}  # so that Gradio's routes do not become labels of metrics
        await self._serve(self._apps.get(path, self._gradio), inner_scope, receive, send)

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request in a task, with security headers. If `close` cancels the task, completes the response."""
        has_open_response = False

        async def send_guarded(message: Message) -> None:
            """Send a message with the security headers, and keep track of whether the response is complete."""
            nonlocal has_open_response
            has_open_response = message["type"] == "http.response.start" or message.get("more_body", False)
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        task = asyncio.ensure_future(app(scope, receive, send_guarded))
        self._tasks.add(task)
        try:
            await asyncio.shield(task)
        except ClientDisconnect:  # nobody is left to respond to
            return
        except asyncio.CancelledError:
            if not self._is_closed:  # the request itself was cancelled
                raise
            if has_open_response:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            task.cancel()
            self._tasks.discard(task)

    def close(self) -> None:
        """End all responses. Otherwise, browsers keep event streams open as long as the tab is open."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()

    def _check_request(self, scope: Scope) -> PlainTextResponse | None:
        """Return an error response, or None if the request is allowed."""
        method, path = scope["method"], get_route_path(scope)
        if self._is_closed:
            return PlainTextResponse("The user interface is closing. Try again when the service has restarted.", 503)
        if not self._is_used(method, path):
            return PlainTextResponse(f"The user interface does not have this address. Its page is {PATH}.", 404)
        return _check_post(path, Headers(scope=scope)) if method == "POST" else None

    def _is_used(self, method: str, path: str) -> bool:
        """Return whether the user interface uses a method and URL path. A URL of a file counts only in `directory`."""
        if method not in {"GET", "HEAD"}:
            return method == "POST" and bool(_POST_PATHS.fullmatch(path))
        if path.startswith(_FILE):
            return self._is_own_file(unquote(path.removeprefix(_FILE)))
        return bool(_GET_PATHS.fullmatch(path))

    def _is_own_file(self, file: object) -> bool:
        """Return whether a value is the path of a file in `directory`."""
        try:
            return isinstance(file, str) and Path(file).resolve().is_relative_to(self._directory)
        except (OSError, ValueError):  # a name that no file can have
            return False

    def _names_own_files_only(self, body: bytes) -> bool:
        """Return whether an event is JSON and all its files are in `directory`."""
        named: list[object] = []

        def collect_path(value: dict[str, object]) -> None:
            if "path" in value:  # Gradio treats any object with a `path` as a file
                named.append(value["path"])

        try:
            json.loads(body, object_hook=collect_path)
        except (ValueError, RecursionError):
            return False
        return all(map(self._is_own_file, named))


def _check_post(path: str, headers: Headers) -> PlainTextResponse | None:
    """Return an error response for a POST request of another site or with a large body, or None if it is allowed."""
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return PlainTextResponse("Pages of other sites cannot use this user interface. Open it in its own tab.", 403)
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return PlainTextResponse("The request needs a Content-Length header with the size of its body.", 411)
    max_bytes = MAX_FORM_BYTES if path == _UPLOAD else MAX_BODY_BYTES
    if int(length) > max_bytes:
        return PlainTextResponse(f"The request body has {length} bytes. Allowed: at most {max_bytes}.", 413)
    return None


async def _read_body(scope: Scope, receive: Receive) -> tuple[Receive, bytes]:
    """Read the body of a request. If the client disconnects, the body is empty.

    Returns a `receive` for the app, which receives the body again, and the body.
    """
    try:
        body = await Request(scope, receive).body()
    except ClientDisconnect:
        body = b""
    was_received = False

    async def receive_again() -> Message:
        """Return the whole body at the first call, and later messages of the client afterwards."""
        nonlocal was_received
        if was_received:
            return await receive()
        was_received = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again, body

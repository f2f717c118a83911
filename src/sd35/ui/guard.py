"""What surrounds Gradio's app: it answers what the page asks for and nothing else, within bounds, and lets go at once.

Gradio offers more than this page needs: a proxy, an open API, files of other apps. None of it can be reached. It also
fetches and keeps whatever file an event names, of the machine or of another host: only the page's own may be named.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.body_limits import limit_body_time
from sd35.ui.uploads import MOST_FORM_BYTES, Uploads

MOST_BODY_BYTES = 1024 * 1024
_FILE = "/gradio_api/file="
_UPLOAD = "/gradio_api/upload"
_PROGRESS = "/gradio_api/upload_progress"
_JOIN = "/gradio_api/queue/join"
_READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/pwa_icon|/(static|assets|svelte)/.*"
    r"|/gradio_api/(queue/data|upload_progress|heartbeat/\w+|startup-events|app_id/?|info)"
)
_WRITTEN = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset/?)")
# Fonts, scripts and images come from here, and nothing is sent elsewhere: the browser holds the page to it.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self';"
    " base-uri 'self'; form-action 'self'"
)
# How far an upload is, which the browser asks beside it: not told, but that there is no more to tell.
_UPLOADED = Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")


class Guard:
    """ASGI: Gradio's app, as far as the page needs it. `directory` is the only one that files are given of."""

    def __init__(self, app: ASGIApp, directory: Path, body_timeout_s: float) -> None:
        self._app, self._directory, self._body_timeout_s = app, directory.resolve(), body_timeout_s
        self._uploads = Uploads(self._directory)
        self._answering: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, to its end or until `close`."""
        receive = limit_body_time(receive, self._body_timeout_s, _hung_up)
        if refused := self._refused(scope):
            await refused(scope, receive, send)
            return
        if get_route_path(scope) == _JOIN:
            receive, body = await _read(scope, receive)
            if not self._names_own_files_alone(body):
                await PlainTextResponse("An event may name no other files than the page's.", 403)(scope, receive, send)
                return
        apart = {**scope, "app": None, "route": None}  # Gradio's routes are not the labels of anyone's metrics
        is_open = False  # an answer has begun, and not ended

        async def send_guarded(message: Message) -> None:
            nonlocal is_open
            is_open = message["type"] == "http.response.start" or message.get("more_body", False)
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        task = asyncio.ensure_future(self._app_of(scope)(apart, receive, send_guarded))
        self._answering.add(task)
        try:
            await asyncio.shield(task)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            if not self._is_closed:  # it is this request that is cancelled
                raise
            if is_open:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            task.cancel()
            self._answering.discard(task)

    def close(self) -> None:
        """End every answer: a browser keeps streams open for as long as its tab is."""
        self._is_closed = True
        for task in self._answering:
            task.cancel()

    def _refused(self, scope: Scope) -> PlainTextResponse | None:
        """The answer to a request that is not let through."""
        for status, words in self._objections(scope):
            return PlainTextResponse(words, status)
        return None

    def _app_of(self, scope: Scope) -> ASGIApp:
        """What answers a request. Gradio would keep a note of each upload that is asked about, for ever."""
        own: dict[str, ASGIApp] = {_UPLOAD: self._uploads, _PROGRESS: _UPLOADED}
        return own.get(get_route_path(scope), self._app)

    def _objections(self, scope: Scope) -> Iterator[tuple[int, str]]:
        """Status and words of what is wrong with a request; the first counts."""
        method, path, headers = scope["method"], get_route_path(scope), Headers(scope=scope)
        if self._is_closed:
            yield 503, "The page is closing."
        if method in {"GET", "HEAD"}:
            file = path.removeprefix(_FILE)
            is_there = bool(_READ.fullmatch(path)) if file == path else self._is_own(unquote(file))
        else:
            is_there = method == "POST" and bool(_WRITTEN.fullmatch(path))
        if not is_there:
            yield 404, "There is no such page."
        if method == "POST":
            if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
                yield 403, "Another site's page may not use this one."
            length = headers.get("content-length", "")
            if not length.isdecimal():
                yield 411, "The body's length is needed."
            most_bytes = MOST_FORM_BYTES if path == _UPLOAD else MOST_BODY_BYTES
            if int(length) > most_bytes:
                yield 413, f"The body is larger than {most_bytes} bytes."

    def _is_own(self, file: object) -> bool:
        try:
            return isinstance(file, str) and Path(file).resolve().is_relative_to(self._directory)
        except (OSError, ValueError):  # a name that no file can have
            return False

    def _names_own_files_alone(self, body: bytes) -> bool:
        """Whether each file in an event's values, which is a `path` wherever Gradio finds it, is one of the page's."""
        named: list[object] = []
        try:
            json.loads(body, object_hook=lambda found: named.append(found["path"]) if "path" in found else None)
        except (ValueError, RecursionError):
            return False
        return all(map(self._is_own, named))


async def _read(scope: Scope, receive: Receive) -> tuple[Receive, bytes]:
    """A body, none where its sender hung up, and what gives it and what comes after it once more."""
    try:
        body = await Request(scope, receive).body()
    except ClientDisconnect:
        body = b""
    is_told = False

    async def receive_again() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again, body


def _hung_up() -> Message:
    """Whoever takes longer has, as far as Gradio is told."""
    return {"type": "http.disconnect"}

"""The mount of the user interface at `/ui`, and the page at `/`.

The user interface is loaded after the service is ready, so that it does not delay the start.
"""

import asyncio
import gc
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Literal, Protocol

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sd35.settings import Settings
from sd35.ui import PATH

_HTML = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>sd35</title>{head}
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>body{{font:1.1rem/1.6 system-ui,sans-serif;max-width:34rem;margin:18vh auto 0;padding:0 1.5rem}}</style></head>
<body><h1>sd35</h1>{body}</body></html>"""
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#4f46e5"/>'
    '<circle cx="16" cy="16" r="7" fill="#fff"/></svg>'
)
_RELOAD_S = 1  # how often the page at `/` asks again while the user interface is loading
_UNAVAILABLE = (
    "The user interface is not available: it is still loading, turned off by the setting `ui`, not installed"
    " (pip install 'sd35-fp8-mirror[ui]'), or failed to load (see the server's log).\n"
)
_ROUTE = SimpleNamespace(path_format=PATH)  # the label in metrics for all files and streams


class Ui(Protocol):
    """The user interface: an ASGI app that can be started and closed."""

    async def start(self) -> None:
        """Start to serve. Call it in a running event loop."""

    async def close(self) -> None:
        """End all responses."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""


def is_installed() -> bool:
    """Return whether the extra `ui` is installed."""
    return find_spec("gradio") is not None


class UiMount:
    """ASGI app that serves the user interface once it is loaded.

    `load` takes seconds and runs in a thread. Without `load`, there is no user interface.

    Attributes:
        state: "absent" if there is no user interface, or after it failed to load or was closed.
    """

    def __init__(self, load: Callable[[], Ui] | None = None) -> None:
        self._load = load
        self._ui: Ui | None = None
        self._loading: asyncio.Task[None] | None = None
        self.state: Literal["absent", "loading", "ready"] = "loading" if load else "absent"

    def start(self) -> None:
        """Load the user interface in the background. Call it in a running event loop."""
        if self._load:
            self._loading = asyncio.get_running_loop().create_task(self._open_or_log(self._load))

    async def open(self, load: Callable[[], Ui]) -> None:
        """Load the user interface, and start to serve it."""
        ui = await asyncio.to_thread(load)
        await ui.start()
        gc.freeze()  # later collections skip what was loaded; collecting garbage first would block the event loop
        self._ui, self.state = ui, "ready"

    async def close(self) -> None:
        """End all responses, so that open browser tabs do not delay the end of the process."""
        if self._loading and not self._loading.done():
            self._loading.cancel()
        if self._ui:
            ui, self._ui, self.state = self._ui, None, "absent"
            await ui.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request by the user interface. Answer with status 404 if it is not ready."""
        scope["route"] = _ROUTE
        if self._ui:
            await self._ui(scope, receive, send)
        else:
            await PlainTextResponse(_UNAVAILABLE, 404)(scope, receive, send)

    async def _open_or_log(self, load: Callable[[], Ui]) -> None:
        """Load the user interface, or log why it cannot be loaded."""
        try:
            await self.open(load)
        except Exception:  # noqa: BLE001  the service works without it
            structlog.get_logger().exception("the user interface cannot be loaded; the API works without it")
            self.state = "absent"


def ui_mount_of(settings: Settings, server: str) -> UiMount:
    """Return the mount for a service at the URL `server`.

    It has no user interface if the settings turn it off, or if the extra `ui` is not installed.
    """
    if settings.ui == "off" or not is_installed():
        return UiMount()

    def load() -> Ui:
        from sd35.ui.app import UiApp

        return UiApp(server, settings.cache_dir, settings.body_timeout_s)

    return UiMount(load)


router = APIRouter()


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
@router.get(PATH, include_in_schema=False)
async def root(request: Request) -> Response:
    """Redirect to the user interface. Without one, return a page that links to the API documentation."""
    ui: UiMount = request.app.state.ui
    root_path = request.scope["root_path"]
    if ui.state == "ready":
        return RedirectResponse(f"{root_path}{PATH}/")
    if ui.state == "loading":
        head = f'<meta http-equiv="refresh" content="{_RELOAD_S}">'
        return HTMLResponse(_HTML.format(head=head, body="<p>Loading the user interface. One moment.</p>"))
    body = (
        "<p>A server for Stable Diffusion 3.5.</p>"
        f'<p>See <a href="{root_path}/docs">the API documentation</a> to generate images.</p>'
    )
    return HTMLResponse(_HTML.format(head="", body=body))


@router.head("/favicon.ico", include_in_schema=False)
@router.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    """Return the icon of the HTML pages."""
    return Response(_ICON, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})

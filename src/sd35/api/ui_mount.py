"""The front door: `/`, and the page for people, loaded after the service is ready: it costs no start-up time."""

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
_RELOAD_S = 1
_ROUTE = SimpleNamespace(path_format=PATH)  # one label of metrics, for all that the page consists of


class Page(Protocol):
    """An ASGI app that is started and closed."""

    async def start(self) -> None:
        """Begin to answer; needs a running event loop."""

    async def close(self) -> None:
        """End all answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""


def is_installed() -> bool:
    """Whether the extra `ui` is."""
    return find_spec("gradio") is not None


class Front:
    """ASGI, at `PATH`: the page, as soon as it is loaded. `load` takes seconds; None where there is to be no page."""

    def __init__(self, load: Callable[[], Page] | None = None) -> None:
        self._load = load
        self._page: Page | None = None
        self._loading: asyncio.Task[None] | None = None
        self.state: Literal["absent", "loading", "there"] = "loading" if load else "absent"

    def start(self) -> None:
        """Begin to load; needs a running event loop."""
        if self._load:
            self._loading = asyncio.get_running_loop().create_task(self._open_or_say(self._load))

    async def open(self, load: Callable[[], Page]) -> None:
        """Load, and begin to answer."""
        page = await asyncio.to_thread(load)
        await page.start()
        gc.freeze()  # as what else is loaded once; collecting first would hold up the event loop
        self._page, self.state = page, "there"

    async def close(self) -> None:
        """End its answers, so that a browser's open tab does not hold up the end of the process."""
        if self._loading and not self._loading.done():
            self._loading.cancel()
        if self._page:
            page, self._page, self.state = self._page, None, "absent"
            await page.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["route"] = _ROUTE
        if self._page:
            await self._page(scope, receive, send)
        else:
            await PlainTextResponse("There is no page here, or not yet.", 404)(scope, receive, send)

    async def _open_or_say(self, load: Callable[[], Page]) -> None:
        try:
            await self.open(load)
        except Exception:  # noqa: BLE001  the service goes on without
            structlog.get_logger().exception("the page for people cannot be opened")
            self.state = "absent"


def front_of(settings: Settings, server: str) -> Front:
    """What the settings say, of a service at an address: the page, where it is installed and wanted."""
    if settings.ui == "off" or not is_installed():
        return Front()

    def load() -> Page:
        from sd35.ui.app import Page

        return Page(server, settings.cache_dir, settings.body_timeout_s)

    return Front(load)


router = APIRouter()


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
@router.get(PATH, include_in_schema=False)
async def root(request: Request) -> Response:
    """A person who opens the address finds the page; where there is none, the way to what explains the API."""
    front: Front = request.app.state.ui
    root_path = request.scope["root_path"]
    if front.state == "there":
        return RedirectResponse(f"{root_path}{PATH}/")
    if front.state == "loading":
        head = f'<meta http-equiv="refresh" content="{_RELOAD_S}">'
        return HTMLResponse(_HTML.format(head=head, body="<p>The page is being loaded. One moment.</p>"))
    body = (
        f'<p>Stable Diffusion 3.5 as a service.</p><p><a href="{root_path}/docs">The API\'s documentation</a> says how'
        " to have images made.</p>"
    )
    return HTMLResponse(_HTML.format(head="", body=body))


@router.head("/favicon.ico", include_in_schema=False)
@router.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    """What a browser shows beside the title, of all pages."""
    return Response(_ICON, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})

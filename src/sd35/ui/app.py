"""The user interface as an ASGI app: Gradio behind a guard."""

import os
import shutil
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from sd35.ui import PATH
from sd35.ui.client import Client
from sd35.ui.guard import Guard

_FILES = Path(__file__).parent
_MAX_AGE_S = 7 * 24 * 3600  # older directories were left by processes that were killed


class UiApp:
    """The user interface of a service as an ASGI app.

    Create it on a thread, because Gradio takes seconds to load. Then `start` it in the event loop.
    """

    def __init__(self, server: str, cache_dir: Path, body_timeout_s: float, *, uses_proxies: bool = False) -> None:
        """Load Gradio, and create the page.

        Args:
            server: URL of the service.
            cache_dir: Files are stored in a directory below it.
            body_timeout_s: Time for a request body to arrive, in seconds.
            uses_proxies: Whether requests to the service go through the proxies that the environment names.
        """
        self._directory = _create_own_directory(cache_dir / "ui")
        self._client = Client(server, uses_proxies=uses_proxies)
        self._gradio = _create_gradio_app(self._client, self._directory)
        self._guard = Guard(self._gradio, self._directory, body_timeout_s)
        self._running = AsyncExitStack()

    async def start(self) -> None:
        """Start Gradio's background tasks."""
        # The app that `mount_gradio_app` returns would do this, but only Gradio's app inside it is used.
        blocks = self._gradio.get_blocks()
        await self._running.enter_async_context(self._gradio.router.lifespan_context(self._gradio))
        blocks.run_startup_events()
        await blocks.run_extra_startup_events()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._guard(scope, receive, send)

    async def close(self) -> None:
        """End all open responses, and delete all files."""
        self._guard.close()
        self._gradio.stop_event.set()  # ends Gradio's own event streams
        await self._client.close()
        await self._running.aclose()
        shutil.rmtree(self._directory, ignore_errors=True)


def _create_gradio_app(client: Client, directory: Path) -> Any:  # noqa: ANN401  Gradio's own type would import it
    """Create the page's Gradio app, which stores its files in `directory`."""
    # Gradio reads some of these variables when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(directory)
    from fastapi import FastAPI
    from gradio import mount_gradio_app

    from sd35.ui.blocks import THEME, build_blocks

    blocks = build_blocks(client, directory)
    outer = mount_gradio_app(
        FastAPI(),
        blocks,
        PATH,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        theme=THEME,
        css_paths=_FILES / "style.css",
        head_paths=_FILES / "keys.html",
    )
    blocks.has_launched = True  # otherwise, Gradio accepts any file that an event names
    (app,) = [route.app for route in outer.routes if getattr(route, "path", None) == PATH]  # `outer` has other routes
    return app


def _create_own_directory(parent: Path) -> Path:
    """Create a directory for this process, and delete old directories of killed processes."""
    parent.mkdir(parents=True, exist_ok=True)
    for directory in parent.iterdir():
        if directory.stat().st_mtime < time.time() - _MAX_AGE_S:
            shutil.rmtree(directory, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent)).resolve()

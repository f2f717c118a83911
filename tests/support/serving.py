"""The HTTP API of a model pool: an app with a test client, and a real server in a thread of this process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sd35.access.keys import KeyStore
from sd35.api.app import create_app
from sd35.api.protocol import protocol_with_timeout
from sd35.engine.base import Handle
from sd35.generation.model_pool import ModelPool
from sd35.service.lifecycle import ServiceLifecycle
from sd35.settings import load_settings
from sd35.storage.storage import Storage
from sd35.telemetry.telemetry import Telemetry
from tests.support.fake_backend import WAIT_S
from tests.support.services import service_of


@contextmanager
def serving(
    pool: ModelPool,
    keys: KeyStore | None = None,
    storage: Storage | None = None,
    telemetry: Telemetry | None = None,
    **settings: Any,
) -> Iterator[TestClient]:
    """Yield a test client of an app that is ready."""
    ready = threading.Event()
    service = service_of(pool, storage, telemetry, **settings)
    lifecycle = ServiceLifecycle(lambda: service, ready.set, _raise)
    app = create_app(lifecycle, load_settings(settings), keys, service.telemetry)
    with TestClient(app, "http://127.0.0.1", follow_redirects=False) as client:
        assert ready.wait(WAIT_S)
        yield client


@contextmanager
def listening(pool: ModelPool, keys: KeyStore | None = None, **settings: Any) -> Iterator[tuple[str, int]]:
    """Yield the host and port of a real server."""
    ready = threading.Event()
    chosen = load_settings(settings)
    service = service_of(pool, **settings)
    app = create_app(ServiceLifecycle(lambda: service, ready.set, _raise), chosen, keys, service.telemetry)
    protocol = protocol_with_timeout(chosen.body_timeout_s)
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, log_config=None, ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(WAIT_S)
            yield listener.getsockname()
        finally:  # otherwise the thread of a failed test would keep the process alive
            server.should_exit = True
            thread.join(WAIT_S)


class StubUi:
    """A user interface that responds "hello" to every request."""

    is_closed = False

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Record the call."""
        self.is_closed = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond "hello"."""
        await PlainTextResponse("hello")(scope, receive, send)


def cancellations(pool: ModelPool) -> threading.Event:
    """Return an event that is set once an image is cancelled in the engine."""
    cancelled, cancel = threading.Event(), pool.engine.cancel

    def cancel_and_report(handle: Handle) -> None:
        cancel(handle)
        cancelled.set()

    pool.engine.cancel = cancel_and_report  # type: ignore[method-assign]
    return cancelled


def _raise(error: Exception) -> None:
    raise error

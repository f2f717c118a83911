"""Apps and servers around the test double."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from sd35.access.keys import KeyStore
from sd35.api.app import create_app
from sd35.api.protocol import bounded
from sd35.engine.generation import Handle
from sd35.generation.model_pool import ModelPool
from sd35.service.startup import ServiceLifecycle
from sd35.settings import load_settings
from sd35.storage.storage import Storage
from sd35.telemetry.telemetry import Telemetry
from tests.support.fake_backend import WAIT_S, FakeBackend, fake_pool
from tests.support.services import service_of


@pytest.fixture
def backend() -> FakeBackend:
    """A backend whose held images wait for `release`."""
    return FakeBackend()


@pytest.fixture
def pool(tmp_path: Path, backend: FakeBackend) -> Iterator[ModelPool]:
    """A model pool in which two images may wait."""
    pool = fake_pool(tmp_path, backend)
    yield pool
    backend.release.set()


@contextmanager
def serving(
    pool: ModelPool,
    keys: KeyStore | None = None,
    storage: Storage | None = None,
    telemetry: Telemetry | None = None,
    **settings: Any,
) -> Iterator[TestClient]:
    """A client of an app that is ready."""
    ready = threading.Event()
    service = service_of(pool, storage, telemetry, **settings)
    lifecycle = ServiceLifecycle(lambda: service, ready.set, _raise)
    app = create_app(lifecycle, load_settings(settings), keys, service.telemetry)
    with TestClient(app, "http://127.0.0.1", follow_redirects=False) as client:
        assert ready.wait(WAIT_S)
        yield client


@pytest.fixture
def client(pool: ModelPool, backend: FakeBackend) -> Iterator[TestClient]:
    """A client of an app that is ready."""
    with serving(pool) as client:
        yield client
        backend.release.set()


@contextmanager
def listening(pool: ModelPool, keys: KeyStore | None = None, **settings: Any) -> Iterator[tuple[str, int]]:
    """Host and port of a real server."""
    ready = threading.Event()
    chosen = load_settings(settings)
    service = service_of(pool, **settings)
    app = create_app(ServiceLifecycle(lambda: service, ready.set, _raise), chosen, keys, service.telemetry)
    server = uvicorn.Server(uvicorn.Config(app, http=bounded(chosen.body_timeout_s), log_config=None, ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(WAIT_S)
            yield listener.getsockname()
        finally:  # else a test that fails would leave a thread that keeps the process
            server.should_exit = True
            thread.join(WAIT_S)


@pytest.fixture
def address(pool: ModelPool, backend: FakeBackend) -> Iterator[tuple[str, int]]:
    """Host and port of a real server."""
    with listening(pool) as address:
        yield address
        backend.release.set()


def cancellations(pool: ModelPool) -> threading.Event:
    """Set when the engine is told that an image is not wanted any more."""
    cancelled, cancel = threading.Event(), pool.engine.cancel

    def noticing(handle: Handle) -> None:
        cancel(handle)
        cancelled.set()

    pool.engine.cancel = noticing  # type: ignore[method-assign]
    return cancelled


def _raise(error: Exception) -> None:
    raise error

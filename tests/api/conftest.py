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
from sd35.engine.generation import Ticket
from sd35.generation.model_pool import Studio
from sd35.service.startup import Opening
from sd35.settings import load_settings
from sd35.storage.storage import Kept
from sd35.telemetry.report import Telemetry
from tests.support.fake_backend import WAIT_S, NumpyBackend, double_studio
from tests.support.services import service_of


@pytest.fixture
def backend() -> NumpyBackend:
    """A backend whose held pictures wait for `release`."""
    return NumpyBackend()


@pytest.fixture
def studio(tmp_path: Path, backend: NumpyBackend) -> Iterator[Studio]:
    """A studio in which two pictures may wait."""
    studio = double_studio(tmp_path, backend)
    yield studio
    backend.release.set()


@contextmanager
def serving(
    studio: Studio,
    keys: KeyStore | None = None,
    kept: Kept | None = None,
    telemetry: Telemetry | None = None,
    **settings: Any,
) -> Iterator[TestClient]:
    """A client of an app that is ready."""
    ready = threading.Event()
    service = service_of(studio, kept, telemetry, **settings)
    opening = Opening(lambda: service, ready.set, _raise)
    app = create_app(opening, load_settings(settings), keys, service.telemetry)
    with TestClient(app, "http://127.0.0.1", follow_redirects=False) as client:
        assert ready.wait(WAIT_S)
        yield client


@pytest.fixture
def client(studio: Studio, backend: NumpyBackend) -> Iterator[TestClient]:
    """A client of an app that is ready."""
    with serving(studio) as client:
        yield client
        backend.release.set()


@contextmanager
def listening(studio: Studio, keys: KeyStore | None = None, **settings: Any) -> Iterator[tuple[str, int]]:
    """Host and port of a real server."""
    ready = threading.Event()
    chosen = load_settings(settings)
    service = service_of(studio, **settings)
    app = create_app(Opening(lambda: service, ready.set, _raise), chosen, keys, service.telemetry)
    server = uvicorn.Server(uvicorn.Config(app, http=bounded(chosen.max_arrival_s), log_config=None, ws="none"))
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
def address(studio: Studio, backend: NumpyBackend) -> Iterator[tuple[str, int]]:
    """Host and port of a real server."""
    with listening(studio) as address:
        yield address
        backend.release.set()


def cancellations(studio: Studio) -> threading.Event:
    """Set when the engine is told that a picture is not wanted any more."""
    cancelled, cancel = threading.Event(), studio.engine.cancel

    def noticing(ticket: Ticket) -> None:
        cancel(ticket)
        cancelled.set()

    studio.engine.cancel = noticing  # type: ignore[method-assign]
    return cancelled


def _raise(error: Exception) -> None:
    raise error

"""An app whose service and routes share one telemetry, as `sd35 serve` composes it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient

from sd35.api.app import create_app
from sd35.service.opening import Opening
from sd35.service.studio import Studio
from sd35.service.telemetry import Telemetry
from sd35.settings import load_settings
from tests.double import WAIT_S
from tests.services import service_of


@contextmanager
def metered(studio: Studio, telemetry: Telemetry, **settings: Any) -> Iterator[TestClient]:
    """A client of an app that is ready."""
    ready = threading.Event()
    service = service_of(studio, telemetry=telemetry, **settings)
    opening = Opening(lambda: service, ready.set, _raise)
    with TestClient(create_app(opening, load_settings(settings), telemetry=telemetry)) as client:
        assert ready.wait(WAIT_S)
        yield client


def _raise(error: Exception) -> None:
    raise error

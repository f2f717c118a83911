"""Clients and servers of the API over the fake backend."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sd35.generation.model_pool import ModelPool
from tests.support.fake_backend import FakeBackend, fake_pool
from tests.support.serving import listening, serving


@pytest.fixture
def backend() -> FakeBackend:
    """The backend of `pool`."""
    return FakeBackend()


@pytest.fixture
def pool(tmp_path: Path, backend: FakeBackend) -> Iterator[ModelPool]:
    """A model pool in which two images may wait."""
    pool = fake_pool(tmp_path, backend)
    yield pool
    backend.release.set()


@pytest.fixture
def client(pool: ModelPool, backend: FakeBackend) -> Iterator[TestClient]:
    """A client of an app that is ready."""
    with serving(pool) as client:
        yield client
        backend.release.set()


@pytest.fixture
def address(pool: ModelPool, backend: FakeBackend) -> Iterator[tuple[str, int]]:
    """Host and port of a real server."""
    with listening(pool) as address:
        yield address
        backend.release.set()

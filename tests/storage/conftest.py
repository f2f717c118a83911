"""Fixtures for the storage tests: databases, blob stores, and an S3 server."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from sd35.settings import load_settings
from sd35.storage.blobs.base import BlobStore
from sd35.storage.blobs.open import open_blob_store
from sd35.storage.database import MEMORY, Database, open_database
from tests.support.postgres import new_schema

OpenStore = Callable[[str | None], BlobStore]
NewDatabase = Callable[[], str]
SECRET_KEY = "0123456789-secret"  # noqa: S105  the test's own server


@pytest.fixture
def new_postgres(request: pytest.FixtureRequest) -> NewDatabase:
    """Return a function that creates an empty PostgreSQL schema and returns its URL."""
    server = request.getfixturevalue("postgres_server")
    return lambda: new_schema(server).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The path or URL of a new SQL database."""
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    new: NewDatabase = request.getfixturevalue("new_postgres")
    return new()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An opened database of each kind."""
    url = {"memory": MEMORY, "sqlite": str(tmp_path / "jobs.db")}.get(request.param)
    opened = open_database(url or request.getfixturevalue("new_postgres")())
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of a moto S3 server with a bucket named "images"."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urlopen(Request(f"{address}/images", method="PUT")).close()  # noqa: S310
    yield address
    server.stop()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without variables of any cloud provider."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def s3(s3_server: str, cloud: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment variables of the S3 server."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }.items():
        cloud.setenv(name, value)
    return cloud


@pytest.fixture
def open_at(tmp_path: Path) -> OpenStore:
    """Return a function that opens the store of an `image_store` setting."""
    return lambda store: open_blob_store(load_settings({"image_store": store, "data_dir": tmp_path}))

"""A studio around the test double; a picture store of each kind to open, and an S3 server for it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from sd35.service.artifacts.contract import ArtifactStore
from sd35.service.artifacts.stores import open_store
from sd35.service.studio import Studio
from sd35.settings import load_settings
from tests.double import NumpyBackend, double_studio

OpenStore = Callable[[str | None], ArtifactStore]
SECRET_KEY = "0123456789-secret"  # noqa: S105  of a server that lives as long as the test


@pytest.fixture
def backend() -> NumpyBackend:
    """Waits in the pictures that are "held", and counts what it is called for."""
    return NumpyBackend()


@pytest.fixture
def max_pictures() -> int:
    """How many the studio has room for."""
    return 3


@pytest.fixture
def studio(tmp_path: Path, backend: NumpyBackend, max_pictures: int) -> Iterator[Studio]:
    """A studio around the backend, which lets go of what it holds at the end."""
    with double_studio(tmp_path, backend, max_pictures) as studio:
        yield studio
        backend.release.set()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of moto's S3 server, with a bucket named "pictures"."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urlopen(Request(f"{address}/pictures", method="PUT")).close()  # noqa: S310
    yield address
    server.stop()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no cloud at all, to set variables in."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def s3(s3_server: str, cloud: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of the S3 server."""
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
    """Opens the store of a value of the setting."""
    return lambda store: open_store(load_settings({"store": store, "data_dir": tmp_path}))

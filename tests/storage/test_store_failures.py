"""Image stores if their process is killed, their disk is full, or their server fails."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias
from urllib.request import Request, urlopen

import obstore.store
import pytest

from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.storage.blobs.base import BlobStore

NAME, OTHER = "ab" * 32 + ".png", "cd" * 32 + "-blurred.png"
OpenStore: TypeAlias = Callable[[str | None], BlobStore]


KILLED = """
import errno, os, sys
from pathlib import Path
from sd35.storage.blobs.directory import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
store.check()
def no_links(*_):
    raise OSError(errno.EPERM, "Operation not permitted")
if sys.argv[4] == "no links":
    os.link = no_links
setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), 9))  # dies right there
store.put(sys.argv[3], bytes(1_000_000))
"""


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        *(("links", moment) for moment in ("fsync", "link", "unlink")),
        *(("no links", moment) for moment in ("fsync", "rename", "unlink")),
    ],
)
def test_a_process_killed_while_it_writes_leaves_the_whole_file_or_none(
    tmp_path: Path, kind: str, moment: str, open_at: OpenStore
):
    """Also on a file system without hard links, where the process is killed while it holds the lock."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "images"), moment, NAME, kind]
    assert subprocess.run(command, check=False).returncode == -9
    store = open_at(None)
    assert store.get(NAME) == (bytes(1_000_000) if moment == "unlink" else None)
    store.put(NAME, bytes(1_000_000))
    assert store.get(NAME) == bytes(1_000_000)


# Runs in another process, because the limit or the mount cannot be undone. Arguments: directory, two names, kind.
FULL = """
import resource, subprocess, sys
from pathlib import Path
from sd35.errors import StoreUnavailable
from sd35.storage.blobs.directory import DirectoryStore
directory = Path(sys.argv[1])
if sys.argv[4] == "disk":
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory], check=True)
store = DirectoryStore(directory)
store.check()
if sys.argv[4] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for _ in range(2):
    try:
        store.put(sys.argv[2], bytes(300_000))
    except StoreUnavailable as error:
        print(error)
store.put(sys.argv[3], bytes(100_000))
print(sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()))
"""
OWN_MOUNTS = ["unshare", "--map-root-user", "--mount"]


def _full(directory: Path, kind: str, *before: str) -> list[str]:
    directory.mkdir()
    command = [*before, sys.executable, "-c", FULL, str(directory), NAME, OTHER, kind]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_file_that_grows_too_large_leaves_nothing(tmp_path: Path):
    """Each write fails with the reason. A smaller file can still be written."""
    *errors, files = _full(tmp_path / "images", "limit")
    assert errors == [f"the image store {tmp_path / 'images'} cannot be written to: File too large"] * 2
    assert files == str([f"cd/{OTHER}"])


def test_a_full_disk_leaves_nothing(tmp_path: Path):
    """Each write fails with the reason. A file that fits can still be written."""
    try:
        subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine does not allow an unprivileged mount: {error}")
    *errors, files = _full(tmp_path / "images", "disk", *OWN_MOUNTS)
    assert errors == [f"the image store {tmp_path / 'images'} cannot be written to: No space left on device"] * 2
    assert files == str([f"cd/{OTHER}"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            "ftp://host/images",
            r"image_store: got 'ftp://host/images'; allowed: s3://BUCKET/PREFIX, gs://.*, a directory",
        ),
        ("{file}/below", r"image_store: the image store .*/below cannot be opened: Not a directory"),
        ("s3://no-such-bucket", r"image_store: .* s3://no-such-bucket cannot be written to: .*bucket does not exist"),
        ("az://container", r"image_store: .* az://container cannot be opened: .*Account must be specified"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_at_once(
    open_at: OpenStore, tmp_path: Path, s3: pytest.MonkeyPatch, value: str, reason: str
):
    """The error names the setting, the value and the reason."""
    del s3
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSetting, match=reason):
        open_at(value.format(file=tmp_path / "file"))


def test_a_store_without_conditional_writes_is_refused(open_at: OpenStore, s3: pytest.MonkeyPatch):
    """Some S3-compatible servers ignore the condition."""
    from sd35.storage.blobs.object_store import ObjectStore

    def unconditional(store: Any, path: str, content: bytes) -> None:
        store._store.put(path, content)  # noqa: SLF001

    s3.setattr(ObjectStore, "_write_once", unconditional)
    with pytest.raises(InvalidSetting, match=r"image_store: .* overwrites existing files"):
        open_at("s3://images")


def test_wrong_credentials_are_an_error(open_at: OpenStore, s3: pytest.MonkeyPatch):
    """The error has the server's reason, but not the secret."""
    s3.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on, moto checks credentials
    with pytest.raises(
        InvalidSetting, match=r"403 Forbidden .The AWS Access Key Id you provided does not exist"
    ) as refused:
        open_at("s3://images")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)


def test_every_call_fails_if_the_object_store_goes_away(open_at: OpenStore, cloud: pytest.MonkeyPatch):
    """Each call fails within seconds and with the reason. No file counts as missing."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        cloud.setenv(name, "x")
    cloud.setenv("AWS_ENDPOINT_URL", address)
    urlopen(Request(f"{address}/short-lived", method="PUT")).close()  # noqa: S310
    store = open_at("s3://short-lived")
    server.stop()
    for attempt in (store.get, store.size, store.delete, lambda name: store.put(name, b"x")):
        with pytest.raises(StoreUnavailable, match=r"s3://short-lived cannot .*Connection refused"):
            attempt(NAME)
    with pytest.raises(InvalidSetting, match=r"image_store: .*Connection refused"):
        open_at("s3://short-lived")


def test_a_server_that_never_answers_times_out(open_at: OpenStore, s3: pytest.MonkeyPatch, silent_server: str):
    """The test sets the timeout to a tenth of a second."""
    s3.setattr("sd35.storage.blobs.object_store._TIMEOUT_S", 0.1)
    s3.setenv("AWS_ENDPOINT_URL", silent_server)
    with pytest.raises(InvalidSetting, match=r"image_store: .* cannot be written to: .*(timed out|timeout)"):
        open_at("s3://images")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield "http://{}:{}".format(*listening.getsockname())


def test_the_client_has_timeouts_and_uses_tls_by_default(open_at: OpenStore, s3: pytest.MonkeyPatch, s3_server: str):
    """Plain HTTP is allowed only for an endpoint that the environment names with `http://`."""
    from sd35.storage.blobs import object_store

    options: list[Any] = []

    def recording(url: str, **given: Any) -> Any:
        options.append(given["client_options"])
        return obstore.store.from_url(url, **given)

    s3.setattr(object_store, "from_url", recording)
    open_at("s3://images")
    s3.setenv("AWS_ENDPOINT_URL", s3_server.replace("http:", "https:"))
    with pytest.raises(InvalidSetting, match="image_store: "):
        open_at("s3://images")
    assert [each["allow_http"] for each in options] == [True, False]
    assert all(each["connect_timeout"] <= each["timeout"] <= timedelta(seconds=20) for each in options)

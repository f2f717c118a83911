"""Blob stores: one contract for memory, a directory and S3."""

import errno
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias
from unittest.mock import Mock
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.settings import load_settings
from sd35.storage.atomic_files import AtomicWriter
from sd35.storage.blobs.base import BlobStore
from sd35.storage.blobs.open import open_blob_store
from tests.support.job_specs import at_once

NAME, OTHER = "ab" * 32 + ".png", "cd" * 32 + "-blurred.png"
OpenStore: TypeAlias = Callable[[str | None], BlobStore]


@pytest.fixture(params=["memory", "directory", "s3"])
def store(request: pytest.FixtureRequest, open_at: OpenStore, tmp_path: Path) -> BlobStore:
    """An empty store of each kind."""
    if request.param == "memory":
        return open_at("memory")
    if request.param == "directory":
        return open_at(str(tmp_path / "my images, größer"))
    request.getfixturevalue("s3")
    return open_at(f"s3://images/{tmp_path.name}")


def files_of(directory: Path) -> list[str]:
    """Return the paths of all files below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_a_file_exists_from_put_to_delete(store: BlobStore):
    """Deleting a missing file does nothing."""
    content = os.urandom(3_000_000)
    store.put(NAME, content)
    store.put(OTHER, b"")
    assert (store.get(NAME), store.size(NAME)) == (content, 3_000_000)
    assert (store.get(OTHER), store.size(OTHER)) == (b"", 0)
    for _ in range(2):
        store.delete(NAME)
        assert (store.get(NAME), store.size(NAME)) == (None, None)
    assert store.size(OTHER) == 0


def test_a_name_is_written_once(store: BlobStore):
    """A second write returns False and changes nothing. After `delete`, the name can be written again."""
    assert store.put(NAME, b"first")
    assert not store.put(NAME, b"second")
    assert store.get(NAME) == b"first"
    store.delete(NAME)
    store.put(NAME, b"third")
    assert store.get(NAME) == b"third"


def test_replace_writes_a_whole_file_whether_it_exists_or_not(store: BlobStore):
    store.put(NAME, b"damaged")
    for name in (NAME, OTHER):
        store.replace(name, b"good")
        assert store.get(name) == b"good"


def test_names_lists_each_file_and_nothing_else(store: BlobStore):
    assert list(store.names()) == []
    for name in (NAME, OTHER):
        store.put(name, b"x")
    assert sorted(store.names()) == [NAME, OTHER]


def test_one_of_many_simultaneous_writers_wins_and_none_fails(store: BlobStore):
    """All readers see the complete content of the same writer."""
    start = threading.Barrier(16)

    def write_and_read(number: int) -> bytes | None:
        start.wait()
        store.put(NAME, bytes([number]) * 100_000)
        return store.get(NAME)

    with ThreadPoolExecutor(16) as pool:
        (seen,) = set(pool.map(write_and_read, range(16)))
    assert seen
    assert seen in {bytes([number]) * 100_000 for number in range(16)}


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "ab" * 32, "AB" * 32 + ".png", "ab" * 31 + ".png", NAME + "/..", "/" + NAME, NAME + "\n"]
    + ["ab" * 32 + suffix for suffix in ("/x.png", ".png.png", "-.png", "-../x.png", ".p\0g", "-Blurred.png")],
)
def test_names_other_than_a_digest_and_a_suffix_are_refused(store: BlobStore, name: str):
    for attempt in (store.get, store.size, store.delete, lambda name: store.put(name, b"x")):
        with pytest.raises(ValueError, match="allowed: 64 hexadecimal digits and a suffix"):
            attempt(name)


def test_only_an_object_store_signs_urls(store: BlobStore):
    """The URL gives only this file, with its media type, to clients without credentials."""
    store.put(NAME, b"content")
    address = store.sign(NAME, 60)
    if "s3://" not in getattr(store, "address", ""):
        assert address is None
        return
    assert address
    with urlopen(address) as answer:  # noqa: S310
        assert (answer.read(), answer.headers["Content-Type"]) == (b"content", "image/png")
    with pytest.raises(HTTPError):
        urlopen(address.replace(NAME, OTHER))  # noqa: S310


def test_images_are_in_the_data_directory_by_default(open_at: OpenStore, tmp_path: Path):
    """The first two digits of a name are its folder. Opening the store leaves no test file."""
    store = open_at(None)
    store.put(NAME, b"x")
    assert files_of(tmp_path) == [f"images/ab/{NAME}"]
    assert open_at(None).get(NAME) == b"x"


def test_a_directory_called_pictures_is_renamed_to_images(open_at: OpenStore, tmp_path: Path):
    open_at(str(tmp_path / "pictures")).put(NAME, b"before")
    assert open_at(None).get(NAME) == b"before"
    assert not (tmp_path / "pictures").exists()


def test_a_failure_to_rename_pictures_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For example, a mount point cannot be renamed. Without the error, its images would seem to be lost."""
    (tmp_path / "pictures").mkdir()
    monkeypatch.setattr(Path, "rename", Mock(side_effect=OSError(errno.EBUSY, os.strerror(errno.EBUSY))))
    with pytest.raises(InvalidSetting, match=r"image_store: .*pictures, .* cannot be renamed to images: .*busy"):
        open_blob_store(load_settings({"data_dir": tmp_path}))


def test_files_and_folders_of_images_are_private(open_at: OpenStore, tmp_path: Path):
    """Files have mode 0600 and folders 0700, whatever the umask. Existing folders are changed, too."""
    old = tmp_path / "images" / "cd"
    old.mkdir(parents=True, mode=0o755)
    before = os.umask(0)
    store = open_at(None)
    store.put(NAME, b"x")
    store.put(OTHER, b"x")
    os.umask(before)
    images = tmp_path / "images"
    modes = {str(path.relative_to(images)): path.stat().st_mode & 0o777 for path in images.rglob("*")}
    assert modes == {
        "staging": 0o700,
        "ab": 0o700,
        f"ab/{NAME}": 0o600,
        "cd": 0o700,
        f"cd/{OTHER}": 0o600,
    }


def test_an_existing_directory_keeps_its_mode(open_at: OpenStore, tmp_path: Path):
    """It may contain other files. Only the folders of images in it are made private."""
    tmp_path.chmod(0o755)
    other = tmp_path / "other"
    other.mkdir(mode=0o755)
    open_at(str(tmp_path)).put(NAME, b"x")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path, other, tmp_path / "ab")] == [0o755, 0o755, 0o700]


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_modes_is_no_error(
    open_at: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
):
    """For example exFAT."""
    (tmp_path / "images" / "ab").mkdir(parents=True, mode=0o755)
    monkeypatch.setattr(os, "chmod", refusing(refusal))
    store = open_at(None)
    store.put(NAME, b"x")
    assert store.get(NAME) == b"x"


@pytest.mark.parametrize("refusal", sorted({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}))
def test_a_file_system_without_hard_links_works(
    open_at: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
):
    """A name is written once, even by many writers at the same time, and no staged file is left."""
    monkeypatch.setattr(os, "link", refusing(refusal))
    store = open_at(None)
    contents = {bytes([number]) * 100_000 for number in range(16)}
    written = at_once([partial(store.put, NAME, content) for content in contents])
    assert sorted(written) == [False] * 15 + [True]
    assert store.get(NAME) in contents
    assert not store.put(NAME, b"later")
    assert store.get(NAME) in contents
    store.replace(NAME, b"replaced")
    assert store.get(NAME) == b"replaced"
    assert {path.name for path in (tmp_path / "images" / "staging").iterdir()} <= {"lock"}


def test_a_failed_write_has_the_reason_of_the_system(open_at: OpenStore, monkeypatch: pytest.MonkeyPatch):
    """Only errors that mean "no hard links" are retried with a rename."""
    store = open_at(None)
    monkeypatch.setattr(os, "link", refusing(errno.EDQUOT))
    with pytest.raises(StoreUnavailable, match=r"cannot be written to: Disk quota exceeded"):
        store.put(NAME, b"x")


def refusing(number: int) -> Callable[..., None]:
    """Return a system call that fails with an error."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_old_staged_files_of_killed_processes_are_deleted(tmp_path: Path):
    """The next `prepare` deletes them, but not the files that another process is writing."""
    AtomicWriter(tmp_path).prepare()
    abandoned, fresh = tmp_path / "staging" / "a", tmp_path / "staging" / "b"
    for file in (abandoned, fresh):
        file.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    AtomicWriter(tmp_path).prepare()
    assert files_of(tmp_path) == ["staging/b"]


def test_google_and_azure_sign_urls(cloud: pytest.MonkeyPatch, tmp_path: Path):
    """Signing needs only credentials from the environment. The URLs are not requested."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from sd35.storage.blobs.object_store import ObjectStore

    cloud.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    cloud.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    address = ObjectStore("az://container/prefix").sign(NAME, 60)
    assert address
    assert address.startswith(f"https://account.blob.core.windows.net/container/prefix/ab/{NAME}?")
    assert "sig=" in address
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    account = {"type": "service_account", "client_email": "a@b.c", "private_key_id": "1", "private_key": key.decode()}
    (tmp_path / "key.json").write_text(json.dumps(account))
    cloud.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    address = ObjectStore("gs://bucket").sign(NAME, 60)
    assert address
    assert f"/bucket/ab/{NAME}?" in address
    assert "X-Goog-Signature=" in address

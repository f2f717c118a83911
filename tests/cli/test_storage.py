"""`sd35 storage verify`, as an operator uses it."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from sd35.cli.main import main
from sd35.errors import StoreUnavailable
from sd35.images.png import write_png
from sd35.settings import load_settings
from sd35.storage.blobs.directory import DirectoryStore
from sd35.storage.database import open_database
from sd35.storage.images import ImageStore
from sd35.storage.names import name_of
from sd35.storage.storage import Storage
from sd35.storage.verification import verify_images

Run: TypeAlias = Callable[..., tuple[int, str, str]]
DIGESTS = [f"{number:02x}" * 32 for number in range(6)]
PNG = write_png(np.zeros((2, 2, 3), np.uint8), {})  # without a record: of a blurred image


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of the settings."""
    for name in ("SD35_DATABASE", "SD35_IMAGE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SD35_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def images(data: Path) -> Iterator[ImageStore]:
    """Six images of "me", in the files and the database of a service."""
    storage = Storage.open(load_settings({"data_dir": data}))
    for digest in DIGESTS:
        storage.images.add(name_of(digest, is_blurred=True), digest, "me", PNG)
    yield storage.images
    storage.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `sd35 storage verify` in this process, and returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sd35", "storage", "verify", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def state_of(directory: Path) -> dict[str, bytes]:
    """Return the content of all image files."""
    return {str(path): path.read_bytes() for path in (directory / "images").rglob("*") if path.is_file()}


def names(*numbers: int) -> list[str]:
    """Return the names of files."""
    return [name_of(DIGESTS[number], is_blurred=True) for number in numbers]


def test_intact_images_are_counted_and_the_exit_code_is_0(images: ImageStore, run: Run):
    del images
    assert run() == (
        0,
        "files checked: 6, damaged: 0, missing: 0; without recorded checksum: 0, without owner: 0\n",
        "",
    )


def test_damaged_and_missing_images_are_listed(images: ImageStore, data: Path, run: Run):
    """With the reason, as text and in JSON, with exit code 1. The store is not changed."""
    cut, changed, gone, before, unowned, _ = names(*range(6))
    images.blobs.replace(cut, b"")
    images.blobs.replace(changed, PNG + b"\0")
    images.blobs.delete(gone)
    images.ownership.delete(DIGESTS[3])  # as a version without checksums left it
    images.ownership.add(DIGESTS[3], "me", 1, 0.0)
    images.blobs.replace(before, PNG[:-1])
    images.ownership.delete(DIGESTS[4])
    found_before = state_of(data), [images.ownership.checksums(name) for name in names(*range(6))]
    code, said, _ = run()
    assert code == 1
    *lines, summary, remedy = said.splitlines()
    assert {line.partition(":")[0] for line in lines} == {
        *(f"damaged  {name}" for name in (cut, changed, before)),
        f"missing  {DIGESTS[2]}",
    }
    assert summary == "files checked: 5, damaged: 3, missing: 1; without recorded checksum: 2, without owner: 1"
    assert "requested again" in remedy
    code, said, _ = run("--json")
    report = json.loads(said)
    assert code == 1
    assert {each["file"] for each in report["damaged"]} == {cut, changed, before}
    assert all(each["reason"] for each in report["damaged"])
    assert (report["missing"], report["files"]) == ([DIGESTS[2]], 5)
    assert (report["without_checksum"], report["without_owner"]) == (2, 1)
    assert (state_of(data), [images.ownership.checksums(name) for name in names(*range(6))]) == found_before
    assert unowned in images.blobs.names()


def test_a_missing_database_is_an_error(data: Path, run: Run):
    """It is not created, and not reported as intact."""
    code, _, said = run()
    assert (code, data.exists()) == (2, False)
    assert f"database: {data / 'sd35.db'} does not exist. If the service has never run, start it once" in said


def test_a_service_that_was_never_started_has_nothing_to_verify(data: Path, run: Run):
    """The database exists if an API key was added, but the directory of the images does not."""
    open_database(str(data / "sd35.db")).close()
    code, _, said = run()
    assert (code, (data / "images").exists()) == (1, False)
    assert f"the image store {data / 'images'} cannot be listed: the directory does not exist" in said
    (data / "sd35.db").unlink()
    (data / "sd35.db").touch()
    code, _, said = run()
    assert code == 1
    assert f"the database {data / 'sd35.db'} cannot be used: it has no tables of sd35" in said


def test_a_missing_image_store_is_an_error(images: ImageStore, tmp_path: Path, run: Run):
    """Otherwise all its images would count as missing."""
    del images
    code, _, said = run("--image-store", str(tmp_path / "elsewhere"))
    assert code == 1
    assert f"the image store {tmp_path / 'elsewhere'} cannot be listed: the directory does not exist" in said
    assert "start it (`sd35 serve`). Otherwise restore the directory, or set data_dir or image_store" in said
    assert run("--image-store", "memory")[0] == 2


def test_an_image_that_is_removed_during_the_check_is_not_missing(images: ImageStore, monkeypatch: pytest.MonkeyPatch):
    """The service may be running."""
    plain = images.blobs.names

    def listed() -> Iterator[str]:
        images.remove(DIGESTS[0], "me")
        return plain()

    monkeypatch.setattr(images.blobs, "names", listed)
    report = verify_images(images)
    assert (report.files, report.missing, report.damaged) == (5, [], [])


@pytest.mark.parametrize("unreadable", [2, 3])
def test_a_file_that_cannot_be_read_is_damaged_and_a_store_that_fails_is_not(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch, unreadable: int
):
    """Two unreadable files in a row are damaged. A third ends the check with the store's error."""
    broken, plain = set(sorted(images.blobs.names())[:unreadable]), DirectoryStore._read  # noqa: SLF001
    monkeypatch.setattr(DirectoryStore, "names", lambda _: iter(sorted(names(*range(6)))))

    def read(self: Any, place: str) -> bytes | None:
        if place.rpartition("/")[2] in broken:
            raise StoreUnavailable("the image store cannot be read: Input/output error")
        return plain(self, place)

    monkeypatch.setattr(DirectoryStore, "_read", read)
    if unreadable == 3:
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            verify_images(images)
        return
    report = verify_images(images)
    assert {each.file for each in report.damaged} == broken
    assert report.missing == []

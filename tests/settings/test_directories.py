"""Errors for directories that cannot be written to. `make image-test` tests a directory of another owner."""

import os
from pathlib import Path

import pytest

from sd35.errors import InvalidSetting
from sd35.settings import load_settings
from sd35.settings.directories import check_writable
from sd35.storage.storage import Storage


def test_a_directory_that_can_be_written_to_or_created_is_accepted(tmp_path: Path):
    """Even if several levels are missing."""
    check_writable("data_dir", tmp_path)
    check_writable("data_dir", tmp_path / "not" / "yet")


def test_a_file_in_the_place_of_a_directory_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidSetting,
        match=r"^data_dir: .*file/data cannot be written to: .*file is not a directory; choose another path$",
    ):
        check_writable("data_dir", tmp_path / "file" / "data")


def test_the_error_of_a_foreign_directory_names_its_owner_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One line with the directory, its owner, the user of the process, and two remedies."""
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    monkeypatch.setattr("os.getegid", lambda: 54322)
    owner = f"{os.stat(tmp_path).st_uid}:{os.stat(tmp_path).st_gid}"  # noqa: PTH116  not the way of the tested code
    with pytest.raises(InvalidSetting) as found:
        check_writable("data_dir", tmp_path / "data")
    message = str(found.value)
    assert message.startswith(f"data_dir: {tmp_path / 'data'} cannot be written to: {tmp_path} belongs to {owner} ")
    for part in ("this process is 54321:54322", "chown -R 54321:54322", f"docker run --user {owner}"):
        assert part in message
    assert "\n" not in message


def test_the_data_directory_is_checked_first_and_only_if_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    data = tmp_path / "data"
    with pytest.raises(InvalidSetting, match=r"^data_dir: .*/data cannot be written to: .* belongs to "):
        Storage.open(load_settings({"data_dir": data}))
    elsewhere = {"database": "memory", "image_store": "memory", "link_secret": "0123456789abcdef"}
    Storage.open(load_settings({"data_dir": data, **elsewhere})).close()
    assert not data.exists()


def test_the_error_of_a_directory_without_write_access_for_its_owner_names_chmod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Changing the owner would not help."""
    tmp_path.chmod(0o500)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InvalidSetting, match=rf"but has mode 500; run `chmod u\+rwx {tmp_path}`$"):
        check_writable("data_dir", tmp_path / "data")

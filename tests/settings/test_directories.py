"""Directories that cannot be written to: whose they are, and what to do. `make image-test` has a foreign one."""

import os
from pathlib import Path

import pytest

from sd35.errors import InvalidSetting
from sd35.settings import load_settings
from sd35.settings.directories import check_writable
from sd35.storage.storage import Storage


def test_what_can_be_written_or_made_is_well(tmp_path: Path):
    """Also where only its parent's parent is there yet."""
    check_writable("data_dir", tmp_path)
    check_writable("data_dir", tmp_path / "not" / "yet")


def test_a_file_in_the_way_is_named(tmp_path: Path):
    """No directory can be made inside a file."""
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidSetting, match=r"^data_dir: .*file/data cannot be written to: .*file is not a directory$"
    ):
        check_writable("data_dir", tmp_path / "file" / "data")


def test_the_error_of_a_foreign_directory_names_its_owner_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One line says which directory, who owns it, who runs, and both ways out."""
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    monkeypatch.setattr("os.getegid", lambda: 54322)
    owner = f"{os.stat(tmp_path).st_uid}:{os.stat(tmp_path).st_gid}"  # noqa: PTH116  not what the code asks
    with pytest.raises(InvalidSetting) as found:
        check_writable("data_dir", tmp_path / "data")
    said = str(found.value)
    assert said.startswith(f"data_dir: {tmp_path / 'data'} cannot be written to: {tmp_path} belongs to {owner} ")
    for words in ("this process is 54321:54322", "chown -R 54321:54322", f"docker run --user {owner}"):
        assert words in said
    assert "\n" not in said


def test_the_service_looks_before_it_opens_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where data are kept elsewhere, or nowhere, the folder is nobody's concern."""
    monkeypatch.setattr("os.access", lambda *_: False)
    data = tmp_path / "data"
    with pytest.raises(InvalidSetting, match=r"^data_dir: .*/data cannot be written to: .* belongs to "):
        Storage.open(load_settings({"data_dir": data}))
    elsewhere = {"database": "memory", "image_store": "memory", "link_secret": "0123456789abcdef"}
    Storage.open(load_settings({"data_dir": data, **elsewhere})).close()
    assert not data.exists()

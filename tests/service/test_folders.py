"""Folders that cannot be written to are named at the start, with whose they are."""

import os
from pathlib import Path

import pytest

from sd35.errors import InvalidSetting
from sd35.service.folders import check_folders
from sd35.settings import load_settings


def test_folders_are_made(tmp_path: Path):
    """Both, with those above them."""
    settings = load_settings({"cache_dir": tmp_path / "a" / "cache", "data_dir": tmp_path / "a" / "data"})
    check_folders(settings)
    assert settings.cache_dir.is_dir()
    assert settings.data_dir.is_dir()


def test_a_folder_of_another_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whose it is, who wants to write, and how to change either."""
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may do anything
    with pytest.raises(InvalidSetting, match=r"cache_dir: .* cannot be written to\. .* is user \d+'s, .*chown -R \d+"):
        check_folders(load_settings({"cache_dir": tmp_path, "data_dir": tmp_path}))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    """With the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match=r"data_dir: .*/file/data cannot be made: Not a directory"):
        check_folders(load_settings({"cache_dir": tmp_path, "data_dir": tmp_path / "file" / "data"}))

"""Folders that are built: whole or not there, once for all who want them, and never another's."""

import threading
from pathlib import Path

import pytest

from sd35.checkpoints.built import MANIFEST, build, is_built

KEY = {"revision": "abc", "precision": "fp8"}


def _write(folder: Path) -> None:
    (folder / "graph").write_bytes(b"nodes")


def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    """The second who asks for the same finds it."""
    assert build(tmp_path / "one", KEY, _write)
    assert is_built(tmp_path / "one", KEY, thoroughly=True)
    assert not build(tmp_path / "one", KEY, lambda _: pytest.fail("built again"))


def test_another_key_is_not_taken_for_it_and_builds_anew(tmp_path: Path) -> None:
    """What was built from something else counts as not there."""
    build(tmp_path / "one", KEY, _write)
    other = {**KEY, "revision": "def"}
    assert not is_built(tmp_path / "one", other)
    assert build(tmp_path / "one", other, _write)
    assert not is_built(tmp_path / "one", KEY)


@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "no manifest"])
def test_a_harmed_folder_counts_as_not_there(tmp_path: Path, harm: str) -> None:
    """Files that were cut off, changed or deleted are found; sizes alone do not tell a change."""
    build(tmp_path / "one", KEY, _write)
    graph = tmp_path / "one" / "graph"
    if harm in {"cut", "changed"}:
        graph.write_bytes(b"node" if harm == "cut" else b"nodez")
    else:
        (graph if harm == "missing" else tmp_path / "one" / MANIFEST).unlink()
    assert not is_built(tmp_path / "one", KEY, thoroughly=True)
    assert is_built(tmp_path / "one", KEY) == (harm == "changed")


def test_what_fails_leaves_the_place_as_it_was(tmp_path: Path) -> None:
    """An error in the middle leaves nothing half-built, and what was there before stays."""
    build(tmp_path / "one", KEY, _write)

    def fail(folder: Path) -> None:
        _write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build(tmp_path / "one", {**KEY, "precision": "bf16"}, fail)
    assert is_built(tmp_path / "one", KEY, thoroughly=True)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["one"]


def test_of_two_at_once_one_builds_and_the_other_finds_it(tmp_path: Path) -> None:
    """They do not write into each other's files."""
    is_building, may_end = threading.Event(), threading.Event()
    built: list[bool] = []

    def slowly(folder: Path) -> None:
        is_building.set()
        assert may_end.wait(20)
        _write(folder)

    first = threading.Thread(target=lambda: built.append(build(tmp_path / "one", KEY, slowly)))
    second = threading.Thread(target=lambda: built.append(build(tmp_path / "one", KEY, slowly)))
    first.start()
    assert is_building.wait(20)
    second.start()
    may_end.set()
    first.join()
    second.join()
    assert sorted(built) == [False, True]

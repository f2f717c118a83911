"""Folders that are built: whole or not there, once for all who want them, and never another's."""

import threading
from pathlib import Path

import pytest

from sd35.checkpoints.build_cache import MANIFEST, build, fingerprint_of, is_built
from sd35.errors import BuildFailed

KEY = {"revision": "abc", "precision": "fp8"}


def _write(folder: Path) -> None:
    (folder / "graph").write_bytes(b"nodes")


def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    """The second who asks for the same finds it."""
    assert build(tmp_path / "one", KEY, _write)
    assert is_built(tmp_path / "one", KEY, verify_checksums=True)
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
    assert not is_built(tmp_path / "one", KEY, verify_checksums=True)
    assert is_built(tmp_path / "one", KEY) == (harm == "changed")


def test_what_fails_leaves_the_place_as_it_was(tmp_path: Path) -> None:
    """An error in the middle leaves nothing half-built, and what was there before stays."""
    build(tmp_path / "one", KEY, _write)

    def fail(folder: Path) -> None:
        _write(folder)
        raise OSError("disk full")

    with pytest.raises(BuildFailed, match="one cannot be built: disk full"):
        build(tmp_path / "one", {**KEY, "precision": "bf16"}, fail)
    assert is_built(tmp_path / "one", KEY, verify_checksums=True)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["one"]


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"key": {}, "files": {}}', '{"key": {}, "files": []}', "[" * 99_999])
def test_a_manifest_that_is_none_counts_as_nothing_built(tmp_path: Path, manifest: str) -> None:
    """Whatever it holds, and whatever lies where building takes place, it is built anew."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / MANIFEST).write_text(manifest)
    (tmp_path / ".one.incomplete").write_text("not a folder")
    (tmp_path / ".one.old").write_text("nor this")
    assert not is_built(tmp_path / "one", {})
    assert build(tmp_path / "one", KEY, _write)
    assert is_built(tmp_path / "one", KEY, verify_checksums=True)


def test_a_place_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    """As one that is full, or that nobody may write to."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildFailed, match="file/one cannot be built: "):
        build(tmp_path / "file" / "one", KEY, _write)


def test_a_fingerprint_is_the_files(tmp_path: Path) -> None:
    """The same files have the same, other files another, and what is not built has none."""
    assert fingerprint_of(tmp_path / "one") is None
    build(tmp_path / "one", KEY, _write)
    build(tmp_path / "two", {"other": 1}, _write)

    def write_others(folder: Path) -> None:
        (folder / "graph").write_bytes(b"others")

    build(tmp_path / "three", KEY, write_others)
    first, second, third = (fingerprint_of(tmp_path / name) for name in ("one", "two", "three"))
    assert first == second != third


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

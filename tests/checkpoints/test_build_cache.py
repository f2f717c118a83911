"""The build cache: folders are built once, atomically, and only used for their key."""

import threading
from pathlib import Path

import pytest

from sd35.checkpoints.build_cache import MANIFEST, build, fingerprint_of, is_built
from sd35.errors import BuildFailed

KEY = {"revision": "abc", "precision": "fp8"}


def _write(folder: Path) -> None:
    (folder / "graph").write_bytes(b"nodes")


def test_a_complete_folder_is_not_built_again(tmp_path: Path) -> None:
    """A second build with the same key reuses the folder."""
    assert build(tmp_path / "one", KEY, _write)
    assert is_built(tmp_path / "one", KEY, verify_checksums=True)
    assert not build(tmp_path / "one", KEY, lambda _: pytest.fail("built again"))


def test_a_folder_with_another_key_is_rebuilt(tmp_path: Path) -> None:
    """It counts as missing."""
    build(tmp_path / "one", KEY, _write)
    other = {**KEY, "revision": "def"}
    assert not is_built(tmp_path / "one", other)
    assert build(tmp_path / "one", other, _write)
    assert not is_built(tmp_path / "one", KEY)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no manifest"])
def test_a_damaged_folder_counts_as_missing(tmp_path: Path, damage: str) -> None:
    """Truncated, changed and deleted files are detected. A changed file of equal size is only detected by checksum."""
    build(tmp_path / "one", KEY, _write)
    graph = tmp_path / "one" / "graph"
    if damage in {"cut", "changed"}:
        graph.write_bytes(b"node" if damage == "cut" else b"nodez")
    else:
        (graph if damage == "missing" else tmp_path / "one" / MANIFEST).unlink()
    assert not is_built(tmp_path / "one", KEY, verify_checksums=True)
    assert is_built(tmp_path / "one", KEY) == (damage == "changed")


def test_a_failed_build_leaves_the_previous_folder_unchanged(tmp_path: Path) -> None:
    """It also leaves no partial folder."""
    build(tmp_path / "one", KEY, _write)

    def fail(folder: Path) -> None:
        _write(folder)
        raise OSError("disk full")

    with pytest.raises(BuildFailed, match="one cannot be built: disk full"):
        build(tmp_path / "one", {**KEY, "precision": "bf16"}, fail)
    assert is_built(tmp_path / "one", KEY, verify_checksums=True)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["one"]


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"key": {}, "files": {}}', '{"key": {}, "files": []}', "[" * 99_999])
def test_an_invalid_manifest_causes_a_rebuild(tmp_path: Path, manifest: str) -> None:
    """Files that are left over in the temporary paths do not prevent it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / MANIFEST).write_text(manifest)
    (tmp_path / ".one.incomplete").write_text("not a folder")
    (tmp_path / ".one.old").write_text("nor this")
    assert not is_built(tmp_path / "one", {})
    assert build(tmp_path / "one", KEY, _write)
    assert is_built(tmp_path / "one", KEY, verify_checksums=True)


def test_an_unwritable_folder_raises_build_failed(tmp_path: Path) -> None:
    """The error names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildFailed, match="file/one cannot be built: "):
        build(tmp_path / "file" / "one", KEY, _write)


def test_a_fingerprint_depends_on_the_files_only(tmp_path: Path) -> None:
    """Equal files have equal fingerprints, and a folder that is not built has none."""
    assert fingerprint_of(tmp_path / "one") is None
    build(tmp_path / "one", KEY, _write)
    build(tmp_path / "two", {"other": 1}, _write)

    def write_others(folder: Path) -> None:
        (folder / "graph").write_bytes(b"others")

    build(tmp_path / "three", KEY, write_others)
    first, second, third = (fingerprint_of(tmp_path / name) for name in ("one", "two", "three"))
    assert first == second != third


def test_concurrent_builds_of_one_folder_build_it_once(tmp_path: Path) -> None:
    """The second build waits for the first and reuses its folder."""
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

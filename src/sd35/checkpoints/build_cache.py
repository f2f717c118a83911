"""Folders of what was built from a checkpoint: graphs, engines. Whole or not there, and never taken for another's.

Each holds a manifest: the key, which is all that its content follows from, and its files with their checksums. A folder
whose key is another, or whose files are not those, counts as not there. Who reads it may know less of the key than who
built it: of what both know, all has to agree.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import BuildFailed
from sd35.parsing import read_json

Key: TypeAlias = Mapping[str, Any]
"""JSON values by name: what is built from, by what, for what."""

MANIFEST = "manifest.json"


def home_of(cache_dir: Path, checkpoint: Checkpoint) -> Path:
    """Where all that was built from a checkpoint lies; another revision of it has another place."""
    return cache_dir / "compiled" / f"{checkpoint.name}-{checkpoint.revision[:16]}"


def is_built(folder: Path, key: Key, *, thoroughly: bool = False) -> bool:
    """Whether the folder holds what the key says, all of it; `thoroughly` compares checksums, not sizes alone."""
    try:
        manifest = read_json(folder / MANIFEST)
        if {**manifest["key"], **json.loads(json.dumps(key))} != manifest["key"]:
            return False
        files = manifest["files"]
        return bool(files) and all(
            _is_intact(folder / name, size, checksum if thoroughly else None)
            for name, (size, checksum) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def key_of(folder: Path) -> Key:
    """The whole key of a folder that `is_built`."""
    key: Key = read_json(folder / MANIFEST)["key"]
    return key


def fingerprint_of(folder: Path) -> str | None:
    """Eight hexadecimal digits that stand for all files of a folder; None where nothing was built there."""
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:8]


def build(folder: Path, key: Key, make: Callable[[Path], None]) -> bool:
    """Have `make` fill the folder, unless it is built; whether it had to.

    It fills another folder beside, which takes the place when it is whole. Of several processes that want the same,
    one builds and the others wait. What `make` raises leaves the place as it was. Raises BuildFailed where the folder
    cannot be written: no room, no right to.
    """
    if is_built(folder, key, thoroughly=True):  # also where nothing can be written
        return False
    try:
        return _build(folder, key, make)
    except OSError as error:
        raise BuildFailed(f"{folder} cannot be built: {error.strerror or error}") from error


def _build(folder: Path, key: Key, make: Callable[[Path], None]) -> bool:
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if is_built(folder, key, thoroughly=True):
            return False
        beside = folder.with_name(f".{folder.name}.incomplete")  # nobody else's: the lock is held
        _remove(beside)
        beside.mkdir()
        try:
            make(beside)
            _write_manifest(beside, key)
            _take_place(beside, folder)
        finally:
            _remove(beside)
    return True


def _take_place(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _remove(old)


def _remove(path: Path) -> None:
    """A folder, or a file in its place."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _write_manifest(folder: Path, key: Key) -> None:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _sha256(path)]
        _flush(path)
    (folder / MANIFEST).write_text(json.dumps({"key": dict(key), "files": files}, indent=2) + "\n", encoding="utf-8")
    _flush(folder / MANIFEST)


def _flush(path: Path) -> None:
    """To the disk, so that the folder's new name never stands for files that a crash emptied."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _is_intact(path: Path, size_bytes: int, checksum: str | None) -> bool:
    return path.stat().st_size == size_bytes and (checksum is None or _sha256(path) == checksum)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A cache of folders that are built from a checkpoint, such as ONNX graphs and TensorRT engines.

Each folder has a manifest: the key that it was built with, and the sizes and checksums of its files. A folder counts as
built if its files match the manifest, and the manifest has every field of the key that the caller passes. A reader may
pass fewer fields than the builder did.
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
"""Everything that determines a folder's content, such as the revision and the precision: JSON values by name."""

MANIFEST = "manifest.json"


def build_root(cache_dir: Path, checkpoint: Checkpoint) -> Path:
    """Return the directory for all builds of a checkpoint's revision."""
    return cache_dir / "compiled" / f"{checkpoint.name}-{checkpoint.revision[:16]}"


def is_built(folder: Path, key: Key, *, verify_checksums: bool = False) -> bool:
    """Return whether a folder is complete and was built with these fields of the key. By default, checks only sizes."""
    try:
        manifest = read_json(folder / MANIFEST)
        as_stored = json.loads(json.dumps(key))  # JSON has lists instead of tuples
        if {**manifest["key"], **as_stored} != manifest["key"]:  # a given field differs from the stored one
            return False
        files = manifest["files"]
        return bool(files) and all(
            _is_intact(folder / name, size, checksum if verify_checksums else None)
            for name, (size, checksum) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a missing or damaged manifest or file
        return False


def read_key(folder: Path) -> Key:
    """Return all fields of the key that a folder was built with. Only for folders that `is_built` accepts."""
    key: Key = read_json(folder / MANIFEST)["key"]
    return key


def fingerprint_of(folder: Path) -> str | None:
    """Return eight hexadecimal digits that identify a folder's files, or None if it has no valid manifest."""
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:8]


def build(folder: Path, key: Key, write: Callable[[Path], None]) -> bool:
    """Build a folder and return True. If it is already built, return False.

    `write` fills a temporary folder, which replaces `folder` when it is complete. If several processes build the same
    folder, one of them builds it and the others wait. An error in `write` leaves `folder` unchanged.

    Raises BuildFailed for an OSError, for example if the disk is full. Other errors of `write` pass unchanged.
    """
    if is_built(folder, key, verify_checksums=True):  # checked without a lock, because the cache may be read-only
        return False
    try:
        return _build_locked(folder, key, write)
    except OSError as error:
        reason = error.strerror or error
        raise BuildFailed(f"{folder} cannot be built: {reason}; correct this, or set another cache_dir") from error


def _build_locked(folder: Path, key: Key, write: Callable[[Path], None]) -> bool:
    """Build a folder under a lock. Return False if another process has built it while this one waited for the lock."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if is_built(folder, key, verify_checksums=True):
            return False
        # A temporary folder that exists already is from an interrupted build: nobody else writes it without the lock.
        temporary = folder.with_name(f".{folder.name}.incomplete")
        _remove(temporary)
        temporary.mkdir()
        try:
            write(temporary)
            _write_manifest(temporary, key)
            _replace(temporary, folder)
        finally:
            _remove(temporary)
    return True


def _replace(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. An existing folder is deleted after the rename."""
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a folder or a file, if it exists."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _write_manifest(folder: Path, key: Key) -> None:
    """Write the key, and the size and SHA-256 of each file. Flush all files to the disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _sha256(path)]
        _flush(path)
    (folder / MANIFEST).write_text(json.dumps({"key": dict(key), "files": files}, indent=2) + "\n", encoding="utf-8")
    _flush(folder / MANIFEST)


def _flush(path: Path) -> None:
    """Flush a file to the disk, so that a crash after the rename cannot leave an empty file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _is_intact(path: Path, size_bytes: int, checksum: str | None) -> bool:
    """Return whether a file has this size and, if given, this checksum. Raises OSError if it does not exist."""
    return path.stat().st_size == size_bytes and (checksum is None or _sha256(path) == checksum)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A cache of folders that are built from a checkpoint, such as graphs and engines.

Each folder has a manifest with its key, which determines the content, and the checksums of its files. A folder counts
as built only if its key and its files match. A reader may pass fewer fields of the key than the builder; all of them
must match.
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
"""The JSON values, by name, that determine a folder's content."""

MANIFEST = "manifest.json"


def build_root(cache_dir: Path, checkpoint: Checkpoint) -> Path:
    """Return the directory for all builds of a checkpoint's revision."""
    return cache_dir / "compiled" / f"{checkpoint.name}-{checkpoint.revision[:16]}"


def is_built(folder: Path, key: Key, *, verify_checksums: bool = False) -> bool:
    """Return whether a folder is complete and matches the key. By default, checks file sizes but not checksums."""
    try:
        manifest = read_json(folder / MANIFEST)
        if {**manifest["key"], **json.loads(json.dumps(key))} != manifest["key"]:
            return False
        files = manifest["files"]
        return bool(files) and all(
            _is_intact(folder / name, size, checksum if verify_checksums else None)
            for name, (size, checksum) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_key(folder: Path) -> Key:
    """Return all fields of a folder's key. The folder must be built."""
    key: Key = read_json(folder / MANIFEST)["key"]
    return key


def fingerprint_of(folder: Path) -> str | None:
    """Return eight hexadecimal digits that identify a folder's files, or None if it is not built."""
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:8]


def build(folder: Path, key: Key, write: Callable[[Path], None]) -> bool:
    """Build a folder unless it is already built. Return whether it was built by this call.

    `write` fills a temporary folder, which replaces `folder` when it is complete. If several processes build the same
    folder, one does it and the others wait. An error in `write` leaves `folder` unchanged.

    Raises BuildFailed if the folder cannot be written.
    """
    if is_built(folder, key, verify_checksums=True):  # before locking, which a read-only cache does not allow
        return False
    try:
        return _build(folder, key, write)
    except OSError as error:
        raise BuildFailed(f"{folder} cannot be built: {error.strerror or error}") from error


def _build(folder: Path, key: Key, write: Callable[[Path], None]) -> bool:
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if is_built(folder, key, verify_checksums=True):
            return False
        # If it exists, an earlier build was interrupted: nobody else writes it while this process has the lock.
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
    return path.stat().st_size == size_bytes and (checksum is None or _sha256(path) == checksum)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

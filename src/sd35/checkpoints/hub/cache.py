"""Hugging Face's cache on this machine: the paths of a checkpoint's files, their state, and their removal.

In the cache (https://huggingface.co/docs/huggingface_hub/guides/manage-cache), `blobs/` has files named by their
checksums. `snapshots/<commit>/`, the snapshot of a commit, links to them. Other programs use the same files.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from sd35.checkpoints.hub.environment import hub_constants
from sd35.checkpoints.layout import checkpoint_files, missing_files
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import CheckpointError
from sd35.settings.directories import why_not_writable

if TYPE_CHECKING:
    from hashlib import _Hash

_PARTIAL_SUFFIX = ".incomplete"
_CHECKSUM = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class CachePaths:
    """The directories of a repository, of the snapshot of one commit, and of locks. They may not exist."""

    repository: Path
    snapshot: Path
    locks: Path

    def blob(self, checksum: str) -> Path:
        """Return the path of the complete file with this checksum."""
        return self.repository / "blobs" / checksum

    def partial(self, checksum: str) -> Path:
        """Return the path of an incomplete download. Older versions of Hugging Face's library can resume it too."""
        return self.repository / "blobs" / (checksum + _PARTIAL_SUFFIX)


@dataclass(frozen=True)
class CacheStatus:
    """The state of a checkpoint on disk.

    Attributes:
        is_complete: Whether no file is missing, so that it can be opened.
        stored_bytes: The size of its files, including incomplete downloads.
        directory: The snapshot, which may not exist.
    """

    is_complete: bool
    stored_bytes: int
    directory: Path


def cache_paths(entry: RegisteredCheckpoint) -> CachePaths:
    """Return the paths of a registered checkpoint in Hugging Face's cache: `HF_HUB_CACHE`, or `hub` below `HF_HOME`.

    Raises InvalidSetting if an environment variable of Hugging Face's library is malformed.
    """
    constants = hub_constants()
    cache, folder = Path(constants.HF_HUB_CACHE), f"models--{entry.repository.replace('/', '--')}"
    return CachePaths(cache / folder, cache / folder / "snapshots" / entry.revision, cache / ".locks" / folder)


def cache_status(entry: RegisteredCheckpoint) -> CacheStatus:
    """Return the state of a registered checkpoint on disk. Raises CheckpointError if the cache cannot be read."""
    paths = cache_paths(entry)
    with disk_errors(entry, "looked up in the cache"):
        files = [paths.snapshot / path for path in snapshot_files(paths)]
        stored = sum(path.stat().st_size for path in (*files, *_partial_files(paths)) if path.exists())
        return CacheStatus(not missing_files(paths.snapshot), stored, paths.snapshot)


@contextmanager
def disk_errors(entry: RegisteredCheckpoint, action: str) -> Iterator[None]:
    """Convert OSError to CheckpointError. `action` is a participle for the message "NAME cannot be ACTION"."""
    try:
        yield
    except OSError as error:
        file, reason = error.filename or cache_paths(entry).repository, error.strerror or error
        raise CheckpointError(f"{entry.name} cannot be {action} ({file}: {reason}); correct this and retry") from error


def snapshot_files(paths: CachePaths) -> list[str]:
    """List a checkpoint's files in the snapshot, as relative paths. Includes links to missing files."""
    files = (path for path in paths.snapshot.rglob("*") if not path.is_dir())
    return checkpoint_files(path.relative_to(paths.snapshot).as_posix() for path in files)


def is_checksum(text: object) -> TypeGuard[str]:
    """Return whether a value is a SHA-256 or SHA-1 in hexadecimal. The cache uses these as file names."""
    return isinstance(text, str) and _CHECKSUM.fullmatch(text) is not None


def recorded_checksum(path: Path) -> str | None:
    """Return the checksum of a blob from its name, if the path is a link to the blob. Otherwise return None."""
    if path.is_symlink() and _CHECKSUM.fullmatch(name := path.readlink().name):
        return name
    return None


def digest_for(checksum: str, size_bytes: int) -> "_Hash":
    """Create the digest to compare with a checksum: SHA-256 for large files, git's SHA-1 of a blob for small files."""
    if len(checksum) == 64:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)


def discard(path: Path) -> None:
    """Delete a file of a snapshot and the blob that it links to, so that the next download fetches it again."""
    if path.is_symlink():
        path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def remove(entry: RegisteredCheckpoint) -> int:
    """Delete a registered checkpoint's snapshot, its files, and incomplete downloads. Return the number of freed bytes.

    Files that snapshots of other commits share are kept. Permissions are checked before anything is deleted.

    Raises CheckpointError if the checkpoint is not on disk, or the cache is damaged or not writable.
    """
    paths = cache_paths(entry)
    with disk_errors(entry, "removed"):
        if not _partial_files(paths) and not paths.snapshot.is_dir():
            raise CheckpointError(f"{entry.name} is not on disk: there is no directory {paths.snapshot} to remove")
        # Hugging Face's library does not raise an error for a read-only directory: it only logs a traceback.
        for folder in (paths.repository, *(path for path in paths.repository.rglob("*") if path.is_dir())):
            if why := why_not_writable(folder):
                raise CheckpointError(f"{entry.name} cannot be removed: {why}")
        return _delete_revision(entry, paths)


def _delete_revision(entry: RegisteredCheckpoint, paths: CachePaths) -> int:
    """Delete incomplete downloads, the snapshot, and the files that only it uses. Return the number of freed bytes.

    Raises CheckpointError if Hugging Face's library does not recognise the repository.
    """
    from huggingface_hub import scan_cache_dir

    freed = 0
    for file in _partial_files(paths):
        freed += file.stat().st_size
        file.unlink(missing_ok=True)
    for path in snapshot_files(paths):
        if not (paths.snapshot / path).exists():
            (paths.snapshot / path).unlink()  # the library refuses a repository with a link to a missing file
    if paths.snapshot.is_dir():
        scanned = scan_cache_dir(paths.repository.parent)
        # Forks can have the same commits, so only this repository may be searched.
        own = frozenset(repo for repo in scanned.repos if repo.repo_path == paths.repository.resolve())
        strategy = replace(scanned, repos=own).delete_revisions(entry.revision)
        strategy.execute()
        freed += strategy.expected_freed_size
        if paths.snapshot.is_dir():
            why = "; ".join(map(str, scanned.warnings))
            raise CheckpointError(f"{paths.repository} is damaged ({why}); delete this directory by hand")
    return freed


def _partial_files(paths: CachePaths) -> list[Path]:
    """List incomplete downloads with the names that this program uses. Hugging Face's library now uses other names."""
    found = (paths.repository / "blobs").glob("*" + _PARTIAL_SUFFIX)
    return sorted(path for path in found if _CHECKSUM.fullmatch(path.name.removesuffix(_PARTIAL_SUFFIX)))

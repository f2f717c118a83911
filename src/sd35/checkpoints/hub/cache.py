"""Hugging Face's cache on this machine: where a checkpoint's files lie, what is there, and how to remove it.

Its layout is documented (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): `blobs/` holds files under
their checksums, `snapshots/<commit>/` links to them. Other programs use the same files.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from sd35.checkpoints.hub.environment import hub_constants
from sd35.checkpoints.layout import missing, needed
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import CheckpointError
from sd35.settings.directories import why_not_writable

if TYPE_CHECKING:
    from hashlib import _Hash

_PART_FILE = ".incomplete"
_CHECKSUM = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """Where the files of one repository and revision lie, whether they are there or not."""

    repository: Path
    snapshot: Path
    locks: Path

    def blob(self, checksum: str) -> Path:
        """The file of that checksum, which is its name there."""
        return self.repository / "blobs" / checksum

    def part_of(self, checksum: str) -> Path:
        """What has arrived of it; older programs of Hugging Face go on with a file of this name too."""
        return self.repository / "blobs" / (checksum + _PART_FILE)


@dataclass(frozen=True)
class Holding:
    """What is on disk of a checkpoint. `is_whole`: it can be opened. `stored_bytes` counts partial files too."""

    is_whole: bool
    stored_bytes: int
    directory: Path


def place_of(registered: RegisteredCheckpoint) -> Place:
    """Where a registered checkpoint lies: in `HF_HUB_CACHE`, or `hub` in `HF_HOME`, as for other programs.

    Raises InvalidSetting if a variable of the hub's library is malformed.
    """
    constants = hub_constants()
    cache, folder = Path(constants.HF_HUB_CACHE), f"models--{registered.repository.replace('/', '--')}"
    return Place(cache / folder, cache / folder / "snapshots" / registered.revision, cache / ".locks" / folder)


def holding_of(registered: RegisteredCheckpoint) -> Holding:
    """What is on disk of a registered checkpoint. Raises CheckpointError if the cache cannot be read."""
    place = place_of(registered)
    with disk_errors(registered, "looked for in the cache"):
        files = [place.snapshot / path for path in files_of(place)]
        stored = sum(path.stat().st_size for path in (*files, *_parts(place)) if path.exists())
        return Holding(not missing(place.snapshot), stored, place.snapshot)


@contextmanager
def disk_errors(registered: RegisteredCheckpoint, action: str) -> Iterator[None]:
    """Turn what the disk raises into CheckpointError; `action` completes "the registered checkpoint cannot be ..."."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CheckpointError(f"{registered.name} cannot be {action}: {where}{error.strerror or error}") from error


def files_of(place: Place) -> list[str]:
    """The paths of a checkpoint's files in the snapshot, links to what is not there any more included."""
    paths = place.snapshot.rglob("*")
    return needed(path.relative_to(place.snapshot).as_posix() for path in paths if not path.is_dir())


def is_checksum(text: object) -> TypeGuard[str]:
    """Whether it is a SHA-256 or SHA-1 in hexadecimal, as the cache names files by."""
    return isinstance(text, str) and _CHECKSUM.fullmatch(text) is not None


def recorded_checksum(path: Path) -> str | None:
    """The checksum under which the cache holds a file, where it is a link to it."""
    if path.is_symlink() and _CHECKSUM.fullmatch(name := path.readlink().name):
        return name
    return None


def digest_for(checksum: str, size_bytes: int) -> "_Hash":
    """An empty digest of the checksum's kind: SHA-256 of a large file, or git's SHA-1 of a small one."""
    if len(checksum) == 64:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)


def discard(path: Path) -> None:
    """Delete a file of a snapshot with what it links to, so that it is fetched again."""
    if path.is_symlink():
        path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def remove(registered: RegisteredCheckpoint) -> int:
    """Delete a registered checkpoint's revision and what arrived of it in part; files that other revisions share stay.

    Returns the bytes that were freed. Raises CheckpointError where nothing of it is on disk, the cache is broken, or it
    cannot be written to; what can be known of that beforehand is, and then nothing is deleted.
    """
    place = place_of(registered)
    with disk_errors(registered, "removed"):
        if not _parts(place) and not place.snapshot.is_dir():
            raise CheckpointError(f"{registered.name} is not on disk ({place.snapshot})")
        # The hub's library goes on where a directory is read-only, and logs tracebacks.
        for folder in (place.repository, *(path for path in place.repository.rglob("*") if path.is_dir())):
            if why := why_not_writable(folder):
                raise CheckpointError(f"{registered.name} cannot be removed: {why}")
        return _remove(registered, place)


def _remove(registered: RegisteredCheckpoint, place: Place) -> int:
    from huggingface_hub import scan_cache_dir

    freed = 0
    for part in _parts(place):
        freed += part.stat().st_size
        part.unlink(missing_ok=True)
    for path in files_of(place):
        if not (place.snapshot / path).exists():
            (place.snapshot / path).unlink()  # a link to nothing, with which the library refuses the whole repository
    if place.snapshot.is_dir():
        found = scan_cache_dir(place.repository.parent)
        mine = frozenset(repository for repository in found.repos if repository.repo_path == place.repository.resolve())
        strategy = replace(found, repos=mine).delete_revisions(registered.revision)  # a fork has the same commits
        strategy.execute()
        freed += strategy.expected_freed_size
        if place.snapshot.is_dir():
            why = "; ".join(map(str, found.warnings))
            raise CheckpointError(f"{place.repository} is not in order ({why}); delete it by hand")
    return freed


def _parts(place: Place) -> list[Path]:
    """Files that arrived in part and nothing fetches now under a name of its own."""
    found = (place.repository / "blobs").glob("*" + _PART_FILE)
    return sorted(path for path in found if _CHECKSUM.fullmatch(path.name.removesuffix(_PART_FILE)))

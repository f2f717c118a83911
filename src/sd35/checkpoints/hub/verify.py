"""Verify a checkpoint on disk: compare the checksum of each file with the recorded one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sd35.checkpoints.hub.cache import cache_paths, digest_for, disk_errors, recorded_checksum, snapshot_files
from sd35.checkpoints.hub.plan import OnBytes, list_files
from sd35.checkpoints.layout import missing_files
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import CheckpointError

_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Verification:
    """The result of a verification: the paths of files, relative to the snapshot, by their state.

    `unknown` lists files that exist, but have no recorded checksum to compare with.
    """

    intact: tuple[str, ...]
    damaged: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


def verify_checkpoint(entry: RegisteredCheckpoint, *, offline: bool, on_bytes: OnBytes) -> Verification:
    """Compare each file's checksum with the hub's list. If `offline`, compare it with the file's name in the cache.

    `on_bytes` is called with the size of each block that was read.

    Raises DownloadFailed if the hub cannot be used, CheckpointError if the checkpoint is not on disk or a file cannot
    be read.
    """
    snapshot = cache_paths(entry).snapshot
    with disk_errors(entry, "verified"):
        if not snapshot.is_dir():
            raise CheckpointError(f"{entry.name} is not on disk; download it with: sd35 pull {entry.name}")
        if offline:
            files = snapshot_files(cache_paths(entry))
            expected = {path: recorded_checksum(snapshot / path) for path in files}
            missing = set(missing_files(snapshot))
        else:
            expected = {file.path: file.checksum for file in list_files(entry)}
            missing = set()
        return _compare(snapshot, expected, missing, on_bytes)


def _compare(snapshot: Path, expected: Mapping[str, str | None], missing: set[str], on_bytes: OnBytes) -> Verification:
    """Compare the files in a snapshot with their expected checksums, by path. None stands for an unknown checksum.

    `missing` has paths that are known to be missing.
    """
    missing = missing | {path for path in expected if not (snapshot / path).exists()}
    present = {path: checksum for path, checksum in expected.items() if path not in missing}
    recorded = {path: checksum for path, checksum in present.items() if checksum}
    intact = [path for path, checksum in recorded.items() if _has_checksum(snapshot / path, checksum, on_bytes)]
    return Verification(
        intact=tuple(intact),
        damaged=tuple(path for path in recorded if path not in intact),
        missing=tuple(sorted(missing)),
        unknown=tuple(path for path in present if path not in recorded),
    )


def _has_checksum(path: Path, checksum: str, on_bytes: OnBytes) -> bool:
    """Read a file and return whether it has the checksum."""
    digest = digest_for(checksum, path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest() == checksum

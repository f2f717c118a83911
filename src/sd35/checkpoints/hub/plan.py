"""Plan a download: list a checkpoint's files on the Hugging Face hub, and compare them with the cache."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sd35.checkpoints.hub.cache import CachePaths, cache_paths, is_checksum
from sd35.checkpoints.hub.errors import CORRECT_ENTRY, download_errors
from sd35.checkpoints.layout import PARTS, checkpoint_files
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import CheckpointError, DownloadFailed

_CHECK_ENDPOINT = "check that HF_ENDPOINT is the address of a Hugging Face hub"
OnBytes = Callable[[int], None]  # called with the number of bytes that arrived or were read
# What the library raises for a malformed response: it does not check the types of the fields.
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True)
class HubFile:
    """A file in the hub's list. `checksum` is the SHA-256 of a large file, or git's SHA-1 of a small one."""

    path: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class DownloadPlan:
    """The files of a registered checkpoint on the hub, those that are missing on disk, and the bytes to download."""

    entry: RegisteredCheckpoint
    files: tuple[HubFile, ...]
    missing: tuple[HubFile, ...]
    missing_bytes: int


def plan_download(entry: RegisteredCheckpoint) -> DownloadPlan:
    """List a registered checkpoint's files on the hub, and determine which are missing on disk.

    Raises the errors of `list_files`, and DownloadFailed if the cache cannot be read.
    """
    files, paths = list_files(entry), cache_paths(entry)
    with download_errors(entry):
        missing = tuple(file for file in files if not has_size(paths.snapshot / file.path, file))
        # By checksum, because files with equal content are downloaded once.
        missing_bytes = {file.checksum: file.size_bytes - _stored_bytes(paths, file) for file in missing}
    return DownloadPlan(entry, files, missing, sum(missing_bytes.values()))


def list_files(entry: RegisteredCheckpoint) -> tuple[HubFile, ...]:
    """List a checkpoint's files on the hub.

    Raises DownloadFailed if the hub cannot be used, CheckpointError if the repository does not contain an SD3.5
    checkpoint, InvalidSetting if an environment variable is not valid.
    """
    with download_errors(entry):
        from huggingface_hub import HfApi, constants

        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            info = HfApi().model_info(entry.repository, revision=entry.revision, files_metadata=True, timeout=timeout)
        except _MALFORMED as error:
            raise DownloadFailed(f"{constants.ENDPOINT} sent an unexpected response; {_CHECK_ENDPOINT}") from error
    listed = {str(sibling.rfilename): sibling for sibling in info.siblings or []}
    files = []
    for path in checkpoint_files(listed):
        sibling = listed[path]
        checksum = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if not is_checksum(checksum):  # it becomes a file name, so other text could be a path outside the cache
            raise DownloadFailed(f"the hub lists no checksum of {path}; {_CHECK_ENDPOINT}")
        if not (isinstance(sibling.size, int) and sibling.size >= 0):
            raise DownloadFailed(f"the hub lists no size of {path}; {_CHECK_ENDPOINT}")
        files.append(HubFile(path, sibling.size, checksum))
    if missing := [part for part in PARTS if not any(file.path.startswith(f"{part}/") for file in files)]:
        raise CheckpointError(
            f"the repository {entry.repository} is not an SD3.5 checkpoint in the Diffusers layout: it has no"
            f" {' and no '.join(missing)}; {CORRECT_ENTRY}"
        )
    return tuple(files)


def has_size(path: Path, file: HubFile) -> bool:
    """Return whether a path is a file of the size that the hub lists."""
    return path.is_file() and path.stat().st_size == file.size_bytes


def _stored_bytes(paths: CachePaths, file: HubFile) -> int:
    """Return how many bytes of a file are in the cache, from another commit or an incomplete download."""
    partial = paths.partial(file.checksum)
    if has_size(paths.blob(file.checksum), file):
        return file.size_bytes
    stored = partial.stat().st_size if partial.is_file() else 0
    return stored if stored <= file.size_bytes else 0

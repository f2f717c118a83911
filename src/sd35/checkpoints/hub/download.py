"""Fetching registered checkpoints from the Hugging Face hub, and checking them, through `huggingface_hub`.

Files come by plain HTTPS into the cache's own place for what arrived in part, are compared with the hub's checksum, and
only then get the name under which the cache, and every program that uses it, finds them. `huggingface_hub` alone starts
an interrupted file anew (https://github.com/huggingface/huggingface_hub/pull/4228), and compares no checksums.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING

from sd35.checkpoints.hub.cache import (
    Place,
    digest_for,
    disk_errors,
    files_of,
    is_checksum,
    place_of,
    recorded_checksum,
)
from sd35.checkpoints.hub.errors import translated
from sd35.checkpoints.layout import PARTS, missing, needed
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import CheckpointError, DownloadFailed

if TYPE_CHECKING:
    from hashlib import _Hash

_WORKERS = 4
_RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0)  # as long as nothing more arrives
_SMALL_BYTES = 2**24
_BLOCK_BYTES = 2**20
_ASKED = "is HF_ENDPOINT a server of the hub's protocol?"
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it. `checksum`: SHA-256 of a large file, git's SHA-1 of a small one."""

    path: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class Plan:
    """What a registered checkpoint consists of, and what of it is not on disk; `missing_bytes` are still to come."""

    registered: RegisteredCheckpoint
    files: tuple[HubFile, ...]
    lacking: tuple[HubFile, ...]
    missing_bytes: int


@dataclass(frozen=True)
class Verified:
    """What a check found. `damaged` and `unknown` (no checksum is recorded) are paths in the snapshot."""

    good: tuple[str, ...]
    damaged: tuple[str, ...]
    lacking: tuple[str, ...]
    unknown: tuple[str, ...]


def plan(registered: RegisteredCheckpoint) -> Plan:
    """Ask the hub what a registered checkpoint consists of, and look what is on disk.

    Raises DownloadFailed; CheckpointError where the repository holds no such checkpoint.
    """
    files, place = _list(registered), place_of(registered)
    with translated(registered):
        lacking = tuple(file for file in files if not _is_there(place, file))
        # The same file comes once.
        to_come = {file.checksum: file.size_bytes - _arrived(place, file) for file in lacking}
    return Plan(registered, files, lacking, sum(to_come.values()))


def fetch(plan: Plan, on_bytes: OnBytes) -> Path:
    """Fetch what a plan lacks; returns the directory. `on_bytes` hears, on any thread, how many more have arrived.

    What has arrived when it fails or is interrupted is kept, and the next call goes on with it. Raises DownloadFailed.
    """
    place, stop = place_of(plan.registered), threading.Event()
    order = sorted(plan.lacking, key=lambda file: (file.size_bytes > _SMALL_BYTES, -file.size_bytes))
    with translated(plan.registered), ThreadPoolExecutor(_WORKERS) as pool:
        _check_space(plan, place)
        tasks = [pool.submit(_Fetch(plan, file, on_bytes, stop).run) for file in order]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if lacking := missing(place.snapshot):
        raise CheckpointError(f"{plan.registered.repository} is no whole checkpoint: {', '.join(lacking)} missing")
    return place.snapshot


def verify(registered: RegisteredCheckpoint, *, offline: bool, on_bytes: OnBytes) -> Verified:
    """Compare each file's checksum with the hub's list, or offline with the name that the cache gave the file.

    Raises DownloadFailed where the hub cannot be asked, CheckpointError where nothing is on disk or a file cannot be
    read.
    """
    place = place_of(registered)
    with disk_errors(registered, "checked"):
        if not place.snapshot.is_dir():
            raise CheckpointError(f"{registered.name} is not on disk; fetch it with: sd35 pull {registered.name}")
        if offline:
            expected = {path: recorded_checksum(place.snapshot / path) for path in files_of(place)}
            lacking = set(missing(place.snapshot))
        else:
            expected = {file.path: file.checksum for file in _list(registered)}
            lacking = set()
        return _compare(place.snapshot, expected, lacking, on_bytes)


def _compare(snapshot: Path, expected: Mapping[str, str | None], lacking: set[str], on_bytes: OnBytes) -> Verified:
    """Compute the checksum of each file that is there and has an expected one."""
    lacking = lacking | {path for path in expected if not (snapshot / path).exists()}
    there = {path: checksum for path, checksum in expected.items() if path not in lacking}
    noted = {path: checksum for path, checksum in there.items() if checksum}
    good = [path for path, checksum in noted.items() if _checksum_of(snapshot / path, checksum, on_bytes) == checksum]
    return Verified(
        good=tuple(good),
        damaged=tuple(path for path in noted if path not in good),
        lacking=tuple(sorted(lacking)),
        unknown=tuple(path for path in there if path not in noted),
    )


class _Fetch:
    """One file of a plan on its way into the cache."""

    def __init__(self, plan: Plan, file: HubFile, on_bytes: OnBytes, stop: threading.Event) -> None:
        self._registered, self._place, self._file = plan.registered, place_of(plan.registered), file
        self._is_shared = sum(each.checksum == file.checksum for each in plan.lacking) > 1
        self._on_bytes, self._stop = on_bytes, stop

    def run(self) -> None:
        """Have it in the snapshot. Raises what HTTP, the hub's library and the disk raise, and DownloadFailed."""
        from huggingface_hub.utils import WeakFileLock

        blob, link = self._place.blob(self._file.checksum), self._place.snapshot / self._file.path
        for folder in (blob.parent, link.parent, self._place.locks):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self._place.locks / f"{self._file.checksum}.part.lock"):  # against another `sd35 pull`
            is_new = not _has_size(blob, self._file)
            if is_new:
                self._fetch(blob)
            if not _has_size(link, self._file):
                link.unlink(missing_ok=True)
                self._place_in_snapshot(blob, link, may_move=is_new and not self._is_shared)

    def _place_in_snapshot(self, blob: Path, link: Path, *, may_move: bool) -> None:
        """Give a file that has arrived its name in the snapshot, as `huggingface_hub` does.

        That is a symbolic link. If the file system has none, or HF_HUB_DISABLE_SYMLINKS forbids them, the file is moved
        there, or copied where other names need it too.
        """
        from huggingface_hub.file_download import are_symlinks_supported

        if are_symlinks_supported(self._place.repository):
            link.symlink_to(os.path.relpath(blob, link.parent))
        elif may_move:
            blob.replace(link)
        else:
            copy = link.with_name(f"{link.name}.incomplete")
            shutil.copyfile(blob, copy)
            copy.replace(link)

    def _fetch(self, blob: Path) -> None:
        part = self._place.part_of(self._file.checksum)
        part.touch()
        with part.open("r+b") as out:
            digest = self._begin(out)
            waits = iter(_RETRY_WAITS_S)
            while out.tell() < self._file.size_bytes:
                had = out.tell()
                digest, trouble = self._append(out, digest)
                waits = iter(_RETRY_WAITS_S) if out.tell() > had else waits
                if trouble and ((wait_s := next(waits, None)) is None or self._stop.wait(wait_s)):
                    raise trouble
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != self._file.checksum:
            part.unlink()
            raise DownloadFailed(
                f"{self._file.path} is not what the hub lists: its checksum is {digest.hexdigest()}, not"
                f" {self._file.checksum}; it was deleted. Run `sd35 pull {self._registered.name}` again; if that does"
                " not help, something on the way changes files: a proxy, or the server of HF_ENDPOINT"
            )
        part.replace(blob)

    def _begin(self, out: BufferedRandom) -> "_Hash":
        """The digest of what has arrived before; more than there can be is dropped."""
        digest = digest_for(self._file.checksum, self._file.size_bytes)
        too_much = out.seek(0, os.SEEK_END) > self._file.size_bytes
        out.seek(0)
        if too_much:
            out.truncate()
        for block in _blocks(out):
            digest.update(block)
        return digest

    def _append(self, out: BufferedRandom, digest: "_Hash") -> tuple["_Hash", Exception | None]:
        """Ask for the rest and write what comes; a connection that broke off is handed back, not raised."""
        from httpx2 import TransportError
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(self._registered.repository, self._file.path, revision=self._registered.revision)
        headers, timeout_s = {**build_hf_headers(), "Accept-Encoding": "identity"}, constants.HF_HUB_DOWNLOAD_TIMEOUT
        if have := out.tell():
            headers["Range"] = f"bytes={have}-"
        try:
            # Only "too many requests" is waited out in there: a broken connection is ours to go on from.
            with http_stream_backoff(
                "GET", url, headers=headers, timeout=timeout_s, retry_on_exceptions=(), retry_on_status_codes=429
            ) as response:
                hf_raise_for_status(response)
                if have and response.status_code != 206:  # the server sends all of it again
                    self._on_bytes(-have)
                    out.truncate(out.seek(0))
                    digest = digest_for(self._file.checksum, self._file.size_bytes)
                for block in response.iter_bytes():
                    if self._stop.is_set():
                        raise InterruptedError
                    write(out, block)
                    digest.update(block)
                    self._on_bytes(len(block))
        except TransportError as error:
            return digest, error
        return digest, None if out.tell() > have else DownloadFailed(f"the server sends nothing of {self._file.path}")


def write(out: BufferedRandom, block: bytes) -> None:
    """Append a block; a function of its own, so that a test can fill the disk."""
    out.write(block)


def _list(registered: RegisteredCheckpoint) -> tuple[HubFile, ...]:
    """The files of a checkpoint as the hub lists them. Raises DownloadFailed, CheckpointError, InvalidSetting."""
    with translated(registered):
        from huggingface_hub import HfApi, constants

        try:
            info = HfApi().model_info(
                registered.repository,
                revision=registered.revision,
                files_metadata=True,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
        except _MALFORMED as error:  # the library trusts what comes, down to the types
            raise DownloadFailed(f"{constants.ENDPOINT} answers with something else; {_ASKED}") from error
    listed = {str(sibling.rfilename): sibling for sibling in info.siblings or []}
    files = []
    for path in needed(listed):
        sibling = listed[path]
        checksum = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if not is_checksum(checksum):  # it becomes a file's name in the cache
            raise DownloadFailed(f"the hub names no checksum of {path}; {_ASKED}")
        if not (isinstance(sibling.size, int) and sibling.size >= 0):
            raise DownloadFailed(f"the hub names no size of {path}; {_ASKED}")
        files.append(HubFile(path, sibling.size, checksum))
    if lacking := [part for part in PARTS if not any(file.path.startswith(f"{part}/") for file in files)]:
        raise CheckpointError(
            f"{registered.repository} is no SD3.5 checkpoint in the Diffusers layout: {', '.join(lacking)} missing"
        )
    return tuple(files)


def _has_size(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes


def _is_there(place: Place, file: HubFile) -> bool:
    return _has_size(place.snapshot / file.path, file)


def _arrived(place: Place, file: HubFile) -> int:
    """How much of a file is on disk that the snapshot does not show: all of it, for another revision, or a part."""
    part = place.part_of(file.checksum)
    if _has_size(place.blob(file.checksum), file):
        return file.size_bytes
    have = part.stat().st_size if part.is_file() else 0
    return have if have <= file.size_bytes else 0


def _check_space(plan: Plan, place: Place) -> None:
    existing = next(folder for folder in (place.repository, *place.repository.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < plan.missing_bytes:
        raise DownloadFailed(
            f"{plan.registered.name} takes {plan.missing_bytes / 1e9:.2f} GB more, and {existing} has"
            f" {free / 1e9:.2f} GB free; free some, or name a directory on another disk with HF_HOME"
        )


def _blocks(file: BufferedRandom) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK_BYTES), b"")


def _checksum_of(path: Path, like: str, on_bytes: OnBytes) -> str:
    digest = digest_for(like, path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()

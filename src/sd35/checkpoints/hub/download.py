"""Download registered checkpoints from the Hugging Face hub, with resumption and checksums.

A file is downloaded to a path for incomplete files in Hugging Face's cache. When its checksum is equal to the hub's, it
is renamed to its final path, where other programs find it. `huggingface_hub` is not used to download files, because it
restarts an interrupted file from the beginning (https://github.com/huggingface/huggingface_hub/pull/4228) and does not
compare checksums.
"""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING

from sd35.checkpoints.hub.cache import CachePaths, cache_paths, digest_for
from sd35.checkpoints.hub.errors import CORRECT_ENTRY, download_errors, retry_command
from sd35.checkpoints.hub.plan import DownloadPlan, HubFile, OnBytes, has_size
from sd35.checkpoints.layout import missing_files
from sd35.errors import CheckpointError, DownloadFailed

if TYPE_CHECKING:
    from hashlib import _Hash

_WORKERS = 4
_RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0)  # waits between attempts; after an attempt with progress, the first is next
_SMALL_BYTES = 2**24  # files up to this size are downloaded first
_BLOCK_BYTES = 2**20


def fetch(plan: DownloadPlan, on_bytes: OnBytes) -> Path:
    """Download the missing files of a plan, and return the checkpoint's directory.

    `on_bytes` is called on any thread with the number of bytes that arrived. If a file is restarted, the number is
    negative. After a failure or an interruption, the next call resumes the incomplete files.

    Raises DownloadFailed if a file cannot be downloaded or stored, CheckpointError if the repository does not contain a
    complete checkpoint.
    """
    paths, stop = cache_paths(plan.entry), threading.Event()
    order = sorted(plan.missing, key=lambda file: (file.size_bytes > _SMALL_BYTES, -file.size_bytes))
    with download_errors(plan.entry), ThreadPoolExecutor(_WORKERS) as pool:
        _check_space(plan, paths)
        tasks = [pool.submit(_FileDownload(plan, file, on_bytes, stop).run) for file in order]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if missing := missing_files(paths.snapshot):
        raise CheckpointError(
            f"the repository {plan.entry.repository} is not a complete checkpoint: it lacks {', '.join(missing)};"
            f" {CORRECT_ENTRY}"
        )
    return paths.snapshot


class _FileDownload:
    """The download of one file into the cache."""

    def __init__(self, plan: DownloadPlan, file: HubFile, on_bytes: OnBytes, stop: threading.Event) -> None:
        self._entry, self._paths, self._file = plan.entry, cache_paths(plan.entry), file
        # Whether several files of the checkpoint have the same content, and so the same blob.
        self._is_shared = sum(other.checksum == file.checksum for other in plan.missing) > 1
        self._on_bytes, self._stop = on_bytes, stop

    def run(self) -> None:
        """Download the file and add it to the snapshot.

        Raises DownloadFailed if the server sends wrong bytes or none. Also raises errors of HTTP, of the hub's library
        and of the disk, which `download_errors` converts.
        """
        from huggingface_hub.utils import WeakFileLock

        blob, link = self._paths.blob(self._file.checksum), self._paths.snapshot / self._file.path
        for folder in (blob.parent, link.parent, self._paths.locks):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self._paths.locks / f"{self._file.checksum}.part.lock"):  # against a second `sd35 pull`
            is_new = not has_size(blob, self._file)
            if is_new:
                self._download(blob)
            if not has_size(link, self._file):
                link.unlink(missing_ok=True)
                self._add_to_snapshot(blob, link, may_move=is_new and not self._is_shared)

    def _add_to_snapshot(self, blob: Path, link: Path, *, may_move: bool) -> None:
        """Add the complete file `blob` to the snapshot at `link`, as `huggingface_hub` does.

        Creates a symbolic link. If the file system does not support links, or HF_HUB_DISABLE_SYMLINKS forbids them,
        this method moves the file if `may_move`, and copies it otherwise.
        """
        from huggingface_hub.file_download import are_symlinks_supported

        if are_symlinks_supported(self._paths.repository):
            link.symlink_to(os.path.relpath(blob, link.parent))
        elif may_move:
            blob.replace(link)
        else:
            copy = link.with_name(f"{link.name}.incomplete")
            shutil.copyfile(blob, copy)
            copy.replace(link)

    def _download(self, blob: Path) -> None:
        """Download the file, with retries, check its checksum, and rename it to `blob`.

        Raises DownloadFailed if the checksum is wrong, and the error of the last attempt if no attempt is left.
        """
        partial = self._paths.partial(self._file.checksum)
        partial.touch()
        with partial.open("r+b") as out:
            digest = self._resume(out)
            waits = iter(_RETRY_WAITS_S)
            while (start := out.tell()) < self._file.size_bytes:
                digest, error = self._append(out, digest)
                if out.tell() > start:
                    waits = iter(_RETRY_WAITS_S)
                if error:
                    wait_s = next(waits, None)
                    if wait_s is None or self._stop.wait(wait_s):
                        raise error
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != self._file.checksum:
            partial.unlink()
            raise DownloadFailed(
                f"{self._file.path} differs from the hub's file: expected checksum {self._file.checksum}, found"
                f" {digest.hexdigest()}. The download was deleted. Run `sd35 pull {self._entry.name}` again. If that"
                " does not help, check your proxy and HF_ENDPOINT: one of them changes files"
            )
        partial.replace(blob)

    def _resume(self, out: BufferedRandom) -> "_Hash":
        """Return the digest of the bytes in the file, and seek to their end. Empty the file first if it is too long."""
        digest = digest_for(self._file.checksum, self._file.size_bytes)
        is_too_long = out.seek(0, os.SEEK_END) > self._file.size_bytes
        out.seek(0)
        if is_too_long:
            out.truncate()
        while block := out.read(_BLOCK_BYTES):
            digest.update(block)
        return digest

    def _append(self, out: BufferedRandom, digest: "_Hash") -> tuple["_Hash", Exception | None]:
        """Request the remaining bytes, append them to `out`, and return the digest of all bytes.

        Also return an error if the connection broke or the server sent no bytes, so that the caller can try again, and
        None otherwise. Raises other errors, such as those of an error status.
        """
        from httpx2 import TransportError
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(self._entry.repository, self._file.path, revision=self._entry.revision)
        headers, timeout_s = {**build_hf_headers(), "Accept-Encoding": "identity"}, constants.HF_HUB_DOWNLOAD_TIMEOUT
        if start := out.tell():
            headers["Range"] = f"bytes={start}-"
        try:
            # The library retries only after status 429. After a broken connection, `_download` resumes the file.
            with http_stream_backoff(
                "GET", url, headers=headers, timeout=timeout_s, retry_on_exceptions=(), retry_on_status_codes=429
            ) as response:
                hf_raise_for_status(response)
                if start and response.status_code != 206:  # the server ignored the range and sends the whole file
                    self._on_bytes(-start)
                    out.truncate(out.seek(0))
                    digest = digest_for(self._file.checksum, self._file.size_bytes)
                for block in response.iter_bytes():
                    if self._stop.is_set():
                        raise InterruptedError  # internal: `fetch` has failed or was interrupted already
                    write(out, block)
                    digest.update(block)
                    self._on_bytes(len(block))
        except TransportError as error:
            return digest, error
        if out.tell() > start:
            return digest, None
        return digest, DownloadFailed(
            f"the server sent no bytes of {self._file.path}; {retry_command(self._entry)} later"
        )


def write(out: BufferedRandom, block: bytes) -> None:
    """Write a block to a file. Tests replace this function to simulate a full disk."""
    out.write(block)


def _check_space(plan: DownloadPlan, paths: CachePaths) -> None:
    """Raise DownloadFailed if the disk of the cache has too little free space for the download."""
    existing = next(folder for folder in (paths.repository, *paths.repository.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < plan.missing_bytes:
        raise DownloadFailed(
            f"{plan.entry.name} needs {plan.missing_bytes / 1e9:.2f} GB more, and {existing} has"
            f" {free / 1e9:.2f} GB free; free some space, or set HF_HOME to a directory on another disk"
        )

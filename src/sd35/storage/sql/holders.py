"""Detect dead lease holders of an SQLite database: each holder locks a file next to the database.

The operating system frees a lock when its process ends, for whatever reason. A free lock therefore means that its
holder is dead. This is known at once and does not depend on a clock. All processes that share an SQLite database run on
one machine, so they see the same locks.
"""

import errno
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

# Errors of file systems without locks, such as some shared folders and network file systems.
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
_PROBE_S = 10.0  # maximum wait while another process probes a new file, which takes microseconds
_SUFFIX = ".lock"


class HolderLocks:
    """Locks the files of this process's holders, and probes those of other processes. Thread-safe.

    On a file system without working locks, no holder counts as dead, and leases expire only by time.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mutex = threading.Lock()
        self._held: dict[str, FileLock] = {}
        self._is_supported = True

    def hold(self, holder: str) -> None:
        """Lock the file of a holder until `release`. Does nothing if it is already locked here. Raises OSError."""
        with self._mutex:
            if holder in self._held or not self._is_supported:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._held:
                self._delete_stale_files()
            lock = _lock(self._path(holder))
            try:
                lock.acquire(timeout=_PROBE_S, poll_interval=0.01)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self._disable(holder, error.strerror or str(error))
                return
            if _is_locked(self._path(holder)):
                self._held[holder] = lock
            else:
                lock.release()
                self._disable(holder, "a locked file can be locked again")

    def dead(self, holders: Iterable[str]) -> list[str]:
        """Return the holders whose process has ended, and delete their files."""
        with self._mutex:
            if not self._is_supported:
                return []
            return [each for each in holders if each not in self._held and _delete_if_free(self._path(each))]

    def release(self, holder: str) -> None:
        """Unlock and delete the file of a holder."""
        with self._mutex:
            if lock := self._held.pop(holder, None):
                with suppress(OSError):
                    self._path(holder).unlink()
                lock.release()

    def close(self) -> None:
        """Release all holders of this process."""
        for holder in list(self._held):
            self.release(holder)

    def _disable(self, holder: str, reason: str) -> None:
        self._is_supported = False
        self._path(holder).unlink(missing_ok=True)
        structlog.get_logger().warning(
            "files next to the database cannot be locked: jobs of a killed process wait until their lease expires",
            directory=str(self._directory),
            reason=reason,
        )

    def _delete_stale_files(self) -> None:
        for path in self._directory.glob(f"*{_SUFFIX}"):
            _delete_if_free(path)

    def _path(self, holder: str) -> Path:
        return self._directory / f"{holder}{_SUFFIX}"


def _lock(path: Path) -> FileLock:
    """Return a lock that any thread may release. The library's fallback would leave its file locked after a crash."""
    return FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)


def _is_locked(path: Path) -> bool:
    """Return whether a file is locked. Raises OSError."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def _delete_if_free(path: Path) -> bool:
    """Delete a file unless it is locked. Returns False if it is locked, or if that cannot be determined."""
    if not path.exists():
        return True
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return False
    with suppress(OSError):
        path.unlink()  # while locked: a process that has opened it notices that the name is gone, and recreates it
    lock.release()
    return True

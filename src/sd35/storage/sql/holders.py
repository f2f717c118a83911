"""Tell which holders of jobs are alive, by a locked file for each, beside an SQLite database.

The operating system frees a lock when its process ends, however it ends. A free lock therefore means a dead holder, at
once and whatever any clock says. All processes that share an SQLite database run on one machine, so they see the same
locks.
"""

import errno
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

# What file systems say that have no locks: some shared folders, some network file systems.
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
_PROBED_S = 10.0  # upper bound for another process to look at a new file; it takes microseconds
_SUFFIX = ".lock"


class HolderLocks:
    """Locks for the holders of this process, and a test of those of others. Safe for threads.

    On a file system whose locks do not exclude anybody, no holder counts as dead: leases then end by time alone.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mutex = threading.Lock()
        self._held: dict[str, FileLock] = {}
        self._is_supported = True

    def hold(self, holder: str) -> None:
        """Lock the holder's file until `release`. Holding it twice does no harm. Raises OSError."""
        with self._mutex:
            if holder in self._held or not self._is_supported:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._held:
                self._remove_left_over()
            lock = _lock(self._path(holder))
            try:
                lock.acquire(timeout=_PROBED_S, poll_interval=0.01)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self._give_up(holder, error.strerror or str(error))
                return
            if _is_locked(self._path(holder)):
                self._held[holder] = lock
            else:
                lock.release()
                self._give_up(holder, "a locked file can be locked again")

    def dead(self, holders: Iterable[str]) -> list[str]:
        """Of `holders`, those whose process has ended. Removes their files."""
        with self._mutex:
            if not self._is_supported:
                return []
            return [each for each in holders if each not in self._held and _is_free(self._path(each))]

    def release(self, holder: str) -> None:
        """Unlock and remove the holder's file."""
        with self._mutex:
            if lock := self._held.pop(holder, None):
                with suppress(OSError):
                    self._path(holder).unlink()
                lock.release()

    def close(self) -> None:
        """Release all."""
        for holder in list(self._held):
            self.release(holder)

    def _give_up(self, holder: str, reason: str) -> None:
        self._is_supported = False
        self._path(holder).unlink(missing_ok=True)
        structlog.get_logger().warning(
            "files beside the database cannot be locked: jobs of a killed process wait until their lease is over",
            directory=str(self._directory),
            reason=reason,
        )

    def _remove_left_over(self) -> None:
        for path in self._directory.glob(f"*{_SUFFIX}"):
            _is_free(path)

    def _path(self, holder: str) -> Path:
        return self._directory / f"{holder}{_SUFFIX}"


def _lock(path: Path) -> FileLock:
    """A lock that any thread may release. The library's substitute for a missing lock would outlive its process."""
    return FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)


def _is_locked(path: Path) -> bool:
    """Whether someone holds the lock of a file. Raises OSError."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def _is_free(path: Path) -> bool:
    """Whether nobody holds the lock of a file, which is then removed. False where that cannot be told."""
    if not path.exists():
        return True
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return False
    with suppress(OSError):
        path.unlink()  # while it is locked: whoever opened it before sees that the name is gone, and makes it anew
    lock.release()
    return True

"""Detect which processes that ran jobs of an SQLite database have ended.

Each job runner that holds leases on jobs, called a holder, has an ID, and its process locks a file of that name next to
the database. The operating system frees the lock when the process ends, even if it is killed. A holder without a locked
file is therefore dead. This is known at once and does not depend on a clock. All processes that share an SQLite
database run on one machine, so they see the same locks.
"""

import errno
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

# Errors of locking on file systems without locks, such as some shared folders and network file systems.
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
_PROBE_S = 10.0  # maximum wait for another process that is just testing whether a new file is locked
_SUFFIX = ".lock"


class HolderLocks:
    """Locks a file for each holder in this process, and tests the files of other holders. Thread-safe.

    On a file system without working locks, no holder counts as dead, and leases expire only by time.

    Args:
        directory: The directory of the files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mutex = threading.Lock()
        self._held: dict[str, FileLock] = {}
        self._is_supported = True

    def hold(self, holder: str) -> None:
        """Lock the file of a holder until `release`. Does nothing if this process has already locked it.

        Raises OSError if the file cannot be created or locked.
        """
        with self._mutex:
            if holder in self._held or not self._is_supported:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._held:
                self._delete_stale_files()
            lock = _new_lock(self._path(holder))
            try:
                lock.acquire(timeout=_PROBE_S, poll_interval=0.01)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self._disable(holder, error.strerror or str(error))
                return
            if _is_locked(self._path(holder)):  # some file systems only pretend to lock
                self._held[holder] = lock
            else:
                lock.release()
                self._disable(holder, "a locked file can be locked again")

    def remove_dead(self, holders: Iterable[str]) -> list[str]:
        """Delete the files of dead holders among `holders`, and return these holders."""
        with self._mutex:
            if not self._is_supported:
                return []
            others = [holder for holder in holders if holder not in self._held]
            return [holder for holder in others if _delete_if_free(self._path(holder))]

    def release(self, holder: str) -> None:
        """Unlock and delete the file of a holder that runs in this process. Does nothing without an earlier `hold`."""
        with self._mutex:
            if lock := self._held.pop(holder, None):
                with suppress(OSError):  # another process deletes a file that remains
                    self._path(holder).unlink()
                lock.release()

    def close(self) -> None:
        """Release all holders in this process."""
        for holder in list(self._held):
            self.release(holder)

    def _disable(self, holder: str, reason: str) -> None:
        """Stop using locks, because the file system has none that work. Deletes the file of `holder`."""
        self._is_supported = False
        self._path(holder).unlink(missing_ok=True)
        structlog.get_logger().warning(
            "files next to the database cannot be locked: jobs of a killed process wait until their lease expires",
            directory=str(self._directory),
            reason=reason,
        )

    def _delete_stale_files(self) -> None:
        """Delete the files of dead holders, which killed processes left."""
        for path in self._directory.glob(f"*{_SUFFIX}"):
            _delete_if_free(path)

    def _path(self, holder: str) -> Path:
        return self._directory / f"{holder}{_SUFFIX}"


def _new_lock(path: Path) -> FileLock:
    """Return a lock that any thread may release.

    The fallback of `filelock` is off, because its lock is the existence of a file. The file would remain after a crash.
    """
    return FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)


def _is_locked(path: Path) -> bool:
    """Return whether a file is locked, by this process or another one. Raises OSError if that cannot be determined."""
    lock = _new_lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def _delete_if_free(path: Path) -> bool:
    """Delete a file if it is not locked. Returns whether the file is gone.

    Returns False if the file is locked, or if that cannot be determined.
    """
    if not path.exists():
        return True
    lock = _new_lock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return False
    with suppress(OSError):
        # Deleted while locked: if another process has just opened the file to lock it, `filelock` in that process
        # notices that the path is gone, and creates a new file.
        path.unlink()
    lock.release()
    return True

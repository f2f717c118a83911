"""Atomic file writes: a crash or a full disk never leaves a partial file under its final name."""

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

_ABANDONED_S = 3600  # no write takes this long, so older staged files belong to killed processes
_LOCK = "lock"  # a file in `staging`
_LOCK_WAIT_S = 60.0  # after it, filelock raises Timeout, which is an OSError
# Errors of link(2) on file systems without hard links, or without hard links across directories.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700  # only this process's user has access, because images contain prompts


class AtomicWriter:
    """Writes files into `directory` via its subdirectory `staging`.

    A complete file in `staging` gets its final name by a hard link, which never replaces an existing file. On file
    systems without hard links (exFAT, many network shares), it is renamed under a lock instead.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._staging = directory, directory / "staging"
        self._mutex = threading.Lock()

    def prepare(self) -> None:
        """Create the directories, and delete the files that killed processes left in `staging`.

        Raises OSError if that fails.
        """
        self._directory.mkdir(PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        self._staging.mkdir(PRIVATE_DIRECTORY, exist_ok=True)
        make_private(self._staging)
        for file in self._staging.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process deleted it first
                if file.name != _LOCK and file.stat().st_mtime < time.time() - _ABANDONED_S:
                    file.unlink()

    def write_once(self, name: str, content: bytes) -> bool:
        """Write a new file and sync its content to the disk. Returns False and changes nothing if the file exists.

        Raises OSError if the file cannot be written.
        """
        path = self._directory / name
        with self._staged(content) as staged:
            try:
                _run_with_parent(path, lambda: os.link(staged, path))
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                return self._rename_once(staged, path)
            return True

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, replacing an existing one, and sync its content to the disk. Raises OSError if that fails."""
        path = self._directory / name
        with self._staged(content) as staged:
            _run_with_parent(path, lambda: staged.replace(path))

    def _rename_once(self, staged: Path, path: Path) -> bool:
        """Rename a staged file to its final name. Returns False if that file exists.

        A rename would replace an existing file. So one writer at a time checks that there is none, and renames. The
        mutex excludes other threads of this process, and the file lock excludes other processes. If a process is
        killed, the operating system frees its file lock.
        """
        from filelock import FileLock

        with self._mutex, FileLock(self._staging / _LOCK, timeout=_LOCK_WAIT_S, mode=PRIVATE_FILE):
            if path.exists():
                return False
            _run_with_parent(path, lambda: staged.rename(path))
            return True

    @contextlib.contextmanager
    def _staged(self, content: bytes) -> Iterator[Path]:
        """Write a new file in `staging` and yield its path. Deletes the file at the end of the block."""
        staged = self._staging / uuid4().hex
        try:
            _write(staged, content)
            yield staged
        finally:
            staged.unlink(missing_ok=True)


def make_private(directory: Path) -> None:
    """Remove all permissions of other users on a directory.

    Errors are ignored: the directory may belong to another user, or its file system may have no modes.
    """
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & 0o077:  # the permissions of the group and of others
            directory.chmod(mode & ~0o077)


def _run_with_parent(path: Path, operation: Callable[[], object]) -> None:
    """Run `operation`. If that fails because the parent directory of `path` is missing, create it and try again."""
    try:
        operation()
    except FileNotFoundError:
        path.parent.mkdir(PRIVATE_DIRECTORY, exist_ok=True)
        operation()


def _write(path: Path, content: bytes) -> None:
    """Write a new file and sync its content to the disk. Raises OSError if that fails.

    Calls the operating system directly. Python's file objects make twice as many system calls, and each call releases
    the GIL, so another thread may run before this one continues.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[os.write(file, remaining) :]  # one call may write only a part
        os.fsync(file)
    finally:
        os.close(file)

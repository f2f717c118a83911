"""Files that are written whole or not at all, and once: a crash or a full disk leaves nothing under their name."""

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

_ABANDONED_S = 3600  # no writing takes as long
_LOCK = "lock"  # in `staging`
_LOCK_WAIT_S = 60.0
# What link(2) answers on a file system that cannot link a file of `staging` into another directory.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700  # for the user of this process alone: images hold their prompts


class FileStage:
    """Writes files into `directory` by way of the folder `staging` in it.

    A file gets its name by a hard link, which replaces nothing. A file system without hard links (exFAT, many network
    shares) gets a lock and a rename instead. Neither shows a file under its name before all of it is on the disk.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._staging = directory, directory / "staging"
        self._turn = threading.Lock()

    def prepare(self) -> None:
        """Make the directories, and remove what processes that were killed left in `staging`. Raises OSError."""
        self._directory.mkdir(PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        self._staging.mkdir(PRIVATE_DIRECTORY, exist_ok=True)
        make_private(self._staging)
        for file in self._staging.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process is as quick
                if file.name != _LOCK and file.stat().st_mtime < time.time() - _ABANDONED_S:
                    file.unlink()

    def write_once(self, place: str, content: bytes) -> bool:
        """Write a file, on the disk when this returns; False where there is one, which stays. Raises OSError."""
        path = self._directory / place
        with self._staged(content) as staged:
            try:
                _in_directory(path, lambda: os.link(staged, path))
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                return self._rename_once(staged, path)
            return True

    def replace(self, place: str, content: bytes) -> None:
        """Write a file in the place of the one that is there, on the disk when this returns. Raises OSError."""
        path = self._directory / place
        with self._staged(content) as staged:
            _in_directory(path, lambda: staged.replace(path))

    def _rename_once(self, staged: Path, path: Path) -> bool:
        """Give a staged file its name unless there is one.

        Renaming replaces, so one writer at a time looks and renames. The operating system frees the lock of a process
        that was killed.
        """
        from filelock import FileLock

        with self._turn, FileLock(self._staging / _LOCK, timeout=_LOCK_WAIT_S, mode=PRIVATE_FILE):
            if path.exists():
                return False
            _in_directory(path, lambda: staged.rename(path))
            return True

    @contextlib.contextmanager
    def _staged(self, content: bytes) -> Iterator[Path]:
        staged = self._staging / uuid4().hex
        try:
            _write(staged, content)
            yield staged
        finally:
            staged.unlink(missing_ok=True)


def make_private(directory: Path) -> None:
    """Take away what others than the owner may do in a directory.

    Does nothing where that is not possible: the directory is another user's, or its file system knows no modes.
    """
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & 0o077:
            directory.chmod(mode & ~0o077)


def _in_directory(path: Path, write: Callable[[], object]) -> None:
    """Call `write`, and once more after making the directory of `path` where that is missing."""
    try:
        write()
    except FileNotFoundError:
        path.parent.mkdir(PRIVATE_DIRECTORY, exist_ok=True)
        write()


def _write(path: Path, content: bytes) -> None:
    """By the system's calls alone: Python's files make as many more, and each lets other threads go first."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)

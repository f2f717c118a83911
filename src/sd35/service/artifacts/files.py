"""Files that are written whole or not at all, and once: a crash or a full disk leaves nothing under their name."""

import contextlib
import os
import time
from pathlib import Path
from uuid import uuid4

_ABANDONED_S = 3600  # no writing takes as long


class FileStage:
    """Writes into `directory`, which is made, by way of `staging` in it. What was left there long ago is removed.

    obstore's own local store has no such place, and does not wait for the disk: after a power failure, a file of its
    may have its name and not its content.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._staging = directory, directory / "staging"
        self._staging.mkdir(parents=True, exist_ok=True)
        for file in self._staging.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process is as quick
                if file.stat().st_mtime < time.time() - _ABANDONED_S:
                    file.unlink()

    def write_once(self, place: str, content: bytes, mode: int = 0o666) -> None:
        """Write a file, on the disk when this returns; one that is there stays. Raises OSError."""
        path, staged = self._directory / place, self._staging / uuid4().hex
        try:
            _write(staged, content, mode)
            with contextlib.suppress(FileExistsError):  # linking, unlike renaming, replaces nothing
                try:
                    os.link(staged, path)
                except FileNotFoundError:
                    path.parent.mkdir(exist_ok=True)
                    os.link(staged, path)
        finally:
            staged.unlink(missing_ok=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    """By the system's calls alone: Python's files make as many more, and each lets other threads go first."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)

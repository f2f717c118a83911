"""Image files in a directory."""

import re
from collections.abc import Iterator
from pathlib import Path

from sd35.errors import StoreUnavailable
from sd35.storage.atomic_files import AtomicWriter, make_private
from sd35.storage.blobs.base import PathBlobStore
from sd35.storage.names import path_of

_FOLDER = re.compile(r"[0-9a-f]{2}")  # as in `path_of`


class DirectoryStore(PathBlobStore):
    """A BlobStore in a directory. It does not use obstore, because `obstore` does not sync local files to the disk.

    `check` creates the directory. It removes the permissions of other users on the folders in it that contain images.
    It does not change the mode of the directory itself, which may contain other files.
    """

    def __init__(self, directory: Path) -> None:
        self.address = str(directory)
        self._directory, self._writer = directory, AtomicWriter(directory)

    def check(self) -> None:
        """Create the directory and test it. Raises StoreUnavailable if that fails."""
        with self._translate_errors("be opened"):
            self._writer.prepare()
            for folder in self._folders():
                make_private(folder)
        super().check()

    def sign(self, name: str, expires_s: float) -> None:  # noqa: ARG002
        """Return None: a directory has no URLs."""
        path_of(name)  # raises ValueError for a name that is not the name of an image file

    def _write_once(self, path: str, content: bytes) -> bool:
        return self._writer.write_once(path, content)

    def _overwrite(self, path: str, content: bytes) -> None:
        self._writer.replace(path, content)

    def _read(self, path: str) -> bytes:
        return (self._directory / path).read_bytes()

    def _size(self, path: str) -> int:
        return (self._directory / path).stat().st_size

    def _delete(self, path: str) -> None:
        (self._directory / path).unlink()

    def _paths(self) -> Iterator[str]:
        """Yield the paths of all files. Raises StoreUnavailable if the directory does not exist."""
        if not self._directory.exists():
            raise StoreUnavailable(
                f"the image store {self.address} cannot be listed: the directory does not exist. If the service has"
                " never run, start it (`sd35 serve`). Otherwise restore the directory, or set data_dir or image_store"
            )
        for folder in self._folders():
            yield from (f"{folder.name}/{path.name}" for path in folder.iterdir())

    def _folders(self) -> list[Path]:
        """Return the folders that contain images."""
        return [path for path in self._directory.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]

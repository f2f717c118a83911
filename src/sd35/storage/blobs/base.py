"""Interface of blob stores, and the base class of stores that keep files under paths.

One contract test suite runs over all stores.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar, Protocol
from uuid import uuid4

from sd35.errors import StoreUnavailable
from sd35.storage.names import name_at, path_of


class BlobStore(Protocol):
    """Stores image files by name: the digest of the request that generated the image, and a suffix.

    A file is written completely or not at all. `put` does not change an existing file, because the name determines the
    image.

    Thread-safe. Methods block. They raise StoreUnavailable with the reason, for example a full disk, and ValueError for
    a name that is not the name of an image file.
    """

    def put(self, name: str, content: bytes) -> bool:
        """Write a file. Returns False and changes nothing if it exists."""

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, replacing an existing one. Readers see the old content or the new one, never a mix."""

    def get(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it is missing."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it is missing."""

    def names(self) -> Iterator[str]:
        """Yield the names of all files, in any order."""

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""

    def sign(self, name: str, expires_s: float) -> str | None:
        """Return a URL at which the store itself serves the file for `expires_s` seconds. None if it has no URLs."""


class PathBlobStore(BlobStore, Protocol):
    """Base of stores that keep files under paths.

    Translates names of files to paths (see `path_of`), and errors of the store to StoreUnavailable. Subclasses
    implement the private methods. `address` is the name of the store in messages.
    """

    address: str
    _ERRORS: ClassVar[tuple[type[Exception], ...]] = (OSError,)  # that the private methods raise if the store fails

    def check(self) -> None:
        """Test the store: write a file, try to write it again with another content, read it and delete it.

        Raises StoreUnavailable if one of these fails, or if the second write has replaced the file.
        """
        path = f"check-{uuid4().hex}.png"
        with self._translate_errors("be written to"):
            for content in (b"first", b"second"):
                self._write_once(path, content)
        with self._translate_errors("be read"):
            stored = self._read(path)
        with self._translate_errors("delete an image"):
            self._delete(path)
        if stored != b"first":
            raise StoreUnavailable(
                f"the image store {self.address} overwrites existing files; use a store that supports conditional"
                " writes (If-None-Match)"
            )

    def put(self, name: str, content: bytes) -> bool:
        """Write a file. Returns False and changes nothing if it exists."""
        with self._translate_errors("be written to"):
            return self._write_once(path_of(name), content)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, replacing an existing one."""
        with self._translate_errors("be written to"):
            self._overwrite(path_of(name), content)

    def get(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it is missing."""
        with self._translate_errors("be read"), suppress(FileNotFoundError):
            return self._read(path_of(name))
        return None

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it is missing."""
        with self._translate_errors("be read"), suppress(FileNotFoundError):
            return self._size(path_of(name))
        return None

    def names(self) -> Iterator[str]:
        """Yield the names of all files."""
        with self._translate_errors("be listed"):
            yield from filter(None, map(name_at, self._paths()))  # without paths of other files

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        with self._translate_errors("delete an image"), suppress(FileNotFoundError):
            self._delete(path_of(name))

    def _write_once(self, path: str, content: bytes) -> bool:
        """Write a file. Returns False and changes nothing if it exists."""

    def _overwrite(self, path: str, content: bytes) -> None:
        """Write a file, replacing an existing one."""

    def _read(self, path: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError if it is missing."""

    def _size(self, path: str) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError if it is missing."""

    def _paths(self) -> Iterator[str]:
        """Yield the paths of all files."""

    def _delete(self, path: str) -> None:
        """Delete a file. May raise FileNotFoundError if it is missing."""

    @contextmanager
    def _translate_errors(self, action: str) -> Iterator[None]:
        """Translate errors of the block to StoreUnavailable: "the image store ADDRESS cannot ACTION: REASON"."""
        try:
            yield
        except self._ERRORS as error:
            reason = self._reason(error)
            raise StoreUnavailable(f"the image store {self.address} cannot {action}: {reason}") from error

    @staticmethod
    def _reason(error: Exception) -> str:
        """Return a description of an error in one line."""
        return getattr(error, "strerror", None) or str(error)

"""Image files in memory, for tests and for services that need no images after a restart."""

import threading
from collections.abc import Iterator

from sd35.storage.names import name_at, path_of


class MemoryBlobStore:
    """A BlobStore in memory. Its files are lost when the process ends."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}
        self._lock = threading.Lock()  # makes `put` atomic

    def put(self, name: str, content: bytes) -> bool:
        """Write a file. Returns False and changes nothing if it exists."""
        path = path_of(name)
        with self._lock:
            if path in self._contents:
                return False
            self._contents[path] = content
            return True

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, replacing an existing one."""
        self._contents[path_of(name)] = content

    def get(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it is missing."""
        return self._contents.get(path_of(name))

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it is missing."""
        content = self._contents.get(path_of(name))
        return None if content is None else len(content)

    def names(self) -> Iterator[str]:
        """Yield the names of all files."""
        return filter(None, map(name_at, tuple(self._contents)))

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        self._contents.pop(path_of(name), None)

    def sign(self, name: str, expires_s: float) -> None:
        """Return None: memory has no URLs."""

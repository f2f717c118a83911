"""Images in this process's memory, for a service that is to keep none, and for tests."""

import threading
from collections.abc import Iterator

from sd35.storage.names import name_at, place_of


class MemoryBlobStore:
    """An BlobStore that forgets all when the process ends."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}
        self._lock = threading.Lock()  # of writing once

    def put(self, name: str, content: bytes) -> bool:
        """Write one; False where there was one already."""
        place = place_of(name)
        with self._lock:
            if place in self._contents:
                return False
            self._contents[place] = content
            return True

    def replace(self, name: str, content: bytes) -> None:
        """Write one in the place of what is there."""
        self._contents[place_of(name)] = content

    def get(self, name: str) -> bytes | None:
        """Read one; None where there is none."""
        return self._contents.get(place_of(name))

    def size(self, name: str) -> int | None:
        """Return the size of one in bytes; None where there is none."""
        content = self._contents.get(place_of(name))
        return None if content is None else len(content)

    def names(self) -> Iterator[str]:
        """Yield the name of each file."""
        return filter(None, map(name_at, tuple(self._contents)))

    def delete(self, name: str) -> None:
        """Remove one; nothing where there is none."""
        self._contents.pop(place_of(name), None)

    def sign(self, name: str, expires_s: float) -> None:
        """None: nobody else can read this memory."""

"""Pictures in this process's memory, for a service that is to keep none, and for tests."""

from sd35.service.artifacts.names import place_of


class MemoryStore:
    """An ArtifactStore that forgets all when the process ends."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def put(self, name: str, content: bytes) -> None:
        """Write one."""
        self._contents.setdefault(place_of(name), content)

    def get(self, name: str) -> bytes | None:
        """Read one; None where there is none."""
        return self._contents.get(place_of(name))

    def has(self, name: str) -> bool:
        """Whether there is one."""
        return place_of(name) in self._contents

    def delete(self, name: str) -> None:
        """Remove one; nothing where there is none."""
        self._contents.pop(place_of(name), None)

    def sign(self, name: str, expires_s: float) -> None:
        """None: nobody else can read this memory."""

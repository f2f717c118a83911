"""What a store of pictures does. One contract suite runs over the implementations."""

from typing import Protocol


class ArtifactStore(Protocol):
    """Keeps picture files by name: `digest` of the request that made it, and a suffix where it is not the picture.

    A name is written once and whole, or not at all; a second writing of the same name changes nothing, for the content
    follows from the name. Safe for threads; blocks. Raises StoreUnavailable with the reason: unreachable, disk full.
    """

    def put(self, name: str, content: bytes) -> None:
        """Write one."""

    def get(self, name: str) -> bytes | None:
        """Read one; None where there is none."""

    def has(self, name: str) -> bool:
        """Whether there is one."""

    def delete(self, name: str) -> None:
        """Remove one; nothing where there is none."""

    def sign(self, name: str, expires_s: float) -> str | None:
        """An address at which the object store itself gives the file for so long; None where it has none."""

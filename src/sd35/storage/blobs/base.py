"""What a store of images does. One contract suite runs over the implementations."""

from collections.abc import Iterator
from typing import Protocol


class BlobStore(Protocol):
    """Keeps image files by name: `digest` of the request that made it, and a suffix where it is not the image.

    A name is written once and whole, or not at all; a second writing of the same name changes nothing, for the content
    follows from the name. Safe for threads; blocks. Raises StoreUnavailable with the reason: unreachable, disk full.
    """

    def put(self, name: str, content: bytes) -> bool:
        """Write one; False where there was one already, which stays as it is."""

    def replace(self, name: str, content: bytes) -> None:
        """Write one in the place of what is there. Readers see the old content or the new one, whole."""

    def get(self, name: str) -> bytes | None:
        """Read one; None where there is none."""

    def size(self, name: str) -> int | None:
        """Return the size of one in bytes; None where there is none."""

    def names(self) -> Iterator[str]:
        """Yield the name of each file in the store, in any order."""

    def delete(self, name: str) -> None:
        """Remove one; nothing where there is none."""

    def sign(self, name: str, expires_s: float) -> str | None:
        """An address at which the object store itself gives the file for so long; None where it has none."""

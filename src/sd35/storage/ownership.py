"""Interface of the ownership index: the owners and dates of stored images, and the checksums of their files.

One contract test suite runs over all implementations.
"""

from typing import Protocol


class OwnershipIndex(Protocol):
    """Index of images by the digest of the request that generated them. An image may have several owners.

    Thread-safe. Methods block and raise StoreUnavailable.
    """

    def add(self, digest: str, owner: str, size_bytes: int, now_s: float) -> None:
        """Add an owner to an image, or refresh the date of an existing owner to `now_s`."""

    def owners(self, digest: str) -> set[str]:
        """Return the owners of an image."""

    def remove(self, digest: str, owner: str) -> bool:
        """Remove an owner from an image. Returns whether no owner is left; if so, the checksums are deleted, too."""

    def delete(self, digest: str) -> None:
        """Delete an image with all its owners and checksums."""

    def add_checksum(self, name: str, checksum: str, size_bytes: int) -> None:
        """Record the SHA-256 and the size of one valid content of a file. Does nothing if nobody owns the image.

        A file may have several: two versions of this project may write the same image at the same time, and neither
        knows which of the two files the store will keep.
        """

    def checksums(self, name: str) -> dict[str, int]:
        """Return the recorded SHA-256 checksums of a file, each with the size of its content in bytes."""

    def digests(self, after: str, limit: int) -> list[str]:
        """Return the first `limit` digests of owned images that are greater than `after`, in ascending order."""

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Change dates between `from_s` and `until_s` to `now_s`. `until_s=None` means no upper bound."""

    def expired(self, before_s: float | None, max_bytes: int | None, limit: int) -> list[str]:
        """Return up to `limit` digests of images to delete, oldest first.

        The date of an image is the newest date among its owners. An image expires if it is older than `before_s`, or if
        it and all newer images together exceed `max_bytes`. None disables a bound.
        """

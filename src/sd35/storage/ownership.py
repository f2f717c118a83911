"""Interface of the ownership index: the owners and dates of stored images, and the checksums of their files.

One contract test suite runs over all implementations.
"""

from typing import Protocol


class OwnershipIndex(Protocol):
    """Index of images by the digest of the request that generated them. An image may have several owners.

    Each owner has a date: when the owner last requested the image. Dates are in seconds since 1970.

    Thread-safe. Methods block. They raise StoreUnavailable if the database does not answer.
    """

    def add(self, digest: str, owner: str, size_bytes: int, now_s: float) -> None:
        """Add an owner to an image, or change the date of an existing owner to `now_s`."""

    def owners(self, digest: str) -> set[str]:
        """Return the owners of an image."""

    def remove(self, digest: str, owner: str) -> bool:
        """Remove an owner from an image. If no owner is left, also delete the checksums of its files.

        Returns:
            Whether no owner is left.
        """

    def delete(self, digest: str) -> None:
        """Delete an image with all its owners and checksums."""

    def add_checksum(self, name: str, checksum: str, size_bytes: int) -> None:
        """Record a valid SHA-256 of a file, with its size. Does nothing if nobody owns the image.

        A file may have several checksums. Two versions of this project may encode the same image differently and write
        it at the same time, and neither knows which of the two files the store keeps.
        """

    def checksums(self, name: str) -> dict[str, int]:
        """Return the recorded SHA-256 checksums of a file, each with the size of its content in bytes."""

    def digests(self, after: str, limit: int) -> list[str]:
        """Return the first `limit` digests of owned images that are greater than `after`, in ascending order."""

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Set the dates between `from_s` and `until_s` to `now_s`, because the clock was wrong in that time.

        `until_s=None` means no upper bound.
        """

    def expired(self, before_s: float | None, max_bytes: int | None, limit: int) -> list[str]:
        """Return up to `limit` digests of images to delete, oldest first.

        The date of an image is the newest date among its owners. An image is to be deleted if its date is before
        `before_s`, or if it and all newer images together are larger than `max_bytes`. None disables a bound.
        """

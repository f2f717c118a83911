"""Ownership index in memory."""

import threading
from typing import NamedTuple

from sd35.storage.names import digest_of


class _Ownership(NamedTuple):
    """The size of an image's file, and when an owner last requested the image, in seconds since 1970."""

    size_bytes: int
    created_s: float


class MemoryOwnershipIndex:
    """An OwnershipIndex in memory. It is lost when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: dict[str, dict[str, _Ownership]] = {}  # by digest, then by owner
        self._checksums: dict[str, dict[str, dict[str, int]]] = {}  # by digest, file name, checksum

    def add(self, digest: str, owner: str, size_bytes: int, now_s: float) -> None:
        """Add an owner to an image, or change the date of an existing owner to `now_s`."""
        with self._lock:
            self._images.setdefault(digest, {})[owner] = _Ownership(size_bytes, now_s)

    def owners(self, digest: str) -> set[str]:
        """Return the owners of an image."""
        with self._lock:
            return set(self._images.get(digest, ()))

    def remove(self, digest: str, owner: str) -> bool:
        """Remove an owner from an image. Returns whether no owner is left. If so, also deletes the checksums."""
        with self._lock:
            owners = self._images.get(digest, {})
            owners.pop(owner, None)
            if not owners:
                self._delete(digest)
            return not owners

    def delete(self, digest: str) -> None:
        """Delete an image with all its owners and checksums."""
        with self._lock:
            self._delete(digest)

    def add_checksum(self, name: str, checksum: str, size_bytes: int) -> None:
        """See `OwnershipIndex.add_checksum`."""
        digest = digest_of(name)
        with self._lock:
            if digest in self._images:
                self._checksums.setdefault(digest, {}).setdefault(name, {})[checksum] = size_bytes

    def checksums(self, name: str) -> dict[str, int]:
        """Return the recorded SHA-256 checksums of a file, each with the size of its content in bytes."""
        with self._lock:
            return dict(self._checksums.get(digest_of(name), {}).get(name, {}))

    def digests(self, after: str, limit: int) -> list[str]:
        """Return the first `limit` digests of owned images that are greater than `after`."""
        with self._lock:
            return sorted(digest for digest in self._images if digest > after)[:limit]

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Set the dates between `from_s` and `until_s` to `now_s`. `until_s=None` means no upper bound."""
        with self._lock:
            for owners in self._images.values():
                for owner, ownership in owners.items():
                    if from_s <= ownership.created_s and (until_s is None or ownership.created_s <= until_s):
                        owners[owner] = ownership._replace(created_s=now_s)

    def expired(self, before_s: float | None, max_bytes: int | None, limit: int) -> list[str]:
        """Return up to `limit` digests of images to delete, oldest first."""
        images = []
        with self._lock:
            for digest, owners in self._images.items():
                newest_s = max(ownership.created_s for ownership in owners.values())
                size_bytes = max(ownership.size_bytes for ownership in owners.values())
                images.append((newest_s, digest, size_bytes))
        expired, total_bytes = [], 0
        for created_s, digest, size_bytes in sorted(images, reverse=True):  # newest first
            total_bytes += size_bytes
            if (before_s is not None and created_s < before_s) or (max_bytes is not None and total_bytes > max_bytes):
                expired.append(digest)
        return expired[::-1][:limit]

    def _delete(self, digest: str) -> None:
        self._images.pop(digest, None)
        self._checksums.pop(digest, None)

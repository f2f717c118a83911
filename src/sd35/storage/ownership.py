"""Whose the images of the store are, since when, and the checksums of their files.

One contract suite runs over the implementations.
"""

import threading
from typing import NamedTuple, Protocol

from sd35.storage.names import digest_of


class OwnershipIndex(Protocol):
    """Knows images by the digest of the request that made them. What several asked for is each one's.

    Safe for threads; blocks. Raises StoreUnavailable.
    """

    def add(self, digest: str, owner: str, size_bytes: int, now_s: float) -> None:
        """An image is an owner's; one that was already is as new as `now_s`."""

    def owners(self, digest: str) -> set[str]:
        """Whose it is."""

    def owns(self, digest: str, owner: str) -> bool:
        """Whether it is an owner's."""

    def remove(self, digest: str, owner: str) -> bool:
        """It is not this owner's any more; whether it is nobody's now. Checksums go with the last owner."""

    def forget(self, digest: str) -> None:
        """It is nobody's any more. Its checksums are forgotten too."""

    def record(self, name: str, checksum: str, size_bytes: int) -> None:
        """Record the SHA-256 and the size of a content that a file may have. An image that nobody owns has none.

        Several may be recorded for one name: two versions of this project may write the same image at the same time,
        and which of their files comes to lie in the store is not known beforehand.
        """

    def checksums(self, name: str) -> dict[str, int]:
        """Return what was recorded for a file: sizes in bytes by checksum."""

    def digests(self, after: str, most: int) -> list[str]:
        """Return up to `most` images that somebody owns, in order, beginning behind the digest `after`."""

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Make images that are dated in a span as new as `now_s`. The span has no end where `until_s` is None."""

    def outdated(self, before_s: float | None, most_bytes: int | None, most: int) -> list[str]:
        """Up to `most` images to give up, the oldest first; an image is as old as its newest owner's.

        They are older than `before_s`, or do not fit into `most_bytes` beside all that are newer; None is no bound.
        """


class _Owned(NamedTuple):
    size_bytes: int
    created_s: float


class MemoryOwnershipIndex:
    """A OwnershipIndex."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owned: dict[str, dict[str, _Owned]] = {}
        self._checksums: dict[str, dict[str, dict[str, int]]] = {}  # by digest, by name

    def add(self, digest: str, owner: str, size_bytes: int, now_s: float) -> None:
        """An image is an owner's."""
        with self._lock:
            self._owned.setdefault(digest, {})[owner] = _Owned(size_bytes, now_s)

    def owners(self, digest: str) -> set[str]:
        """Whose it is."""
        with self._lock:
            return set(self._owned.get(digest, ()))

    def owns(self, digest: str, owner: str) -> bool:
        """Whether it is an owner's."""
        return owner in self.owners(digest)

    def remove(self, digest: str, owner: str) -> bool:
        """It is not this owner's any more."""
        with self._lock:
            owned = self._owned.get(digest, {})
            owned.pop(owner, None)
            if not owned:
                self._forget(digest)
            return not owned

    def forget(self, digest: str) -> None:
        """It is nobody's any more."""
        with self._lock:
            self._forget(digest)

    def record(self, name: str, checksum: str, size_bytes: int) -> None:
        """Record the SHA-256 and the size of a content that a file may have."""
        digest = digest_of(name)
        with self._lock:
            if digest in self._owned:
                self._checksums.setdefault(digest, {}).setdefault(name, {})[checksum] = size_bytes

    def checksums(self, name: str) -> dict[str, int]:
        """Return what was recorded for a file."""
        with self._lock:
            return dict(self._checksums.get(digest_of(name), {}).get(name, {}))

    def digests(self, after: str, most: int) -> list[str]:
        """Return up to `most` images that somebody owns, in order."""
        with self._lock:
            return sorted(digest for digest in self._owned if digest > after)[:most]

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Make images that are dated in a span as new as `now_s`."""
        with self._lock:
            for owned in self._owned.values():
                for owner, one in owned.items():
                    if from_s <= one.created_s and (until_s is None or one.created_s <= until_s):
                        owned[owner] = one._replace(created_s=now_s)

    def outdated(self, before_s: float | None, most_bytes: int | None, most: int) -> list[str]:
        """Up to `most` images to give up, the oldest first."""
        with self._lock:
            images = [
                (max(one.created_s for one in owned.values()), digest, max(one.size_bytes for one in owned.values()))
                for digest, owned in self._owned.items()
            ]
        given_up, total_bytes = [], 0
        for created_s, digest, size_bytes in sorted(images, reverse=True):
            total_bytes += size_bytes
            if (before_s is not None and created_s < before_s) or (most_bytes is not None and total_bytes > most_bytes):
                given_up.append(digest)
        return given_up[::-1][:most]

    def _forget(self, digest: str) -> None:
        self._owned.pop(digest, None)
        self._checksums.pop(digest, None)

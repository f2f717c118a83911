"""Retention of images, by age and by total size."""

from dataclasses import dataclass

from sd35.settings import Settings
from sd35.storage.images import ImageStore

_PAGE = 100
# By then every client that waits for the image has it, and its job has ended: a job writes the image before it ends.
_MIN_AGE_S = 600.0
_DAY_S, _GB = 24 * 3600.0, 10**9


@dataclass(frozen=True)
class Retention:
    """Deletes images older than `retention_s`, and the oldest ones beyond `retention_bytes`. None disables a bound.

    The age of an image counts from the last request for it. Images of the last ten minutes are never deleted, so
    `retention_bytes` may be exceeded by what is generated in that time.
    """

    images: ImageStore
    retention_s: float | None
    retention_bytes: int | None

    @classmethod
    def from_settings(cls, settings: Settings, images: ImageStore) -> "Retention":
        """Use the bounds of the settings. 0 disables a bound."""
        return cls(images, settings.retention_days * _DAY_S or None, int(settings.retention_gb * _GB) or None)

    def sweep(self, now_s: float, *, by_age: bool = True) -> int:
        """Delete expired images. Returns how many. Without `by_age`, only `retention_bytes` counts.

        Blocks. Raises StoreUnavailable; the next call resumes.
        """
        count = 0
        while digests := self._expired(now_s, by_age=by_age):
            for digest in digests:
                self.images.delete(digest)
            count += len(digests)
        return count

    def _expired(self, now_s: float, *, by_age: bool) -> list[str]:
        index = self.images.ownership
        too_old = index.expired(now_s - self.retention_s, None, _PAGE) if self.retention_s and by_age else []
        if too_old or not self.retention_bytes:
            return too_old
        deletable = set(index.expired(now_s - _MIN_AGE_S, None, _PAGE))
        return [digest for digest in index.expired(None, self.retention_bytes, _PAGE) if digest in deletable]

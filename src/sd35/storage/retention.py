"""How long images are kept: by age, and by the room they take."""

from dataclasses import dataclass

from sd35.settings import Settings
from sd35.storage.images import ImageStore

_AT_ONCE = 100
# Whoever waits for an image has it by then, and the job that made it has ended: a job writes its image first.
_ASKED_FOR_S = 600.0
_DAY_S, _GB = 24 * 3600.0, 10**9


@dataclass(frozen=True)
class Retention:
    """Removes images older than `keep_s`, and the oldest of more than `keep_bytes`; None is no bound.

    An image is as old as the last request for it. None of the last ten minutes is removed, so that `keep_bytes` may be
    exceeded by what is made in that time.
    """

    images: ImageStore
    retention_s: float | None
    retention_bytes: int | None

    @classmethod
    def of(cls, settings: Settings, images: ImageStore) -> "Retention":
        """As the settings say, where 0 is no bound."""
        return cls(images, settings.retention_days * _DAY_S or None, int(settings.retention_gb * _GB) or None)

    def sweep(self, now_s: float, *, by_age: bool = True) -> int:
        """Remove what is not to be kept; how many that were. Blocks. Raises StoreUnavailable, and goes on next time.

        Without `by_age`, only the room for images counts.
        """
        count = 0
        while digests := self._outdated(now_s, by_age=by_age):
            for digest in digests:
                self.images.give_up(digest)
            count += len(digests)
        return count

    def _outdated(self, now_s: float, *, by_age: bool) -> list[str]:
        index = self.images.index
        old = index.outdated(now_s - self.retention_s, None, _AT_ONCE) if self.retention_s and by_age else []
        if old or not self.retention_bytes:
            return old
        settled = set(index.outdated(now_s - _ASKED_FOR_S, None, _AT_ONCE))
        return [digest for digest in index.outdated(None, self.retention_bytes, _AT_ONCE) if digest in settled]

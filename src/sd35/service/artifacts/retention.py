"""How long pictures are kept: by age, and by the room they take."""

from dataclasses import dataclass
from typing import Protocol

from sd35.service.artifacts.contract import ArtifactStore
from sd35.service.artifacts.names import names_of
from sd35.settings import Settings

_AT_ONCE = 100
# Whoever waits for a picture has it by then, and the job that made it has ended: a job writes its picture first.
_ASKED_FOR_S = 600.0
_DAY_S, _GB = 24 * 3600.0, 10**9


class Aging(Protocol):
    """What retention asks of the index of pictures."""

    def outdated(self, before_s: float | None, most_bytes: int | None, most: int) -> list[str]:
        """The digests of up to `most` pictures to give up, the oldest first; None is no bound."""

    def forget(self, digest: str) -> None:
        """The picture is nobody's any more."""


@dataclass(frozen=True)
class Retention:
    """Removes pictures older than `keep_s`, and the oldest of more than `keep_bytes`; None is no bound.

    A picture is as old as the last request for it. None of the last ten minutes is removed, so that `keep_bytes` may be
    exceeded by what is made in that time.
    """

    pictures: ArtifactStore
    index: Aging
    keep_s: float | None
    keep_bytes: int | None

    @classmethod
    def of(cls, settings: Settings, pictures: ArtifactStore, index: Aging) -> "Retention":
        """As the settings say, where 0 is no bound."""
        return cls(pictures, index, settings.keep_days * _DAY_S or None, int(settings.keep_gb * _GB) or None)

    def sweep(self, now_s: float) -> int:
        """Remove what is not to be kept; how many that were. Blocks. Raises StoreUnavailable, and goes on next time."""
        count = 0
        while digests := self._outdated(now_s):
            for digest in digests:
                remove(self.pictures, digest)
                self.index.forget(digest)  # last: a file that nobody knows of would never be removed
            count += len(digests)
        return count

    def _outdated(self, now_s: float) -> list[str]:
        by_age = self.index.outdated(now_s - self.keep_s, None, _AT_ONCE) if self.keep_s else []
        if by_age or not self.keep_bytes:
            return by_age
        settled = set(self.index.outdated(now_s - _ASKED_FOR_S, None, _AT_ONCE))
        return [digest for digest in self.index.outdated(None, self.keep_bytes, _AT_ONCE) if digest in settled]


def remove(pictures: ArtifactStore, digest: str) -> None:
    """Remove all files of a picture. Raises StoreUnavailable."""
    for name in names_of(digest):
        pictures.delete(name)

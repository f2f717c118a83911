"""Delete images and jobs past their retention period, unless the clock cannot be trusted."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from sd35.settings import Settings
from sd35.storage.clock import ClockRecord, ClockRules
from sd35.storage.database import Database
from sd35.storage.images import ImageStore

_PAGE = 100  # images to delete per query
# The size limit deletes no younger images: clients may still wait for them, and a job writes its image before it ends.
_MIN_AGE_S = 600.0
_MAX_SKEW_S = 600.0  # between the clocks of several machines
_DAY_S, _GB = 24 * 3600.0, 10**9


@dataclass(frozen=True)
class Retention:
    """Deletes images older than `retention_s`, and the oldest ones beyond `retention_bytes`. None disables a bound.

    The age of an image counts from the last request for it. The size limit never deletes images that were requested in
    the last ten minutes, so these images may exceed `retention_bytes`.
    """

    images: ImageStore
    retention_s: float | None
    retention_bytes: int | None

    @classmethod
    def from_settings(cls, settings: Settings, images: ImageStore) -> "Retention":
        """Use the settings `retention_days` and `retention_gb` as bounds. 0 disables a bound."""
        return cls(images, settings.retention_days * _DAY_S or None, int(settings.retention_gb * _GB) or None)

    def sweep(self, now_s: float, *, by_age: bool = True) -> int:
        """Delete the images that exceed a bound. Returns their number. Without `by_age`, `retention_s` does not apply.

        Blocks. Raises StoreUnavailable if a store does not answer. The next call then deletes the remaining images.
        """
        count = 0
        while digests := self._expired(now_s, by_age=by_age):
            for digest in digests:
                self.images.delete(digest)
            count += len(digests)
        return count

    def _expired(self, now_s: float, *, by_age: bool) -> list[str]:
        """Return the digests of images to delete next, oldest first. Returns an empty list if none are left."""
        index = self.images.ownership
        if by_age and self.retention_s:
            too_old = index.expired(now_s - self.retention_s, None, _PAGE)
            if too_old:
                return too_old
        if not self.retention_bytes:
            return []
        deletable = set(index.expired(now_s - _MIN_AGE_S, None, _PAGE))
        return [digest for digest in index.expired(None, self.retention_bytes, _PAGE) if digest in deletable]


class SweepResult(NamedTuple):
    """Numbers of deleted images and deleted jobs."""

    images: int
    jobs: int


class Sweeper:
    """Deletes old jobs, and has `retention` delete images. Deletes nothing by age while the clock cannot be trusted.

    Args:
        retention: Deletes images that exceed its bounds.
        database: The database with the jobs, the owners of images, and the clock record.
        retention_s: How long to keep jobs after they have ended, in seconds. None is unlimited.
    """

    def __init__(self, retention: Retention, database: Database, retention_s: float | None) -> None:
        self._retention, self._database, self._retention_s = retention, database, retention_s
        self._rules = ClockRules.for_retention(retention_s)
        self._suspect_since_s: float | None = None

    @property
    def is_paused(self) -> bool:
        """Whether retention by age is paused because the clock cannot be trusted."""
        return self._suspect_since_s is not None

    def sweep(self, now_s: float) -> SweepResult:
        """Delete old jobs, old images, and images beyond the size limit. Blocks.

        While the clock cannot be trusted, only the size limit applies: with any clock, it deletes no more than the
        excess. Raises StoreUnavailable if a store does not answer.
        """
        reading = self._database.clock.read(now_s, self._rules)
        self._log_changes(reading.record, now_s)
        if not reading.is_trusted:
            return SweepResult(self._retention.sweep(now_s, by_age=False), 0)
        if reading.misdated:  # images and jobs from the time when the clock was behind would look too old
            self._redate(*reading.misdated, now_s)
        # Images and jobs with dates in the future, from a clock that was ahead, would be kept too long.
        self._redate(now_s + _MAX_SKEW_S, None, now_s)
        images = self._retention.sweep(now_s)
        jobs = self._database.jobs.sweep(now_s - self._retention_s) if self._retention_s else 0
        return SweepResult(images, jobs)

    def _redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Set dates of images and jobs between `from_s` and `until_s` to `now_s`. None means no upper bound."""
        self._database.ownership.redate(from_s, until_s, now_s)
        self._database.jobs.redate(from_s, until_s, now_s)

    def _log_changes(self, record: ClockRecord, now_s: float) -> None:
        """Log that retention by age has paused or resumed since the last call."""
        since_s, former_since_s = record.suspect_since_s, self._suspect_since_s
        self._suspect_since_s = since_s
        if since_s == former_since_s:
            return
        if since_s is None:
            structlog.get_logger().info("retention by age resumed: the clock is trusted again", clock=_iso_date(now_s))
            return
        assert record.trusted_s is not None  # only a reading after a trusted one can be suspect
        structlog.get_logger().warning(
            "retention by age is paused: the clock has jumped",
            clock=_iso_date(now_s),
            last_seen=_iso_date(record.trusted_s),
            resumes=_iso_date(since_s + self._rules.confirmed_s),
            remedy="correct the clock if it is wrong; if it is right, wait",
        )


def _iso_date(time_s: float) -> str:
    """Return a time in seconds since 1970 as a date in UTC: `2026-01-31T12:00:00+00:00`."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")

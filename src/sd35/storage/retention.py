"""Delete images and jobs past their retention period, unless the clock cannot be trusted."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from sd35.settings import Settings
from sd35.storage.clock import ClockRecord, ClockRules
from sd35.storage.database import Database
from sd35.storage.images import ImageStore

_PAGE = 100
# Younger images are never deleted: clients may still wait for them, and a job writes its image before it ends.
_MIN_AGE_S = 600.0
_MAX_SKEW_S = 600.0  # between the clocks of several machines
_DAY_S, _GB = 24 * 3600.0, 10**9


@dataclass(frozen=True)
class Retention:
    """Deletes images older than `retention_s`, and the oldest ones beyond `retention_bytes`. None disables a bound.

    The age of an image counts from the last request for it. Images of the last ten minutes are never deleted, so the
    images generated in that time may exceed `retention_bytes`.
    """

    images: ImageStore
    retention_s: float | None
    retention_bytes: int | None

    @classmethod
    def from_settings(cls, settings: Settings, images: ImageStore) -> "Retention":
        """Use the bounds of the settings. 0 disables a bound."""
        return cls(images, settings.retention_days * _DAY_S or None, int(settings.retention_gb * _GB) or None)

    def sweep(self, now_s: float, *, by_age: bool = True) -> int:
        """Delete expired images. Returns their number. Without `by_age`, only `retention_bytes` applies.

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


class SweepResult(NamedTuple):
    """Number of images and jobs that were deleted."""

    images: int
    jobs: int


class Sweeper:
    """Deletes expired images and jobs.

    Args:
        retention: Retention of images.
        database: The database to sweep.
        retention_s: Time to keep jobs after they have ended, in seconds. None is unlimited.
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
        """Delete expired jobs and images, and images beyond the size limit. Blocks. Raises StoreUnavailable.

        While the clock cannot be trusted, only the size limit applies, because it deletes no more than the excess.
        """
        reading = self._database.clock.read(now_s, self._rules)
        self._log_changes(reading.record, now_s)
        if not reading.is_trusted:
            return SweepResult(self._retention.sweep(now_s, by_age=False), 0)
        if reading.misdated:  # rows written while the clock was behind would look too old
            self._redate(*reading.misdated, now_s)
        self._redate(now_s + _MAX_SKEW_S, None, now_s)  # rows written while the clock was ahead would expire too late
        images = self._retention.sweep(now_s)
        return SweepResult(images, self._database.jobs.sweep(now_s - self._retention_s) if self._retention_s else 0)

    def _redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        self._database.ownership.redate(from_s, until_s, now_s)
        self._database.jobs.redate(from_s, until_s, now_s)

    def _log_changes(self, record: ClockRecord, now_s: float) -> None:
        since_s, before_s = record.suspect_since_s, self._suspect_since_s
        self._suspect_since_s = since_s
        if since_s == before_s:
            return
        if since_s is None:
            structlog.get_logger().info("retention by age resumed: the clock is trusted again", clock=_date(now_s))
            return
        assert record.trusted_s is not None
        structlog.get_logger().warning(
            "retention by age is paused: the clock has jumped",
            clock=_date(now_s),
            last_seen=_date(record.trusted_s),
            resumes=_date(since_s + self._rules.confirmed_s),
            remedy="correct the clock if it is wrong; if it is right, wait",
        )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

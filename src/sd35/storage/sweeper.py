"""Delete images and jobs past their retention period, unless the clock cannot be trusted."""

from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from sd35.storage.clock import ClockRecord, ClockRules
from sd35.storage.database import Database
from sd35.storage.retention import Retention

_MAX_SKEW_S = 600.0  # between the clocks of several machines


class SweepResult(NamedTuple):
    """Number of images and jobs that were deleted."""

    images: int
    jobs: int


class Sweeper:
    """Deletes expired images and jobs.

    Args:
        retention: Retention of images.
        database: The database to sweep.
        retention_s: How long to keep jobs that have ended, in seconds. None keeps them for ever.
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

        While the clock cannot be trusted, only the size limit applies: it never deletes more than the excess.
        """
        reading = self._database.clock.read(now_s, self._rules)
        self._log_changes(reading.record, now_s)
        if not reading.is_trusted:
            return SweepResult(self._retention.sweep(now_s, by_age=False), 0)
        if reading.misdated:  # written while the clock was behind: such rows would look too old
            self._redate(*reading.misdated, now_s)
        self._redate(now_s + _MAX_SKEW_S, None, now_s)  # written while the clock was ahead: would never get old
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
            structlog.get_logger().info("retention goes on: the clock is trusted again", clock=_date(now_s))
            return
        assert record.trusted_s is not None
        structlog.get_logger().warning(
            "retention is paused: the clock has jumped, so nothing is removed for its age",
            clock=_date(now_s),
            last_seen=_date(record.trusted_s),
            resumes=_date(since_s + self._rules.confirmed_s),
            remedy="correct the clock if it is wrong; if it is right, wait",
        )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

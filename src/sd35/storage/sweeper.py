"""Remove images and jobs that are not to be kept, as far as the clock can be believed."""

from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from sd35.storage.clock import ClockRecord, ClockRules
from sd35.storage.database import Database
from sd35.storage.retention import Retention

_AHEAD_S = 600.0  # by so much, clocks of several machines may differ


class SweepResult(NamedTuple):
    """How many were removed."""

    images: int
    jobs: int


class Sweeper:
    """Sweeps `stores`. `keep_s`: how long ended jobs are known, None for ever."""

    def __init__(self, retention: Retention, database: Database, retention_s: float | None) -> None:
        self._retention, self._stores, self._retention_s = retention, database, retention_s
        self._rules = ClockRules.of(retention_s)
        self._suspect_since_s: float | None = None

    @property
    def is_paused(self) -> bool:
        """Whether nothing is removed for its age, since the clock cannot be believed."""
        return self._suspect_since_s is not None

    def sweep(self, now_s: float) -> SweepResult:
        """Remove what is too old, and images beyond the room for them. Blocks. Raises StoreUnavailable.

        While the clock cannot be believed, only room counts: that never removes more than is too much.
        """
        reading = self._stores.clock.read(now_s, self._rules)
        self._tell(reading.record, now_s)
        if not reading.is_trusted:
            return SweepResult(self._retention.sweep(now_s, by_age=False), 0)
        if reading.misdated:  # with a clock that was behind: else it would be taken for old
            self._redate(*reading.misdated, now_s)
        self._redate(now_s + _AHEAD_S, None, now_s)  # with a clock that was ahead: else it would never get old
        images = self._retention.sweep(now_s)
        return SweepResult(images, self._stores.jobs.sweep(now_s - self._retention_s) if self._retention_s else 0)

    def _redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        self._stores.images.redate(from_s, until_s, now_s)
        self._stores.jobs.redate(from_s, until_s, now_s)

    def _tell(self, record: ClockRecord, now_s: float) -> None:
        since_s, before_s = record.suspect_since_s, self._suspect_since_s
        self._suspect_since_s = since_s
        if since_s == before_s:
            return
        if since_s is None:
            structlog.get_logger().info("retention goes on: the clock is believed again", clock=_date(now_s))
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

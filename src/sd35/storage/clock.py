"""Decide whether the wall clock can be believed before anything is removed for its age.

One reading does not tell a wrong clock from a server that was switched off for months. After a jump, nothing is removed
until the clock is back, or a server has run with the new time for a day. A wrong clock is noticed by then, and a server
that was off has lost nothing but that day. Only the time between readings that follow each other closely counts: a
clock that is wrong in another way at each start confirms nothing.
"""

import threading
from dataclasses import dataclass
from typing import NamedTuple, Protocol

_DAY_S = 24 * 3600.0
_NEXT_S = 3600.0  # between readings of a server that runs; they are 5 minutes apart, and longer under load
_AROUND_S = 600.0  # what is dated near a suspect reading was dated by the same clock; readings are 5 minutes apart


@dataclass(frozen=True)
class ClockRecord:
    """The last reading that was believed, and the first and last of those that are not yet. Seconds since 1970.

    `suspect_for_s`: for how long a server has run with the suspect time.
    """

    trusted_s: float | None = None
    suspect_since_s: float | None = None
    suspect_last_s: float | None = None
    suspect_for_s: float = 0.0


class ClockRules(NamedTuple):
    """What is believed.

    `plausible_s`: the largest change between two readings. `confirmed_s`: how long a server runs before a new time is
    believed.
    """

    plausible_s: float
    confirmed_s: float

    @classmethod
    def of(cls, retention_s: float | None) -> "ClockRules":
        """For what is kept so long; None is for ever.

        A quarter of it, so that three quarters are kept in any case. What is kept for hours, perhaps for privacy, is
        not kept for a day longer.
        """
        return cls(7 * _DAY_S, _DAY_S) if retention_s is None else cls(retention_s / 4, min(_DAY_S, retention_s))


class Reading(NamedTuple):
    """What a reading of the clock means. `misdated`: from when to when the clock was wrong, once that is known."""

    record: ClockRecord
    is_trusted: bool
    misdated: tuple[float, float] | None = None


class ClockStore(Protocol):
    """Keeps the record of the clock, beside what is removed by it.

    Safe for threads; blocks. Raises StoreUnavailable.
    """

    def read(self, now_s: float, rules: ClockRules) -> Reading:
        """Judge a reading, and keep the record that follows, in one transaction."""


class MemoryClockStore:
    """A ClockStore."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._record = ClockRecord()

    def read(self, now_s: float, rules: ClockRules) -> Reading:
        """Judge a reading."""
        with self._lock:
            reading = judged(self._record, now_s, rules)
            self._record = reading.record
            return reading


def judged(record: ClockRecord, now_s: float, rules: ClockRules) -> Reading:
    """Judge a reading by those before. The first reading of a new database is believed: it holds nothing yet."""
    trusted_s, since_s, last_s = record.trusted_s, record.suspect_since_s, record.suspect_last_s
    misdated, for_s = None, 0.0
    if trusted_s is None:
        is_trusted = True
    elif since_s is None or last_s is None:
        is_trusted = abs(now_s - trusted_s) <= rules.plausible_s
        since_s = now_s
    elif abs(now_s - trusted_s - (last_s - since_s)) <= rules.plausible_s:
        is_trusted = True  # it is back: a wrong clock measures durations as well as a right one
        misdated = since_s - _AROUND_S, last_s + _AROUND_S
    elif abs(now_s - last_s) <= rules.plausible_s:
        since_s = min(since_s, now_s)
        for_s = record.suspect_for_s + (now_s - last_s if 0 <= now_s - last_s <= _NEXT_S else 0)
        is_trusted = for_s >= rules.confirmed_s
    else:
        is_trusted = False  # it has jumped again
        since_s = now_s
    following = ClockRecord(now_s) if is_trusted else ClockRecord(trusted_s, since_s, now_s, for_s)
    return Reading(following, is_trusted, misdated)

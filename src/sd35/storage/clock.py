"""Decide whether the wall clock can be trusted, before anything is deleted by age.

A single reading cannot distinguish a wrong clock from a server that was off for months. After a jump of the clock,
nothing is deleted by age until the clock jumps back, or until a server has run with the new time for a day. That day is
enough to notice a wrong clock, and a server that was off for months only deletes a day later. Only time between two
readings of a running server counts, so a clock that is wrong in a different way at each start is never trusted.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

_DAY_S = 24 * 3600.0
_MAX_INTERVAL_S = 3600.0  # between two readings of a running server: normally 5 minutes, longer under load
_MARGIN_S = 600.0  # dates this close to a suspect reading are suspect too: readings are 5 minutes apart


@dataclass(frozen=True)
class ClockRecord:
    """The last trusted reading of the clock, and the later readings that are not trusted yet. Seconds since 1970.

    Attributes:
        trusted_s: The last trusted reading. None in a new database.
        suspect_since_s: The first reading that is not trusted.
        suspect_last_s: The last reading that is not trusted.
        suspect_for_s: How long a server has run with the suspect time, in seconds.
    """

    trusted_s: float | None = None
    suspect_since_s: float | None = None
    suspect_last_s: float | None = None
    suspect_for_s: float = 0.0


class ClockRules(NamedTuple):
    """Rules for trusting the clock.

    Attributes:
        plausible_s: The largest plausible change between two readings, in seconds.
        confirmed_s: Time that a server must run before a new time is trusted, in seconds.
    """

    plausible_s: float
    confirmed_s: float

    @classmethod
    def for_retention(cls, retention_s: float | None) -> "ClockRules":
        """Return rules for a retention period in seconds. None means that data is never deleted.

        A quarter of the period is plausible, so that data is kept for at least three quarters of it. A period of less
        than a day, perhaps chosen for privacy, is extended by at most itself, not by a whole day.
        """
        return cls(7 * _DAY_S, _DAY_S) if retention_s is None else cls(retention_s / 4, min(_DAY_S, retention_s))


class Reading(NamedTuple):
    """A judged reading of the clock.

    Attributes:
        record: The record to store.
        is_trusted: Whether the clock can be trusted now.
        misdated: First and last time that the clock showed while it was wrong. Set when the clock has jumped back.
    """

    record: ClockRecord
    is_trusted: bool
    misdated: tuple[float, float] | None = None


class ClockStore(Protocol):
    """Stores the clock record in the same database as the rows that are deleted by age.

    Thread-safe. Methods block and raise StoreUnavailable.
    """

    def read(self, now_s: float, rules: ClockRules) -> Reading:
        """Judge a reading and store the new record, in one transaction."""


def judge(record: ClockRecord, now_s: float, rules: ClockRules) -> Reading:
    """Judge a reading by the earlier ones. The first reading of a new database is trusted: it has nothing to delete."""
    trusted_s, since_s, last_s = record.trusted_s, record.suspect_since_s, record.suspect_last_s
    misdated, for_s = None, 0.0
    if trusted_s is None:
        is_trusted = True
    elif since_s is None or last_s is None:
        is_trusted = abs(now_s - trusted_s) <= rules.plausible_s
        since_s = now_s
    elif abs(now_s - trusted_s - (last_s - since_s)) <= rules.plausible_s:
        is_trusted = True  # the clock has jumped back; even a wrong clock measures the time between two readings
        misdated = since_s - _MARGIN_S, last_s + _MARGIN_S
    elif abs(now_s - last_s) <= rules.plausible_s:
        since_s = min(since_s, now_s)
        for_s = record.suspect_for_s + (now_s - last_s if 0 <= now_s - last_s <= _MAX_INTERVAL_S else 0)
        is_trusted = for_s >= rules.confirmed_s
    else:
        is_trusted = False  # another jump
        since_s = now_s
    new_record = ClockRecord(now_s) if is_trusted else ClockRecord(trusted_s, since_s, now_s, for_s)
    return Reading(new_record, is_trusted, misdated)

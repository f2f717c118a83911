"""Decide whether the wall clock can be trusted before anything is removed for its age.

A single reading cannot distinguish a wrong clock from a server that was off for months. After a jump of the clock,
nothing is removed until the clock jumps back, or until a server has run with the new time for a day. A wrong clock is
noticed within that day, and a server that was off only loses a day. Only the time between readings in close succession
counts, so a clock that is wrong in a different way at each start never confirms itself.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

_DAY_S = 24 * 3600.0
_MAX_INTERVAL_S = 3600.0  # between readings of a running server; normally 5 minutes, longer under load
_MARGIN_S = 600.0  # dates this close to a suspect reading came from the same clock; readings are 5 minutes apart


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
    """When to trust the clock.

    Attributes:
        plausible_s: The largest plausible change between two readings, in seconds.
        confirmed_s: How long a server must run before a new time is trusted, in seconds.
    """

    plausible_s: float
    confirmed_s: float

    @classmethod
    def for_retention(cls, retention_s: float | None) -> "ClockRules":
        """Return rules for a retention period. None means that data is kept for ever.

        A quarter of the period is plausible, so that data is kept for at least three quarters of it. Short retention
        periods, perhaps chosen for privacy, are not extended by a whole day.
        """
        return cls(7 * _DAY_S, _DAY_S) if retention_s is None else cls(retention_s / 4, min(_DAY_S, retention_s))


class Reading(NamedTuple):
    """A judged reading of the clock.

    Attributes:
        record: The record to store.
        is_trusted: Whether the clock can be trusted now.
        misdated: First and last moment at which the clock was wrong, as soon as this is known.
    """

    record: ClockRecord
    is_trusted: bool
    misdated: tuple[float, float] | None = None


class ClockStore(Protocol):
    """Stores the clock record in the database whose rows are removed by that clock.

    Thread-safe. Methods block and raise StoreUnavailable.
    """

    def read(self, now_s: float, rules: ClockRules) -> Reading:
        """Judge a reading and store the new record, in one transaction."""


def judge(record: ClockRecord, now_s: float, rules: ClockRules) -> Reading:
    """Judge a reading by the earlier ones. The first reading of a new database is trusted: there is nothing to lose."""
    trusted_s, since_s, last_s = record.trusted_s, record.suspect_since_s, record.suspect_last_s
    misdated, for_s = None, 0.0
    if trusted_s is None:
        is_trusted = True
    elif since_s is None or last_s is None:
        is_trusted = abs(now_s - trusted_s) <= rules.plausible_s
        since_s = now_s
    elif abs(now_s - trusted_s - (last_s - since_s)) <= rules.plausible_s:
        is_trusted = True  # the clock has jumped back: a wrong clock measures durations as well as a right one
        misdated = since_s - _MARGIN_S, last_s + _MARGIN_S
    elif abs(now_s - last_s) <= rules.plausible_s:
        since_s = min(since_s, now_s)
        for_s = record.suspect_for_s + (now_s - last_s if 0 <= now_s - last_s <= _MAX_INTERVAL_S else 0)
        is_trusted = for_s >= rules.confirmed_s
    else:
        is_trusted = False  # another jump
        since_s = now_s
    following = ClockRecord(now_s) if is_trusted else ClockRecord(trusted_s, since_s, now_s, for_s)
    return Reading(following, is_trusted, misdated)

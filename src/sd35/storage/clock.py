"""Decide whether the wall clock can be trusted, before anything is deleted by age.

A single reading cannot distinguish a wrong clock from a server that was off for months. After a jump of the clock,
nothing is deleted by age until the clock jumps back, or until a server has run with the new time for a day. If data is
kept for less than a day, the server must run for that period instead. The operator has this time to notice a wrong
clock. If the server was off for months, it deletes old data a day later.

The day is the sum of the intervals between readings of a running server. A clock that shows another wrong time after
each start is therefore never trusted.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

_DAY_S = 24 * 3600.0
_MAX_INTERVAL_S = 3600.0  # between two readings of a running server: normally 5 minutes, longer under load
_MARGIN_S = 600.0  # dates this close to a suspect reading are suspect too: readings are 5 minutes apart


@dataclass(frozen=True)
class ClockRecord:
    """The last trusted reading of the clock, and the later readings that are not trusted yet.

    All readings are in seconds since 1970.

    Attributes:
        trusted_s: The last trusted reading. None in a new database.
        suspect_since_s: The earliest reading that is not trusted. None if the last reading was trusted.
        suspect_last_s: The last reading that is not trusted. None if the last reading was trusted.
        suspect_for_s: How long a server has run since the clock jumped, in seconds.
    """

    trusted_s: float | None = None
    suspect_since_s: float | None = None
    suspect_last_s: float | None = None
    suspect_for_s: float = 0.0


class ClockRules(NamedTuple):
    """Rules for trusting the clock.

    Attributes:
        plausible_s: The largest plausible change between two readings, in seconds.
        confirmed_s: How long a server must run after a jump of the clock before the new time is trusted, in seconds.
    """

    plausible_s: float
    confirmed_s: float

    @classmethod
    def for_retention(cls, retention_s: float | None) -> "ClockRules":
        """Return rules for a retention period in seconds. None means that nothing is deleted by age.

        A change of a quarter of the period is plausible, so data is kept for at least three quarters of the period. A
        new time is trusted after a day, or after the period if the period is shorter. After a jump of the clock, data
        with a short period is therefore kept for at most twice that period. Operators choose short periods for privacy.
        """
        if retention_s is None:
            return cls(plausible_s=7 * _DAY_S, confirmed_s=_DAY_S)
        return cls(plausible_s=retention_s / 4, confirmed_s=min(_DAY_S, retention_s))


class Reading(NamedTuple):
    """Whether a reading of the clock is trusted, and the new clock record.

    Attributes:
        record: The clock record after this reading.
        is_trusted: Whether the clock can be trusted now.
        misdated: First and last time that the clock showed while it was wrong, in seconds since 1970. Only set when the
            clock has jumped back. Dates in this span are wrong.
    """

    record: ClockRecord
    is_trusted: bool
    misdated: tuple[float, float] | None = None


class ClockStore(Protocol):
    """Stores the clock record in the same database as the images and jobs that are deleted by age.

    Thread-safe. Methods block. They raise StoreUnavailable if the database does not answer.
    """

    def read(self, now_s: float, rules: ClockRules) -> Reading:
        """Decide with `judge` whether the clock can be trusted if it now shows `now_s`. Returns the decision.

        One transaction reads the old clock record and stores the new one.
        """


def judge(record: ClockRecord, now_s: float, rules: ClockRules) -> Reading:
    """Decide from the earlier readings whether the reading `now_s`, in seconds since 1970, is trusted.

    Returns the decision and the new clock record. Stores nothing.
    """
    trusted_s, since_s, last_s = record.trusted_s, record.suspect_since_s, record.suspect_last_s
    misdated, for_s = None, 0.0
    if trusted_s is None:
        is_trusted = True  # a new database contains nothing to delete
    elif since_s is None or last_s is None:  # the last reading was trusted
        is_trusted = abs(now_s - trusted_s) <= rules.plausible_s
        since_s = now_s
    elif abs(now_s - trusted_s - (last_s - since_s)) <= rules.plausible_s:
        # The clock has jumped back. While it was wrong, it still measured how much time passed: `last_s - since_s`.
        is_trusted = True
        misdated = since_s - _MARGIN_S, last_s + _MARGIN_S
    elif abs(now_s - last_s) <= rules.plausible_s:  # the clock continues from the suspect reading
        since_s = min(since_s, now_s)
        for_s = record.suspect_for_s + (now_s - last_s if 0 <= now_s - last_s <= _MAX_INTERVAL_S else 0)
        is_trusted = for_s >= rules.confirmed_s
    else:
        is_trusted = False  # the clock has jumped to a third time
        since_s = now_s
    new_record = ClockRecord(now_s) if is_trusted else ClockRecord(trusted_s, since_s, now_s, for_s)
    return Reading(new_record, is_trusted, misdated)

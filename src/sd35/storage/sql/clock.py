"""The last trusted reading of the clock, in an SQL database."""

from dataclasses import asdict

from sqlalchemy import select, update

from sd35.storage.clock import ClockRecord, ClockRules, Reading, judge
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.tables import clock


class SqlClockStore:
    """A ClockStore in an SQL database. Its table has one row, which a migration creates."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    def read(self, now_s: float, rules: ClockRules) -> Reading:
        """Decide whether the clock can be trusted if it now shows `now_s`, and store the new clock record."""
        columns = clock.c.trusted_s, clock.c.suspect_since_s, clock.c.suspect_last_s, clock.c.suspect_for_s
        with self._database.write(is_durable=False) as connection:
            # The lock on the row lets one process at a time judge a reading.
            row = connection.execute(select(*columns).with_for_update()).one()
            reading = judge(ClockRecord(*row), now_s, rules)
            connection.execute(update(clock).values(asdict(reading.record)))
        return reading

"""Leases of jobs in an SQL database: their clock, and their expiry."""

import time
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Double, cast, extract, func, literal, or_, select

from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.holders import HolderLocks
from sd35.storage.sql.tables import jobs


class Leases:
    """Decides which leases have expired, without using the wall clock of this machine.

    With PostgreSQL, leases are measured by the clock of the database server. With SQLite, they are measured by the
    monotonic clock, which all processes of a machine share, and end when their holder no longer locks its file. After
    a reboot, the monotonic clock restarts and no file is locked.
    """

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database
        self._holders = HolderLocks(Path(f"{database.path}.holders")) if database.path else None

    def hold(self, holder: str) -> None:
        """Show other processes that `holder` is alive. Raises StoreUnavailable."""
        try:
            if self._holders:
                self._holders.hold(holder)
        except OSError as error:
            raise self._database.unavailable(error.strerror or str(error)) from error

    def release(self, holder: str) -> None:
        """Stop showing other processes that `holder` is alive."""
        if self._holders:
            self._holders.release(holder)

    def now_s(self) -> ColumnElement[float]:
        """Return the time of the current statement by the clock of the leases."""
        if self._database.is_sqlite:
            return literal(time.monotonic())
        return cast(extract("epoch", func.statement_timestamp()), Double)

    def is_expired(self, connection: Connection, claimant: str, lease_s: float) -> ColumnElement[bool]:
        """Return the SQL condition that a lease has expired: by time, or because its holder is dead.

        A lease that ends much later than a new one would has also expired. It was granted before the server's clock was
        set back, before a reboot, or by a version that used the wall clock. The limit is twice the length of a lease,
        to allow for small corrections of the clock and for leases that are renewed while this statement runs.
        """
        now_s = self.now_s()
        by_time = or_(jobs.c.lease_until_s < now_s, jobs.c.lease_until_s > now_s + 2 * lease_s)
        if self._holders is None:
            return by_time
        others = select(jobs.c.holder).where(jobs.c.holder.is_not(None), jobs.c.holder != claimant).distinct()
        dead = self._holders.dead(connection.execute(others).scalars().all())
        return or_(by_time, jobs.c.holder.in_(dead)) if dead else by_time

    def close(self) -> None:
        """Release all holders of this process."""
        if self._holders:
            self._holders.close()

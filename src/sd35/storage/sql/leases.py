"""Decide when leases of jobs in an SQL database expire.

A lease is a job runner's temporary claim to a job. The job runner is called the lease's holder.
"""

import time
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Double, cast, extract, func, literal, or_, select

from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.holders import HolderLocks
from sd35.storage.sql.tables import jobs


class Leases:
    """Decides which leases have expired, without the wall clock of this machine.

    With PostgreSQL, the clock of the database server measures leases. With SQLite, the monotonic clock measures them:
    all processes of a machine share it. After a reboot, it starts again at zero.

    With SQLite, a lease also expires when the holder's process has ended and its file is unlocked (see `HolderLocks`).
    """

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database
        self._holders = HolderLocks(Path(f"{database.path}.holders")) if database.path else None

    def hold(self, holder: str) -> None:
        """Show other processes that `holder` is alive. Raises StoreUnavailable if its file cannot be locked."""
        try:
            if self._holders:
                self._holders.hold(holder)
        except OSError as error:
            raise self._database.unavailable(
                f"{self._database.path}.holders cannot contain lock files ({error.strerror or error}); check that path"
            ) from error

    def release(self, holder: str) -> None:
        """Stop showing other processes that `holder` is alive."""
        if self._holders:
            self._holders.release(holder)

    def now_s(self) -> ColumnElement[float]:
        """Return an SQL expression for the current time by the clock of the leases, in seconds."""
        if self._database.is_sqlite:
            return literal(time.monotonic())
        return cast(extract("epoch", func.statement_timestamp()), Double)

    def is_expired(self, connection: Connection, claimant: str, lease_s: float) -> ColumnElement[bool]:
        """Return an SQL condition for jobs with an expired lease: by time, or because the holder is dead.

        `claimant` is the holder that claims jobs now, and never counts as dead. `lease_s` is the length of a lease in
        seconds. Also deletes the files of dead holders.
        """
        now_s = self.now_s()
        # A lease ends at most `lease_s` from now. A lease that ends much later was granted before a reboot, before the
        # server's clock was set back, or by a version that used the wall clock. It counts as expired, too. The limit is
        # twice `lease_s`, because clocks are corrected by small amounts, and leases are renewed while this runs.
        by_time = or_(jobs.c.lease_until_s < now_s, jobs.c.lease_until_s > now_s + 2 * lease_s)
        if self._holders is None:
            return by_time
        others = select(jobs.c.holder).where(jobs.c.holder.is_not(None), jobs.c.holder != claimant).distinct()
        dead = self._holders.remove_dead(connection.execute(others).scalars().all())
        return or_(by_time, jobs.c.holder.in_(dead)) if dead else by_time

    def close(self) -> None:
        """Release all holders in this process."""
        if self._holders:
            self._holders.close()

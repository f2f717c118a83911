"""Age the leases of a job store. A test cannot move the clock of a PostgreSQL server."""

from sqlalchemy import update

from sd35.storage.jobs import JobStore
from sd35.storage.memory.jobs import MemoryJobStore
from sd35.storage.sql.jobs import SqlJobStore
from sd35.storage.sql.tables import jobs


def pass_time(store: JobStore, seconds: float) -> None:
    """Move the end of all leases of a store to an earlier time."""
    if isinstance(store, MemoryJobStore):
        for storage in store._entries.values():  # noqa: SLF001  a test's way to move its clock
            storage.lease_until_s -= seconds
        return
    assert isinstance(store, SqlJobStore)
    with store.database.write() as connection:
        connection.execute(update(jobs).values(lease_until_s=jobs.c.lease_until_s - seconds))

"""Let a store's leases grow older without waiting: no test can move the clock of a PostgreSQL server."""

from sqlalchemy import update

from sd35.service.database.jobs import SqlJobStore
from sd35.service.database.tables import jobs
from sd35.service.jobs.contract import JobStore
from sd35.service.jobs.memory import MemoryJobStore


def pass_time(store: JobStore, seconds: float) -> None:
    """Make all leases of a store end so much earlier."""
    if isinstance(store, MemoryJobStore):
        for kept in store._kept.values():  # noqa: SLF001  a test's way to move its clock
            kept.lease_until_s -= seconds
        return
    assert isinstance(store, SqlJobStore)
    with store.database.write() as connection:
        connection.execute(update(jobs).values(lease_until_s=jobs.c.lease_until_s - seconds))

"""Choice of the queued jobs to claim next, with queries that only use indexes."""

from typing import Any

from sqlalchemy import Connection, Select, func, select, union_all

from sd35.storage.fair_claim import Candidate, choose_fairly
from sd35.storage.jobs import Status
from sd35.storage.sql.tables import jobs

_IS_QUEUED, _IS_RUNNING = (jobs.c.status == status.value for status in (Status.QUEUED, Status.RUNNING))
_MOST_URGENT_FIRST = jobs.c.priority.desc(), jobs.c.number


def next_jobs(connection: Connection, limit: int) -> list[int]:
    """Return the numbers of up to `limit` queued jobs, in fair order (see `choose_fairly`).

    1. Read the most urgent job of each owner, and choose up to `limit` of these. Each owner's most urgent job comes
       before the owner's other jobs, so the result only contains jobs of the chosen owners.
    2. Read the `limit` most urgent jobs of each of these owners, and choose from them.

    All queries use an index, so their cost does not depend on the number of queued jobs.
    """
    counts = connection.execute(select(jobs.c.owner, func.count()).where(_IS_RUNNING).group_by(jobs.c.owner))
    running = {owner: int(count) for owner, count in counts}
    columns = select(jobs.c.owner, jobs.c.priority, jobs.c.number)  # the fields of Candidate
    firsts = connection.execute(columns.where(jobs.c.number.in_(_first_of_each_owner())))
    owners = [first.owner for first in choose_fairly((Candidate(*row) for row in firsts), running, limit)]
    if not owners:
        return []
    queued = columns.where(_IS_QUEUED).order_by(*_MOST_URGENT_FIRST).limit(limit)
    queued_of_owners = union_all(*(select(queued.where(jobs.c.owner == owner).subquery()) for owner in owners))
    rows = connection.execute(queued_of_owners)
    chosen = choose_fairly((Candidate(*row) for row in rows), running, limit)
    return [candidate.number for candidate in chosen]


def _first_of_each_owner() -> Select[Any]:
    """Return a query for the number of the most urgent queued job of each owner.

    The query contains a recursive CTE. Each step looks up the next owner in the index, and skips all jobs of the
    previous owner.
    """
    owners = select(func.min(jobs.c.owner).label("owner")).where(_IS_QUEUED).cte("owners", recursive=True)
    after = select(func.min(jobs.c.owner)).where(_IS_QUEUED, jobs.c.owner > owners.c.owner)
    owners = owners.union_all(select(after.correlate(owners).scalar_subquery()).where(owners.c.owner.is_not(None)))
    of_owner = select(jobs.c.number).where(_IS_QUEUED, jobs.c.owner == owners.c.owner)
    first = of_owner.order_by(*_MOST_URGENT_FIRST).limit(1)
    return select(first.correlate(owners).scalar_subquery()).select_from(owners)

"""Jobs in an SQL database."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Row,
    Select,
    Update,
    and_,
    cast,
    delete,
    extract,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
    update,
)

from sd35.errors import IdempotencyConflict
from sd35.storage.fair_claim import Candidate, fairest
from sd35.storage.jobs import HELD_S, Delivery, DueWebhooks, Failure, Job, JobResult, Receiver, Status
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.holders import HolderLocks
from sd35.storage.sql.rows import job_of, values_of, values_of_result
from sd35.storage.sql.tables import deliveries, jobs
from sd35.storage.webhook_hosts import host_of

_LOCK = 0x5D35_0002
_ENDS = [status.value for status in Status if status.is_end]
_SWEPT = 500  # jobs in one transaction, so that others come in between
_LONGEST_UNION = 400  # SQLite's own bound is 500
_FREE = {"holder": None, "lease_until_s": None}
_QUEUED = {"status": Status.QUEUED.value, "started_s": None, **_FREE}
_IS_QUEUED, _IS_RUNNING = (jobs.c.status == status.value for status in (Status.QUEUED, Status.RUNNING))
_TURN = jobs.c.priority.desc(), jobs.c.number


class SqlJobStore:
    """A JobStore.

    Leases never depend on the wall clock of this machine. With PostgreSQL, the server's clock counts. With SQLite, a
    holder lives as long as it locks its file, and its leases end by the monotonic clock, which all processes of a
    machine share. After a reboot, that clock begins anew, and no file is locked.
    """

    def __init__(self, database: SqlDatabase) -> None:
        self.database = database
        self._holders = HolderLocks(Path(f"{database.path}.holders")) if database.path else None

    def add(self, job: Job) -> Job:
        """Keep a new job, or find that of the same idempotency key. Raises IdempotencyConflict."""
        assert job.status is Status.QUEUED
        job_spec = job.job_spec
        fresh = self.database.insert(jobs).values(values_of(job))
        fresh = fresh.on_conflict_do_nothing(index_elements=["owner", "idempotency_key"])
        same = select(jobs).where(jobs.c.owner == job_spec.owner, jobs.c.idempotency_key == job_spec.idempotency_key)
        with self.database.write() as connection:
            while True:
                number = connection.execute(fresh.returning(jobs.c.number)).scalar()
                if number is not None:
                    return replace(job, number=number)
                if kept := connection.execute(same).one_or_none():  # else it was deleted in between
                    break
        if kept.body_digest != job_spec.body_digest:
            raise IdempotencyConflict(str(job_spec.idempotency_key))
        return job_of(kept)

    def get(self, job_id: str, owner: str | None) -> Job | None:
        """One job."""
        with self.database.read() as connection:
            return _found(connection.execute(select(jobs).where(*_one(job_id, owner))).one_or_none())

    def page(self, owner: str | None, statuses: Sequence[Status], before: int | None, limit: int) -> list[Job]:
        """The newest first; of each status by itself from an index, then of all."""
        seen = [] if owner is None else [jobs.c.owner == owner]
        older = [] if before is None else [jobs.c.number < before]
        each = [
            select(jobs.c.number).where(*seen, *older, jobs.c.status == status.value).order_by(jobs.c.number.desc())
            for status in sorted(set(statuses or Status))
        ]
        numbers = union_all(*(select(one.limit(limit).subquery()) for one in each)).subquery()
        newest = select(numbers.c.number).order_by(numbers.c.number.desc()).limit(limit)
        with self.database.read() as connection:
            found = connection.execute(select(jobs).where(jobs.c.number.in_(newest)).order_by(jobs.c.number.desc()))
            return [job_of(row) for row in found]

    def place(self, job_id: str) -> int:
        """How many queued jobs go before a queued one."""
        with self.database.read() as connection:
            job = connection.execute(
                select(jobs.c.priority, jobs.c.number).where(jobs.c.id == job_id, _IS_QUEUED)
            ).one_or_none()
            if job is None:
                return 0
            urgent = jobs.c.priority > job.priority
            older = and_(jobs.c.priority == job.priority, jobs.c.number < job.number)
            counts = [select(func.count()).where(_IS_QUEUED, before) for before in (urgent, older)]
            return sum(connection.execute(count).scalar_one() for count in counts)

    def claim(self, holder: str, started_s: float, lease_s: float, most: int) -> list[Job]:
        """Take up to `most` jobs to work on. Claims of all processes come one after the other, so that they are fair.

        Jobs that are being cancelled just now are passed over.
        """
        self._hold(holder)
        with self.database.write(is_lasting=False) as connection:
            self.database.lock(connection, _LOCK)
            over = select(jobs.c.number).where(jobs.c.holder != holder, self._is_over(connection, holder, lease_s))
            connection.execute(_update(over).values(_QUEUED))
            turns = _next(connection, min(most, _LONGEST_UNION))
            chosen = select(jobs.c.number).where(jobs.c.number.in_(turns), _IS_QUEUED)
            lease = {"holder": holder, "lease_until_s": self._now_s() + lease_s}
            running = _update(chosen).values(status=Status.RUNNING.value, started_s=started_s, **lease)
            claimed = connection.execute(running.returning(jobs)).all()
        return sorted(map(job_of, claimed), key=lambda job: turns.index(job.number))

    def keep(self, holder: str, lease_s: float) -> set[str]:
        """Renew the leases of all that `holder` holds."""
        with self.database.write(is_lasting=False) as connection:
            renewed = update(jobs).where(jobs.c.holder == holder).values(lease_until_s=self._now_s() + lease_s)
            return set(connection.execute(renewed.returning(jobs.c.id)).scalars())

    def hand_back(self, holder: str) -> int:
        """What `holder` still holds is queued again."""
        with self.database.write(is_lasting=False) as connection:
            handed_back = connection.execute(update(jobs).where(jobs.c.holder == holder).values(_QUEUED)).rowcount
        if self._holders:
            self._holders.release(holder)
        return handed_back

    def end(self, job_id: str, holder: str, ended_s: float, result: JobResult | Failure) -> bool:
        """End a job that `holder` holds."""
        with self.database.write() as connection:
            one = update(jobs).where(jobs.c.id == job_id, jobs.c.holder == holder)
            return _end(connection, one.values(values_of_result(result)), ended_s)

    def cancel(self, job_id: str, owner: str | None, now_s: float) -> Job | None:
        """End a job as cancelled, unless it has ended."""
        with self.database.write() as connection:
            one = update(jobs).where(*_one(job_id, owner), jobs.c.status.not_in(_ENDS))
            _end(connection, one.values(status=Status.CANCELLED.value), now_s)
            return _found(connection.execute(select(jobs).where(*_one(job_id, owner))).one_or_none())

    def delete(self, job_id: str, owner: str | None) -> Job | None:
        """Forget a job that has ended."""
        with self.database.write() as connection:
            one = delete(jobs).where(*_one(job_id, owner), jobs.c.status.in_(_ENDS))
            return _found(connection.execute(one.returning(jobs)).one_or_none())

    def counts(self) -> Mapping[Status, int]:
        """How many there are of each status."""
        with self.database.read() as connection:
            found = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all()
        return dict.fromkeys(Status, 0) | {Status(status): count for status, count in found}

    def due(self, now_s: float) -> list[DueWebhooks]:
        """Count the webhooks that are to be sent now, by receiver. One walk through an index of all that wait."""
        owner, host, due_s = deliveries.c.owner, deliveries.c.host, deliveries.c.due_s
        counted = select(owner, host, func.count(), func.min(due_s)).where(due_s <= now_s).group_by(owner, host)
        with self.database.read() as connection:
            found = connection.execute(counted).all()
        return [DueWebhooks(Receiver(owner, host), count, oldest_s) for owner, host, count, oldest_s in found]

    def take_due(self, now_s: float, most: Mapping[Receiver, int]) -> list[Delivery]:
        """Take webhooks that are due, and hold them for `HELD_S`. Those that another process takes are passed over."""
        with self.database.write(is_lasting=False) as connection:
            found = [row for receiver in sorted(most) for row in _due(connection, now_s, receiver, most[receiver])]
            if found:
                held = update(deliveries).where(deliveries.c.job_id.in_([row.job_id for row in found]))
                connection.execute(held.values(due_s=now_s + HELD_S))
        found.sort(key=lambda row: (row.due_s, row.job_id))
        return [Delivery(row.job_id, row.url, row.attempts, Receiver(row.owner, row.host)) for row in found]

    def delivered(self, job_id: str) -> None:
        """Forget a webhook that arrived or was given up."""
        with self.database.write(is_lasting=False) as connection:
            connection.execute(delete(deliveries).where(deliveries.c.job_id == job_id))

    def postpone(self, job_id: str, until_s: float) -> None:
        """Count a failed attempt to send a webhook, and make it due again later."""
        with self.database.write(is_lasting=False) as connection:
            late = update(deliveries).where(deliveries.c.job_id == job_id)
            connection.execute(late.values(due_s=until_s, attempts=deliveries.c.attempts + 1))

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Let jobs that ended in a span end at `now_s`."""
        span = [jobs.c.ended_s >= from_s, *([] if until_s is None else [jobs.c.ended_s <= until_s])]
        with self.database.write(is_lasting=False) as connection:
            connection.execute(update(jobs).where(*span).values(ended_s=now_s))

    def sweep(self, ended_before_s: float) -> int:
        """Forget jobs that ended before a time, some at a time."""
        old = select(jobs.c.number).where(jobs.c.ended_s < ended_before_s).limit(_SWEPT)
        swept = 0
        while True:
            with self.database.write() as connection:
                count = connection.execute(delete(jobs).where(jobs.c.number.in_(old))).rowcount
            swept += count
            if count < _SWEPT:
                return swept

    def close(self) -> None:
        """Let go of connections, and of the locks of holders."""
        if self._holders:
            self._holders.close()
        self.database.close()

    def _hold(self, holder: str) -> None:
        """Show other processes that `holder` lives. Raises StoreUnavailable."""
        try:
            if self._holders:
                self._holders.hold(holder)
        except OSError as error:
            raise self.database.unavailable(error.strerror or str(error)) from error

    def _now_s(self) -> ColumnElement[float]:
        """The time that leases are measured by, when the statement begins."""
        if self.database.is_sqlite:
            return literal(time.monotonic())
        return cast(extract("epoch", func.statement_timestamp()), Double)

    def _is_over(self, connection: Connection, claimant: str, lease_s: float) -> ColumnElement[bool]:
        """Whether a lease is over: by time, or because its holder is dead.

        A lease that ends far later than one given now is over too. It is from before the server's clock was set back,
        from before a reboot, or from a version that used the wall clock. Twice the length is allowed for small
        corrections of the clock, and for leases that are renewed while this statement runs.
        """
        now_s = self._now_s()
        by_time = or_(jobs.c.lease_until_s < now_s, jobs.c.lease_until_s > now_s + 2 * lease_s)
        if self._holders is None:
            return by_time
        others = select(jobs.c.holder).where(jobs.c.holder.is_not(None), jobs.c.holder != claimant).distinct()
        dead = self._holders.dead(connection.execute(others).scalars().all())
        return or_(by_time, jobs.c.holder.in_(dead)) if dead else by_time


def _one(job_id: str, owner: str | None) -> list[ColumnElement[bool]]:
    return [jobs.c.id == job_id, *([] if owner is None else [jobs.c.owner == owner])]


def _found(row: Row[Any] | None) -> Job | None:
    return None if row is None else job_of(row)


def _update(numbers: Select[Any]) -> Update:
    """A change of those that nobody else changes just now, so that it never waits for a lock, nor dies of one."""
    return update(jobs).where(jobs.c.number.in_(numbers.with_for_update(skip_locked=True)))


def _end(connection: Connection, change: Update, ended_s: float) -> bool:
    ending = change.values(ended_s=ended_s, **_FREE).returning(jobs.c.id, jobs.c.webhook, jobs.c.owner)
    ended = connection.execute(ending).one_or_none()
    if ended and ended.webhook:
        receiver = Receiver(ended.owner, host_of(ended.webhook))._asdict()
        first = {"job_id": ended.id, "url": ended.webhook, "due_s": ended_s, "attempts": 0, **receiver}
        connection.execute(insert(deliveries).values(first))
    return ended is not None


def _due(connection: Connection, now_s: float, receiver: Receiver, most: int) -> Sequence[Row[Any]]:
    """Find up to `most` webhooks of one receiver that are due and that no other process takes just now."""
    owner, host, due_s = deliveries.c.owner, deliveries.c.host, deliveries.c.due_s
    waiting = select(deliveries).where(owner == receiver.owner, host == receiver.host, due_s <= now_s)
    longest_due = waiting.order_by(due_s, deliveries.c.job_id).limit(most)
    return connection.execute(longest_due.with_for_update(skip_locked=True)).all()


def _next(connection: Connection, most: int) -> list[int]:
    """The numbers of the jobs whose turn it is.

    Whoever's first job is not among the `most` whose turn is first has none among all: so the first of each owner
    are looked at, and then the first `most` of so many owners. Both come from an index, however many are queued.
    """
    found = connection.execute(select(jobs.c.owner, func.count()).where(_IS_RUNNING).group_by(jobs.c.owner))
    running = {owner: int(count) for owner, count in found}
    candidate = select(jobs.c.owner, jobs.c.priority, jobs.c.number)
    firsts = connection.execute(candidate.where(jobs.c.number.in_(_firsts())))
    owners = [first.owner for first in fairest((Candidate(*row) for row in firsts), running, most)]
    if not owners:
        return []
    queued = candidate.where(_IS_QUEUED).order_by(*_TURN).limit(most)
    each = union_all(*(select(queued.where(jobs.c.owner == owner).subquery()) for owner in owners))
    chosen = fairest((Candidate(*row) for row in connection.execute(each)), running, most)
    return [one.number for one in chosen]


def _firsts() -> Select[Any]:
    """Of each owner, the number of the queued job that is first; owners are found by hops from one to the next."""
    owners = select(func.min(jobs.c.owner).label("owner")).where(_IS_QUEUED).cte("owners", recursive=True)
    after = select(func.min(jobs.c.owner)).where(_IS_QUEUED, jobs.c.owner > owners.c.owner)
    owners = owners.union_all(select(after.correlate(owners).scalar_subquery()).where(owners.c.owner.is_not(None)))
    first = select(jobs.c.number).where(_IS_QUEUED, jobs.c.owner == owners.c.owner).order_by(*_TURN).limit(1)
    return select(first.correlate(owners).scalar_subquery()).select_from(owners)

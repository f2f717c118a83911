"""Jobs in an SQL database."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Update, delete, func, insert, select, union_all, update

from sd35.errors import IdempotencyConflict
from sd35.storage.jobs import WEBHOOK_LEASE_S, Delivery, DueWebhooks, Failure, Job, JobResult, Receiver, Status
from sd35.storage.sql.claim_order import next_jobs
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.leases import Leases
from sd35.storage.sql.rows import job_from_row, job_values, result_values
from sd35.storage.sql.tables import deliveries, jobs

_CLAIM_LOCK = 0x5D35_0002  # for `SqlDatabase.lock`; another number than in `upgrade`
_FINAL = [status.value for status in Status if status.is_end]
_SWEEP_PAGE = 500  # maximum jobs to delete in one transaction, so that other writers do not wait long
_MAX_UNION = 400  # maximum jobs per claim: `next_jobs` may unite a query per job, and SQLite's limit is 500
_NO_LEASE = {"holder": None, "lease_until_s": None}
_REQUEUED = {"status": Status.QUEUED.value, "started_s": None, **_NO_LEASE}
_IS_QUEUED = jobs.c.status == Status.QUEUED.value


class SqlJobStore:
    """A JobStore in an SQL database."""

    def __init__(self, database: SqlDatabase) -> None:
        self.database = database
        self._leases = Leases(database)

    def add(self, job: Job) -> Job:
        """Store a new job, or return the owner's job with the same idempotency key.

        Raises IdempotencyConflict if that job has another body.
        """
        assert job.status is Status.QUEUED
        spec = job.spec
        new = self.database.insert(jobs).values(job_values(job))
        new = new.on_conflict_do_nothing(index_elements=["owner", "idempotency_key"])
        same = select(jobs).where(jobs.c.owner == spec.owner, jobs.c.idempotency_key == spec.idempotency_key)
        with self.database.write() as connection:
            while True:
                number = connection.execute(new.returning(jobs.c.number)).scalar()
                if number is not None:
                    return replace(job, number=number)
                existing = connection.execute(same).one_or_none()
                if existing:  # otherwise, it was deleted after the INSERT, which is then repeated
                    break
        if existing.body_digest != spec.body_digest:
            raise IdempotencyConflict(str(spec.idempotency_key))
        return job_from_row(existing)

    def get(self, job_id: str, owner: str | None) -> Job | None:
        """Return a job, or None if it is missing."""
        with self.database.read() as connection:
            return _job_or_none(connection.execute(select(jobs).where(*_is_job(job_id, owner))).one_or_none())

    def page(self, owner: str | None, statuses: Sequence[Status], before: int | None, limit: int) -> list[Job]:
        """Return up to `limit` jobs, newest first.

        Reads the newest jobs of each status from an index, and then the newest of these.
        """
        conditions = [] if owner is None else [jobs.c.owner == owner]
        conditions += [] if before is None else [jobs.c.number < before]
        matching = select(jobs.c.number).where(*conditions).order_by(jobs.c.number.desc()).limit(limit)
        by_status = [
            select(matching.where(jobs.c.status == status.value).subquery())
            for status in sorted(set(statuses or Status))
        ]
        numbers = union_all(*by_status).subquery()
        newest = select(numbers.c.number).order_by(numbers.c.number.desc()).limit(limit)
        with self.database.read() as connection:
            rows = connection.execute(select(jobs).where(jobs.c.number.in_(newest)).order_by(jobs.c.number.desc()))
            return [job_from_row(row) for row in rows]

    def position(self, job_id: str) -> int:
        """Return the number of jobs ahead of a queued job. Returns 0 if the job is not queued."""
        with self.database.read() as connection:
            queued = select(jobs.c.priority, jobs.c.number).where(jobs.c.id == job_id, _IS_QUEUED)
            job = connection.execute(queued).one_or_none()
            if job is None:
                return 0
            more_urgent = jobs.c.priority > job.priority
            older = (jobs.c.priority == job.priority) & (jobs.c.number < job.number)
            # One query for each condition, so that each can use an index.
            queries = [select(func.count()).where(_IS_QUEUED, condition) for condition in (more_urgent, older)]
            return sum(connection.execute(query).scalar_one() for query in queries)

    def claim(self, holder: str, started_s: float, lease_s: float, limit: int) -> list[Job]:
        """Queue the jobs of other holders again if their leases have expired, then claim up to `limit` queued jobs.

        A lock lets one process at a time claim jobs. Otherwise, two processes could together claim too many jobs of the
        same owner. Skips jobs that another transaction is changing, for example cancelling.
        """
        self._leases.hold(holder)
        with self.database.write(is_durable=False) as connection:
            self.database.lock(connection, _CLAIM_LOCK)
            is_expired = self._leases.is_expired(connection, holder, lease_s)
            expired = select(jobs.c.number).where(jobs.c.holder != holder, is_expired)
            connection.execute(_update_unlocked(expired).values(_REQUEUED))
            numbers = next_jobs(connection, min(limit, _MAX_UNION))
            chosen = select(jobs.c.number).where(jobs.c.number.in_(numbers), _IS_QUEUED)
            lease = {"holder": holder, "lease_until_s": self._leases.now_s() + lease_s}
            running = _update_unlocked(chosen).values(status=Status.RUNNING.value, started_s=started_s, **lease)
            claimed = connection.execute(running.returning(jobs)).all()
        return sorted(map(job_from_row, claimed), key=lambda job: numbers.index(job.number))

    def renew(self, holder: str, lease_s: float) -> set[str]:
        """Renew all leases of `holder`. Returns the IDs of the jobs that it still holds."""
        with self.database.write(is_durable=False) as connection:
            renewed = update(jobs).where(jobs.c.holder == holder).values(lease_until_s=self._leases.now_s() + lease_s)
            return set(connection.execute(renewed.returning(jobs.c.id)).scalars())

    def release(self, holder: str) -> int:
        """Queue all jobs of `holder` again, and end their leases. Returns their number."""
        with self.database.write(is_durable=False) as connection:
            released = connection.execute(update(jobs).where(jobs.c.holder == holder).values(_REQUEUED)).rowcount
        self._leases.release(holder)
        return released

    def end(self, job_id: str, holder: str, ended_s: float, result: JobResult | Failure) -> bool:
        """End a job and make its webhook due. Returns False if `holder` does not hold the job."""
        with self.database.write() as connection:
            held = update(jobs).where(jobs.c.id == job_id, jobs.c.holder == holder)
            return _end_job(connection, held.values(result_values(result)), ended_s)

    def cancel(self, job_id: str, owner: str | None, now_s: float) -> Job | None:
        """Cancel a job, unless it has ended. Returns the job, or None if it is missing."""
        with self.database.write() as connection:
            active = update(jobs).where(*_is_job(job_id, owner), jobs.c.status.not_in(_FINAL))
            _end_job(connection, active.values(status=Status.CANCELLED.value), now_s)
            return _job_or_none(connection.execute(select(jobs).where(*_is_job(job_id, owner))).one_or_none())

    def delete(self, job_id: str, owner: str | None) -> Job | None:
        """Delete a job that has ended. Returns the deleted job, or None if it is missing or has not ended."""
        with self.database.write() as connection:
            ended = delete(jobs).where(*_is_job(job_id, owner), jobs.c.status.in_(_FINAL))
            return _job_or_none(connection.execute(ended.returning(jobs)).one_or_none())

    def counts(self) -> Mapping[Status, int]:
        """Return the number of jobs of each status."""
        with self.database.read() as connection:
            rows = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all()
        return dict.fromkeys(Status, 0) | {Status(status): count for status, count in rows}

    def due_webhooks(self, now_s: float) -> list[DueWebhooks]:
        """Count the due webhooks of each receiver, in one scan of an index."""
        owner, host, due_s = deliveries.c.owner, deliveries.c.host, deliveries.c.due_s
        counted = select(owner, host, func.count(), func.min(due_s)).where(due_s <= now_s).group_by(owner, host)
        with self.database.read() as connection:
            rows = connection.execute(counted).all()
        return [DueWebhooks(Receiver(owner, host), count, oldest_s) for owner, host, count, oldest_s in rows]

    def claim_webhooks(self, now_s: float, limits: Mapping[Receiver, int]) -> list[Delivery]:
        """Claim up to `limits[receiver]` due webhooks of each receiver for `WEBHOOK_LEASE_S`."""
        rows: list[Row[Any]] = []
        with self.database.write(is_durable=False) as connection:
            for receiver in sorted(limits):
                rows += _due(connection, now_s, receiver, limits[receiver])
            if rows:
                claimed = update(deliveries).where(deliveries.c.job_id.in_([row.job_id for row in rows]))
                connection.execute(claimed.values(due_s=now_s + WEBHOOK_LEASE_S))
        rows.sort(key=lambda row: (row.due_s, row.job_id))
        return [Delivery(row.job_id, row.url, row.attempts, Receiver(row.owner, row.host)) for row in rows]

    def finish_webhook(self, job_id: str) -> None:
        """Delete a webhook, because it was delivered or its last attempt failed."""
        with self.database.write(is_durable=False) as connection:
            connection.execute(delete(deliveries).where(deliveries.c.job_id == job_id))

    def postpone_webhook(self, job_id: str, until_s: float) -> None:
        """Count a failed attempt to send a webhook, and make the webhook due again at `until_s`."""
        with self.database.write(is_durable=False) as connection:
            failed = update(deliveries).where(deliveries.c.job_id == job_id)
            connection.execute(failed.values(due_s=until_s, attempts=deliveries.c.attempts + 1))

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Set the end times of jobs between `from_s` and `until_s` to `now_s`. `until_s=None` means no upper bound."""
        span = [jobs.c.ended_s >= from_s, *([] if until_s is None else [jobs.c.ended_s <= until_s])]
        with self.database.write(is_durable=False) as connection:
            connection.execute(update(jobs).where(*span).values(ended_s=now_s))

    def sweep(self, ended_before_s: float) -> int:
        """Delete jobs that ended before `ended_before_s`, in several transactions. Returns their number."""
        old = select(jobs.c.number).where(jobs.c.ended_s < ended_before_s).limit(_SWEEP_PAGE)
        total = 0
        while True:
            with self.database.write() as connection:
                count = connection.execute(delete(jobs).where(jobs.c.number.in_(old))).rowcount
            total += count
            if count < _SWEEP_PAGE:
                return total

    def close(self) -> None:
        """Release the holders in this process, and close all connections."""
        self._leases.close()
        self.database.close()


def _is_job(job_id: str, owner: str | None) -> list[ColumnElement[bool]]:
    """Return the SQL conditions that select a job of an owner. `owner=None` selects the job of any owner."""
    return [jobs.c.id == job_id, *([] if owner is None else [jobs.c.owner == owner])]


def _job_or_none(row: Row[Any] | None) -> Job | None:
    return None if row is None else job_from_row(row)


def _update_unlocked(numbers: Select[Any]) -> Update:
    """Return an UPDATE of the jobs that the query `numbers` selects, except those that another transaction has locked.

    It never waits for another transaction, so it cannot deadlock.
    """
    return update(jobs).where(jobs.c.number.in_(numbers.with_for_update(skip_locked=True)))


def _end_job(connection: Connection, change: Update, ended_s: float) -> bool:
    """End a job: execute `change`, set the end time, end the lease, and make the webhook due.

    `change` is an UPDATE that selects at most one job and sets its final status. Returns whether it has found a job.
    """
    ending = change.values(ended_s=ended_s, **_NO_LEASE).returning(jobs.c.id, jobs.c.webhook, jobs.c.owner)
    ended = connection.execute(ending).one_or_none()
    if ended and ended.webhook:
        receiver = Receiver.from_url(ended.owner, ended.webhook)._asdict()
        delivery = {"job_id": ended.id, "url": ended.webhook, "due_s": ended_s, "attempts": 0, **receiver}
        connection.execute(insert(deliveries).values(delivery))
    return ended is not None


def _due(connection: Connection, now_s: float, receiver: Receiver, limit: int) -> Sequence[Row[Any]]:
    """Return up to `limit` due webhooks of a receiver, the longest due first.

    Skips webhooks that another transaction is claiming.
    """
    owner, host, due_s = deliveries.c.owner, deliveries.c.host, deliveries.c.due_s
    due = select(deliveries).where(owner == receiver.owner, host == receiver.host, due_s <= now_s)
    longest_due = due.order_by(due_s, deliveries.c.job_id).limit(limit)
    return connection.execute(longest_due.with_for_update(skip_locked=True)).all()

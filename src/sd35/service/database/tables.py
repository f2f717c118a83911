"""The tables of jobs, keys and whose pictures are whose. A change here needs a migration that makes the same change."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    literal,
)

from sd35.service.jobs.contract import Status

VERSION = "0001"  # of the newest migration

metadata = MetaData(naming_convention={"uq": "uq_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})
_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers by itself what is of exactly this type

jobs = Table(
    "jobs",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    Column("id", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("request", Text, nullable=False),  # canonical JSON; PostgreSQL's own JSON takes no \u0000
    Column("format", Text, nullable=False),
    Column("has_metadata", Boolean, nullable=False),
    Column("webhook", Text),
    Column("idempotency_key", Text),
    Column("body_digest", Text, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("started_s", Double),
    Column("ended_s", Double),
    Column("holder", Text),
    Column("lease_until_s", Double),
    Column("made_digest", Text),
    Column("was_cached", Boolean),
    Column("is_blurred", Boolean),
    Column("failure_status", Integer),
    Column("failure_detail", Text),
    UniqueConstraint("id"),
    UniqueConstraint("owner", "idempotency_key"),
    sqlite_autoincrement=True,  # the number of a job that was deleted never comes again
)


def is_(status: Status) -> ColumnElement[bool]:
    """A condition on jobs. Its value stands in the statement itself: else no index of such jobs alone is taken."""
    return jobs.c.status == literal(status.value, literal_execute=True)


def _partial(condition: ColumnElement[bool]) -> dict[str, Any]:
    return {"sqlite_where": condition, "postgresql_where": condition}


# Of queued and of running jobs there are few beside those that have ended: indexes of their own stay small.
Index("ix_jobs_turn", jobs.c.owner, jobs.c.priority.desc(), jobs.c.number, **_partial(is_(Status.QUEUED)))
Index("ix_jobs_holder", jobs.c.holder, jobs.c.lease_until_s, **_partial(is_(Status.RUNNING)))
Index("ix_jobs_ended", jobs.c.ended_s, **_partial(jobs.c.ended_s.is_not(None)))
Index("ix_jobs_place", jobs.c.status, jobs.c.priority.desc(), jobs.c.number)
Index("ix_jobs_page", jobs.c.status, jobs.c.owner, jobs.c.number)
Index("ix_jobs_status", jobs.c.status, jobs.c.number)

deliveries = Table(
    "deliveries",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", name="fk_deliveries_job", ondelete="CASCADE"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("due_s", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Index("ix_deliveries_due", "due_s", "job_id"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_sha256", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("requests_per_minute", Integer),
    Column("concurrency", Integer),
    Column("pixels_per_hour", BigInteger),
    Column("revoked_s", Double),
)

pictures = Table(
    "pictures",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("owner", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_s", Double, nullable=False),
)

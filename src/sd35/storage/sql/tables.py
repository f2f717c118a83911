"""Tables of jobs, API keys, image owners, checksums, and the clock record.

Every change here needs a migration that makes the same change.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

VERSION = "0005"  # revision of the newest migration

metadata = MetaData(naming_convention={"uq": "uq_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})
_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite assigns numbers to columns of exactly this type

jobs = Table(
    "jobs",
    metadata,
    Column("number", _NUMBER, primary_key=True),
    Column("id", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("request", Text, nullable=False),  # canonical JSON; PostgreSQL's JSON type does not accept \u0000
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
    Column("image_digest", Text),
    Column("was_cached", Boolean),
    Column("is_blurred", Boolean),
    Column("failure_status", Integer),
    Column("failure_detail", Text),
    UniqueConstraint("id"),
    UniqueConstraint("owner", "idempotency_key"),
    sqlite_autoincrement=True,  # the number of a deleted job is never used again
)


def _not_null(column: Column[Any]) -> dict[str, Any]:
    """Return options that restrict an index to rows with a value. Comparisons can use it, because they exclude null."""
    return {"sqlite_where": column.is_not(None), "postgresql_where": column.is_not(None)}


# The status comes first: few jobs are queued or running compared to those that ended, and an index holds them together.
Index("ix_jobs_turn", jobs.c.status, jobs.c.owner, jobs.c.priority.desc(), jobs.c.number)
Index("ix_jobs_place", jobs.c.status, jobs.c.priority.desc(), jobs.c.number)
Index("ix_jobs_page", jobs.c.status, jobs.c.owner, jobs.c.number)
Index("ix_jobs_status", jobs.c.status, jobs.c.number)
Index("ix_jobs_holder", jobs.c.holder, **_not_null(jobs.c.holder))
Index("ix_jobs_lease", jobs.c.lease_until_s, **_not_null(jobs.c.lease_until_s))
Index("ix_jobs_ended", jobs.c.ended_s, **_not_null(jobs.c.ended_s))

deliveries = Table(
    "deliveries",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", name="fk_deliveries_job", ondelete="CASCADE"), primary_key=True),
    Column("url", Text, nullable=False),
    Column("due_s", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    # Processes of the previous version, which do not know these columns, may still insert rows into a shared database.
    Column("owner", Text, nullable=False, server_default=text("''")),
    Column("host", Text, nullable=False, server_default=text("''")),
    # Counting due webhooks by receiver only reads this index, which is fast with 100,000 rows: benchmarks/job_store.py.
    Index("ix_deliveries_receiver", "owner", "host", "due_s", "job_id"),
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

images = Table(
    "images",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("owner", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_s", Double, nullable=False),
)

checksums = Table(
    "checksums",
    metadata,
    Column("name", Text, primary_key=True),
    Column("sha256", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
)

clock = Table(
    "clock",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trusted_s", Double),
    Column("suspect_since_s", Double),
    Column("suspect_last_s", Double),
    Column("suspect_for_s", Double, nullable=False, server_default=text("0")),
)

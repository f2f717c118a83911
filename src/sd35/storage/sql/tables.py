"""Tables of jobs, webhooks, API keys, owners of images, checksums, and the last trusted reading of the clock.

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

VERSION = "0005"  # number of the newest migration

metadata = MetaData(naming_convention={"uq": "uq_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})
_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers new rows only if the column is an INTEGER

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
    """Return options of an index that leave out rows without a value in this column.

    The database can still use the index for comparisons of the column, because a comparison never finds null.
    """
    return {"sqlite_where": column.is_not(None), "postgresql_where": column.is_not(None)}


# The status is the first column, because most jobs have ended. The few that are queued or running are then adjacent.
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
    # The columns have default values, because processes of an earlier version may still insert rows without them.
    Column("owner", Text, nullable=False, server_default=text("''")),
    Column("host", Text, nullable=False, server_default=text("''")),
    # The database counts due webhooks by receiver from this index alone. benchmarks/job_store.py measures that.
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

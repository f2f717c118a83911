"""Create the tables of jobs, webhook deliveries, API keys, and owners of images (then called pictures)."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    _create_jobs()
    op.create_table(
        "deliveries",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("due_s", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_deliveries_job", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name="pk_deliveries"),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["due_s", "job_id"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("concurrency", sa.Integer),
        sa.Column("pixels_per_hour", sa.BigInteger),
        sa.Column("revoked_s", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    op.create_table(
        "pictures",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("digest", "owner", name="pk_pictures"),
    )


def _create_jobs() -> None:
    """Create the table of jobs and its indexes."""
    op.create_table(
        "jobs",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("has_metadata", sa.Boolean, nullable=False),
        sa.Column("webhook", sa.Text),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("body_digest", sa.Text, nullable=False),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("started_s", sa.Double),
        sa.Column("ended_s", sa.Double),
        sa.Column("holder", sa.Text),
        sa.Column("lease_until_s", sa.Double),
        sa.Column("made_digest", sa.Text),
        sa.Column("was_cached", sa.Boolean),
        sa.Column("is_blurred", sa.Boolean),
        sa.Column("failure_status", sa.Integer),
        sa.Column("failure_detail", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_idempotency_key"),
        sqlite_autoincrement=True,
    )
    urgent_first = sa.text("priority DESC")
    op.create_index("ix_jobs_turn", "jobs", ["status", "owner", urgent_first, "number"])
    op.create_index("ix_jobs_place", "jobs", ["status", urgent_first, "number"])
    op.create_index("ix_jobs_page", "jobs", ["status", "owner", "number"])
    op.create_index("ix_jobs_status", "jobs", ["status", "number"])
    for name, column in (("holder", "holder"), ("lease", "lease_until_s"), ("ended", "ended_s")):
        has_value = sa.text(f"{column} IS NOT NULL")
        op.create_index(f"ix_jobs_{name}", "jobs", [column], sqlite_where=has_value, postgresql_where=has_value)

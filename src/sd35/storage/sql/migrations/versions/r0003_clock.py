"""Create the table of the last trusted reading of the clock."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table and its only row. The date of the newest image or job becomes the last trusted reading."""
    op.create_table(
        "clock",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("trusted_s", sa.Double),
        sa.Column("suspect_since_s", sa.Double),
        sa.Column("suspect_last_s", sa.Double),
        sa.Column("suspect_for_s", sa.Double, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("id", name="pk_clock"),
    )
    op.execute(
        "INSERT INTO clock (id, trusted_s) SELECT 1, max(created_s) FROM"
        " (SELECT created_s FROM pictures UNION ALL SELECT created_s FROM jobs) AS dated"
    )

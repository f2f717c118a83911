"""Rename the table `pictures` to `images`, and `jobs.made_digest` to `jobs.image_digest`. Keeps all rows."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Rename the table and the column. SQLite keeps the old name of the primary key, but nothing refers to it."""
    op.rename_table("pictures", "images")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE images RENAME CONSTRAINT pk_pictures TO pk_images")
    op.execute("ALTER TABLE jobs RENAME COLUMN made_digest TO image_digest")

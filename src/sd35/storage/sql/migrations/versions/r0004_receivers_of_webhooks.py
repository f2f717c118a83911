"""Add the receiver of each webhook, which is its owner and host, so that webhooks can be sent fairly."""

from urllib.parse import urlsplit

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ROWS = 1000  # per statement


def upgrade() -> None:
    """Add owner and host to pending webhooks, and the index to count webhooks by these columns."""
    for name in ("owner", "host"):
        op.add_column("deliveries", sa.Column(name, sa.Text, nullable=False, server_default=sa.text("''")))
    op.execute("UPDATE deliveries SET owner = (SELECT owner FROM jobs WHERE jobs.id = deliveries.job_id)")
    _fill_hosts()
    op.drop_index("ix_deliveries_due", "deliveries")
    op.create_index("ix_deliveries_receiver", "deliveries", ["owner", "host", "due_s", "job_id"])


def _fill_hosts() -> None:
    """Set the host of each pending webhook, from its URL."""
    connection = op.get_bind()
    change = sa.text("UPDATE deliveries SET host = :host WHERE job_id = :job_id")
    pending = connection.execute(sa.text("SELECT job_id, url FROM deliveries")).all()
    hosts = [{"job_id": job_id, "host": _host_of(url)} for job_id, url in pending]
    for start in range(0, len(hosts), _ROWS):
        connection.execute(change, hosts[start : start + _ROWS])


def _host_of(url: str) -> str:
    """Return the host of a URL in the ASCII form that later versions compare; "" if the URL has none."""
    try:
        return (urlsplit(url).hostname or "").encode("idna").decode().rstrip(".")
    except ValueError:  # not a URL, or not a host name
        return ""

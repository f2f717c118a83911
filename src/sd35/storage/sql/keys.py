"""API keys in an SQL database."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, insert, select, update

from sd35.access.keys import Key, Quota, Role
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.tables import keys


class SqlKeyStore:
    """A KeyStore in an SQL database."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database

    def add(self, key: Key) -> None:
        """Store a new key."""
        fields = asdict(key)
        with self._database.write() as connection:
            # The table has a column for each limit of the quota.
            connection.execute(insert(keys).values(**fields.pop("quota"), **fields))

    def keys(self) -> Sequence[Key]:
        """Return all keys, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created_s, keys.c.id))
            return [_key_from_row(row) for row in rows]

    def revoke(self, key_id: str, now_s: float) -> Key | None:
        """Revoke a key and return it, or None if it is missing. The date of an earlier revocation stays."""
        with self._database.write() as connection:
            active = update(keys).where(keys.c.id == key_id, keys.c.revoked_s.is_(None))
            connection.execute(active.values(revoked_s=now_s))
            row = connection.execute(select(keys).where(keys.c.id == key_id)).one_or_none()
            return _key_from_row(row) if row else None


def _key_from_row(row: Row[Any]) -> Key:
    quota = Quota(row.requests_per_minute, row.concurrency, row.pixels_per_hour)
    return Key(row.id, row.name, row.secret_sha256, Role(row.role), row.created_s, quota, row.revoked_s)

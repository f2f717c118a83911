"""The database: jobs, API keys, owners of images, and the last trusted reading of the clock."""

from pathlib import Path
from typing import NamedTuple

from sd35.access.keys import KeyStore
from sd35.errors import InvalidSetting
from sd35.settings import Settings
from sd35.storage.clock import ClockStore
from sd35.storage.jobs import JobStore
from sd35.storage.memory.clock import MemoryClockStore
from sd35.storage.memory.jobs import MemoryJobStore
from sd35.storage.memory.keys import MemoryKeyStore
from sd35.storage.memory.ownership import MemoryOwnershipIndex
from sd35.storage.ownership import OwnershipIndex

MEMORY = "memory"
_ALLOWED = f"`{MEMORY}`, a file's path, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"


class Database(NamedTuple):
    """The stores of one database. `name` is the name of the database in messages, without a password."""

    jobs: JobStore
    keys: KeyStore
    ownership: OwnershipIndex
    clock: ClockStore
    name: str

    def close(self) -> None:
        """Close all connections."""
        self.jobs.close()


def database_url(settings: Settings) -> str:
    """Return the URL or path of the database from the settings."""
    return settings.database or str(settings.data_dir / "sd35.db")


def open_database(url: str, wait_s: float = 10.0, *, upgrade: bool = True) -> Database:
    """Open a database. Creates it if missing, and upgrades its tables if an older version created them.

    Args:
        url: `memory`, path of an SQLite file, or URL of an SQLite or PostgreSQL database.
        wait_s: Maximum wait for SQLite's lock, in seconds.
        upgrade: If false, a missing or outdated database is an error and nothing is changed.

    Raises:
        InvalidSetting: The URL is not allowed, the package for PostgreSQL is not installed, or SQLite's file is missing
            and `upgrade` is false. The message never contains a password.
        StoreUnavailable: The database cannot be used, or a newer version of this project created its tables. If
            `upgrade` is false, also if an older version created them, or if there are none.
    """
    if url == MEMORY:
        return Database(MemoryJobStore(), MemoryKeyStore(), MemoryOwnershipIndex(), MemoryClockStore(), MEMORY)
    from sd35.storage.sql.clock import SqlClockStore
    from sd35.storage.sql.connection import SqlDatabase, parse_url
    from sd35.storage.sql.jobs import SqlJobStore
    from sd35.storage.sql.keys import SqlKeyStore
    from sd35.storage.sql.ownership import SqlOwnershipIndex
    from sd35.storage.sql.upgrade import check_version, upgrade_schema

    parsed = parse_url(url, _ALLOWED)
    if parsed.drivername == "sqlite" and not upgrade and not Path(parsed.database or "").exists():
        raise InvalidSetting(
            f"database: {parsed.database} does not exist. Create it by starting the service once (`sd35 serve`), or"
            " correct the setting data_dir or database"
        )
    database = SqlDatabase(parsed, wait_s)
    try:
        if upgrade:
            upgrade_schema(database)
        else:
            check_version(database)
    except BaseException:
        database.close()
        raise
    jobs, keys = SqlJobStore(database), SqlKeyStore(database)
    return Database(jobs, keys, SqlOwnershipIndex(database), SqlClockStore(database), database.name)

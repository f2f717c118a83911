"""The database: jobs, API keys, owners of images, and the last trusted reading of the clock."""

from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

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

Tables: TypeAlias = Literal["upgrade", "create", "require"]
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


def open_database(url: str, wait_s: float = 10.0, *, tables: Tables = "upgrade") -> Database:
    """Open a database. By default, creates it if missing, and upgrades its tables if an older version created them.

    Args:
        url: `memory`, path of an SQLite file, or URL of an SQLite or PostgreSQL database.
        wait_s: Maximum wait for SQLite's lock, in seconds.
        tables: "create": outdated tables are an error. "require": missing or outdated tables are an error.

    Raises:
        InvalidSetting: The URL is not allowed, the package for PostgreSQL is not installed, or SQLite's file is missing
            and `tables` is "require". The message never contains a password.
        StoreUnavailable: The database cannot be used, or a newer version of this project created its tables. Also if
            they are missing or outdated, and `tables` makes this an error.
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
    if parsed.drivername == "sqlite" and tables == "require" and not Path(parsed.database or "").exists():
        raise InvalidSetting(
            f"database: {parsed.database} does not exist. If the service has never run, start it once (`sd35 serve`)."
            " Otherwise restore the file, or correct the setting data_dir or database"
        )
    database = SqlDatabase(parsed, wait_s)
    try:
        if tables == "require":
            check_version(database)
        else:
            upgrade_schema(database, only_create=tables == "create")
    except BaseException:
        database.close()
        raise
    jobs, keys = SqlJobStore(database), SqlKeyStore(database)
    return Database(jobs, keys, SqlOwnershipIndex(database), SqlClockStore(database), database.name)

"""Opens what is kept in a database: jobs, keys, whose images are whose, and the record of the clock."""

from pathlib import Path
from typing import NamedTuple

from sd35.access.keys import KeyStore
from sd35.errors import InvalidSetting
from sd35.settings import Settings
from sd35.storage.clock import ClockStore, MemoryClockStore
from sd35.storage.jobs import JobStore
from sd35.storage.memory.jobs import MemoryJobStore
from sd35.storage.memory.keys import MemoryKeyStore
from sd35.storage.ownership import MemoryOwnershipIndex, OwnershipIndex

MEMORY = "memory"
_ALLOWED = f"`{MEMORY}`, a file's path, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"


class Database(NamedTuple):
    """What one database keeps. `name` is what it is called in messages, without a password."""

    jobs: JobStore
    keys: KeyStore
    images: OwnershipIndex
    clock: ClockStore
    name: str

    def close(self) -> None:
        """Let go of connections."""
        self.jobs.close()


def database_url_of(settings: Settings) -> str:
    """Which database the settings name."""
    return settings.database or str(settings.data_dir / "sd35.db")


def open_database(database: str, wait_s: float = 10.0, *, as_it_is: bool = False) -> Database:
    """Open a database, made first or brought up to date where that is needed. `wait_s`: longest wait for SQLite's lock.

    With `as_it_is`, it is neither made nor brought up to date: where that would be needed, it is an error.

    Raises InvalidSetting, without a word of what may hold a password, and StoreUnavailable.
    """
    if database == MEMORY:
        return Database(MemoryJobStore(), MemoryKeyStore(), MemoryOwnershipIndex(), MemoryClockStore(), MEMORY)
    from sqlalchemy import URL, make_url
    from sqlalchemy.exc import ArgumentError

    from sd35.storage.sql.clock import SqlClockStore
    from sd35.storage.sql.connection import SqlDatabase
    from sd35.storage.sql.jobs import SqlJobStore
    from sd35.storage.sql.keys import SqlKeyStore
    from sd35.storage.sql.migrate import check_version, migrate
    from sd35.storage.sql.ownership import SqlOwnershipIndex

    try:
        url = make_url(database) if "://" in database else URL.create("sqlite", database=database)
    except (ArgumentError, ValueError):
        raise InvalidSetting(f"database: got a URL that cannot be read; allowed: {_ALLOWED}") from None
    if url.drivername in {"postgresql", "postgres", "postgresql+psycopg"}:
        url = url.set(drivername="postgresql+psycopg")
    elif url.drivername != "sqlite" or url.query or (url.database or ":memory:") == ":memory:":
        raise InvalidSetting(f"database: got {url.render_as_string(hide_password=True)!r}; allowed: {_ALLOWED}")
    if url.drivername == "sqlite":
        path = Path(url.database or "").expanduser().absolute()
        if as_it_is and not path.exists():
            raise InvalidSetting(f"database: there is no file {path}; check data_dir and database")
        url = url.set(database=str(path))
    opened = SqlDatabase(url, wait_s)
    try:
        if as_it_is:
            check_version(opened)
        else:
            migrate(opened)
    except BaseException:
        opened.close()
        raise
    of_it = SqlJobStore(opened), SqlKeyStore(opened), SqlOwnershipIndex(opened), SqlClockStore(opened)
    return Database(*of_it, opened.name)

"""Create the tables of a new database, and upgrade those of an older version, when a database is opened."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from sqlalchemy import Connection, column, inspect, select, table

from sd35.errors import StoreUnavailable
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.holders import NO_LOCKS
from sd35.storage.sql.tables import VERSION

if TYPE_CHECKING:
    from alembic.config import Config

_LOCK = 0x5D35_0001  # for `SqlDatabase.lock`; another number than in `jobs`
_LOG = logging.getLogger(__name__)
_VERSIONS = table("alembic_version", column("version_num"))


def upgrade_schema(database: SqlDatabase, wait_s: float = 60.0, *, only_create: bool = False) -> None:
    """Create the tables if they are missing, or upgrade those of an older version, in one transaction.

    If several processes start at once, one of them upgrades and the others wait. If the tables are of this version,
    Alembic is not imported, because that is slow.

    Args:
        database: The database to upgrade.
        wait_s: Maximum wait for another process, in seconds.
        only_create: Whether tables of an older version are an error.

    Raises:
        StoreUnavailable: The database cannot be used, or a newer version of this project created it. With
            `only_create`, also if an older version created it.
    """
    if not database.path:
        _upgrade(database, only_create=only_create)
        return
    lock = FileLock(f"{database.path}.lock", timeout=wait_s, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise database.unavailable(
            f"another process has been opening or upgrading it for {wait_s:g} s; try again when that process is ready"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise database.unavailable(
                f"its lock file {lock.lock_file} cannot be locked ({error.strerror or error}); check its permissions"
            ) from error
        # The file system has no locks. SQLite's own lock still protects the upgrade of an existing database. If two
        # processes create a database at the same time, one of them may fail.
    try:
        with database.read() as connection:  # the file stores this mode, so it is set before other processes use it
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        _upgrade(database, only_create=only_create)
    finally:
        lock.release()


def check_version(database: SqlDatabase) -> None:
    """Check that a database has the tables of this version. Raises StoreUnavailable if it does not."""
    with database.read() as connection:
        version = _version(connection)
    _check_not_newer(database, version)
    if version is None:
        raise database.unavailable(
            "it has no tables of sd35. If the service has never run, start it once (`sd35 serve`). Otherwise restore"
            " the database, or correct the setting database"
        )
    if version != VERSION:
        raise _outdated(database, version)


def config_for(connection: Connection) -> "Config":
    """Return a configuration with which Alembic runs its commands on this connection."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _upgrade(database: SqlDatabase, *, only_create: bool) -> None:
    """Run the missing migrations, and log that. Raises StoreUnavailable like `upgrade_schema`."""
    with database.write() as connection:
        database.lock(connection, _LOCK)
        version = _version(connection)
        if version == VERSION:
            return
        _check_not_newer(database, version)
        if version and only_create:
            raise _outdated(database, version)
        from alembic import command

        command.upgrade(config_for(connection), VERSION)
    if version:
        # Uses `logging`: an unconfigured structlog prints to stdout, where `sd35 keys add` must print only the secret.
        _LOG.info("database migrated: %s, from schema %s to %s", database.name, version, VERSION)


def _version(connection: Connection) -> str | None:
    """Return the number of the last migration of a database, or None if the database has no tables of this project."""
    if not inspect(connection).has_table(_VERSIONS.name):
        return None
    return connection.execute(select(_VERSIONS.c.version_num)).scalar()


def _check_not_newer(database: SqlDatabase, version: str | None) -> None:
    """Raise StoreUnavailable if a newer version of this project created the tables."""
    if version and version > VERSION:
        raise database.unavailable(
            f"a newer version of sd35 created it (schema {version}, but this version supports up to {VERSION}); install"
            " the newer version again, or use another database"
        )


def _outdated(database: SqlDatabase, version: str) -> StoreUnavailable:
    return database.unavailable(
        f"an older version of sd35 created it (schema {version}, but this version needs {VERSION}); start the service"
        " once to upgrade it"
    )

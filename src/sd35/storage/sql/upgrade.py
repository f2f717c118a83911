"""Upgrade a database to the schema of this version when it is opened."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from sqlalchemy import Connection, column, inspect, select, table

from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.holders import NO_LOCKS
from sd35.storage.sql.tables import VERSION

if TYPE_CHECKING:
    from alembic.config import Config

_LOCK = 0x5D35_0001
_LOG = logging.getLogger(__name__)
_VERSIONS = table("alembic_version", column("version_num"))


def upgrade_schema(database: SqlDatabase, wait_s: float = 60.0) -> None:
    """Create the tables, or upgrade older ones, in one transaction. Imports Alembic only if that is necessary.

    If several processes start at once, one of them upgrades and the others wait.

    Args:
        database: The database to upgrade.
        wait_s: Maximum wait for another process, in seconds.

    Raises:
        StoreUnavailable: The database cannot be used, or a newer version of this project created it.
    """
    if not database.path:
        _upgrade(database)
        return
    lock = FileLock(f"{database.path}.lock", timeout=wait_s, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise database.unavailable(f"another process has been opening it for {wait_s:g} s") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise database.unavailable(error.strerror or str(error)) from error
        # SQLite's own lock still protects the migration. Only two first starts at the same time may conflict.
    try:
        with database.read() as connection:  # the file stores this mode, so it is set before other processes use it
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        _upgrade(database)
    finally:
        lock.release()


def check_version(database: SqlDatabase) -> None:
    """Check that a database has the schema of this version. Raises StoreUnavailable."""
    with database.read() as connection:
        version = _version(connection)
    _refuse_newer(database, version)
    if version != VERSION:
        raise database.unavailable(
            f"an older version of sd35 created it (schema {version}; this version needs {VERSION}); start the service"
            " once to upgrade it"
        )


def config_for(connection: Connection) -> "Config":
    """Return an Alembic configuration that runs commands on a connection."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _upgrade(database: SqlDatabase) -> None:
    with database.write() as connection:
        database.lock(connection, _LOCK)
        version = _version(connection)
        if version == VERSION:
            return
        _refuse_newer(database, version)
        from alembic import command

        command.upgrade(config_for(connection), VERSION)
    if version:
        # Uses `logging`: an unconfigured structlog prints to stdout, where `sd35 keys add` must print only the secret.
        _LOG.info("database migrated: %s, from schema %s to %s", database.name, version, VERSION)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSIONS.name):
        return None
    return connection.execute(select(_VERSIONS.c.version_num)).scalar()


def _refuse_newer(database: SqlDatabase, version: str | None) -> None:
    if version and version > VERSION:
        raise database.unavailable(
            f"a newer version of sd35 created it (schema {version}; this version supports up to {VERSION}); install"
            " that version again, or use another database"
        )

"""Connections to an SQL database: SQLite in a file, or PostgreSQL. Errors of the database become StoreUnavailable."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Table, create_engine, event, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from sd35.errors import InvalidSetting, StoreUnavailable

_CONNECT = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # in libpq's units: seconds and milliseconds
_UNLIMITED = -1  # as SQLAlchemy's `max_overflow`: connections to a file are cheap, so no thread waits for one


def parse_url(text: str, allowed: str) -> URL:
    """Parse the setting `database`: the path of an SQLite file, or the URL of an SQLite or PostgreSQL database.

    Args:
        text: The path or URL.
        allowed: The allowed values, for the error message.

    Returns:
        A URL with the driver of this project. The path of an SQLite file is absolute.

    Raises:
        InvalidSetting: The URL is not allowed. The message never contains a password.
    """
    try:
        url = make_url(text) if "://" in text else URL.create("sqlite", database=text)
    except (ArgumentError, ValueError):
        raise InvalidSetting(f"database: got a URL that cannot be parsed; allowed: {allowed}") from None
    if url.drivername in {"postgresql", "postgres", "postgresql+psycopg"}:
        return url.set(drivername="postgresql+psycopg")
    # An SQLite database in memory has the path "" or ":memory:". It would be lost with its connection.
    is_in_memory = (url.database or ":memory:") == ":memory:"
    if url.drivername != "sqlite" or url.query or is_in_memory:
        raise InvalidSetting(f"database: got {url.render_as_string(hide_password=True)!r}; allowed: {allowed}")
    return url.set(database=str(Path(url.database or "").expanduser().absolute()))


class SqlDatabase:
    """A pool of connections to one database, and transactions on them. Thread-safe.

    `name` is the name of the database in messages: the path of the file, or the URL of the server without its password.

    Args:
        url: URL of the database.
        wait_s: Maximum wait for SQLite's lock, in seconds.
    """

    def __init__(self, url: URL, wait_s: float = 10.0) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.path = Path(url.database or "") if self.is_sqlite else None
        self.name = str(self.path or url.render_as_string(hide_password=True))
        self._wait_s = wait_s
        self._writer = threading.Lock()
        options: dict[str, Any] = {"connect_args": _CONNECT, "pool_pre_ping": True}
        if self.path:
            self._inode = self._create_file(self.path)
            options = {"connect_args": {"timeout": wait_s}, "max_overflow": _UNLIMITED}
        try:
            self.engine = create_engine(url, hide_parameters=True, **options)  # errors must not show prompts
        except ModuleNotFoundError as error:
            raise InvalidSetting(
                "database: PostgreSQL needs a package that is not installed; install it with: pip install"
                " 'sd35-fp8-mirror[postgres]'"
            ) from error
        if self.is_sqlite:
            event.listen(self.engine, "connect", _configure)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for statements that change nothing. Raises StoreUnavailable if that fails."""
        with self._translate_errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self, *, is_durable: bool = True, is_single: bool = False) -> Iterator[Connection]:
        """Open a transaction and commit it at the end of the block.

        Args:
            is_durable: If false, SQLite does not wait until the commit is on the disk. A power failure may then undo
                the last commits, but a crash of this process does not.
            is_single: Whether the block executes only one statement. SQLite then needs no explicit transaction.

        Raises:
            StoreUnavailable: The database does not answer, or SQLite's file is locked for longer than `wait_s`.
        """
        with self._translate_errors(), self._writer_lock(), self.engine.connect() as connection:
            if self.is_sqlite:
                # `info` has the setting of the connection's last transaction. Setting it again would cost a statement.
                if connection.info.get("is_durable") is not is_durable:
                    connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
                    connection.info["is_durable"] = is_durable
                if not is_single:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    def lock(self, connection: Connection, number: int) -> None:
        """Wait for the lock with this number, and hold it until the end of the transaction.

        One transaction at a time can hold a lock. Does nothing with SQLite, where only one transaction at a time can
        write.
        """
        if not self.is_sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(number)))

    def insert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """Return an INSERT statement of the database's SQL dialect. It supports ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def unavailable(self, reason: str) -> StoreUnavailable:
        """Return an error to raise, with the name of the database and the reason in one line."""
        return StoreUnavailable(f"the database {self.name} cannot be used: {' '.join(reason.split())}")

    @contextmanager
    def _writer_lock(self) -> Iterator[None]:
        """Let one thread of this process at a time write to SQLite. With SQLite's own lock, the threads would poll."""
        if self.is_sqlite and not self._writer.acquire(timeout=self._wait_s):
            raise self.unavailable(f"other writes have blocked it for {self._wait_s:g} s; try again later")
        try:
            yield
        finally:
            if self.is_sqlite:
                self._writer.release()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate errors of the block to StoreUnavailable. First checks that SQLite's file is still in its place."""
        if self.path and not _has_inode(self.path, self._inode):  # open connections would write to the removed file
            raise self.unavailable(
                "its file was removed or replaced while it was in use; stop the service, put the file back (otherwise"
                " the service creates an empty one), and start it again"
            )
        try:
            yield
        except DBAPIError as error:
            raise self.unavailable(str(error.orig)) from error
        except PoolTimeout as error:
            raise self.unavailable("all connections are busy; try again later") from error

    def _create_file(self, path: Path) -> int:
        """Create SQLite's file if it is missing. Returns its inode.

        Only the user of this process gets access, because the file contains prompts. SQLite gives its WAL files the
        same mode. Raises StoreUnavailable if the file cannot be created.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            return path.stat().st_ino
        except OSError as error:
            raise self.unavailable(f"{error.strerror or error}; check its path and permissions") from error


def _has_inode(path: Path, inode: int) -> bool:
    """Return whether a path leads to the file with this inode, and not to another file or none."""
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


def _configure(connection: Any, _: object) -> None:  # noqa: ANN401  the driver's type
    """Configure a new connection to SQLite. SQLAlchemy calls this with the driver's connection."""
    connection.isolation_level = None  # the driver begins no transactions, because `write` does
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # overwrite deleted data, because it contains prompts

"""One SQL database: SQLite in a file, or PostgreSQL. Whatever goes wrong with it becomes StoreUnavailable here."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Table, create_engine, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from sd35.errors import InvalidSetting, StoreUnavailable

_CONNECT = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # seconds, milliseconds: libpq's own units
_ALL_THERE_ARE = -1


class SqlDatabase:
    """Connections, and transactions on them. Safe for threads. `wait_s`: longest wait for SQLite's lock.

    `name` is the file's path or the server's address, without a password.
    """

    def __init__(self, url: URL, wait_s: float = 10.0) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.path = Path(url.database or "") if self.is_sqlite else None
        self.name = str(self.path or url.render_as_string(hide_password=True))
        self._wait_s = wait_s
        self._writer = threading.Lock()
        options: dict[str, Any] = {"connect_args": _CONNECT, "pool_pre_ping": True}
        if self.path:
            self._inode = self._create(self.path)
            options = {"connect_args": {"timeout": wait_s}, "max_overflow": _ALL_THERE_ARE}
        try:
            self.engine = create_engine(url, hide_parameters=True, **options)  # else errors show prompts
        except ModuleNotFoundError as error:
            raise InvalidSetting(
                "database: PostgreSQL needs a package; install with: pip install 'sd35-fp8-mirror[postgres]'"
            ) from error
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for a statement that changes nothing. Raises StoreUnavailable."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self, *, is_lasting: bool = True, is_single: bool = False) -> Iterator[Connection]:
        """A transaction, which ends with the block. Raises StoreUnavailable.

        What it wrote outlives this process in any case; where it is not `is_lasting`, a loss of power may take the
        last of it: it saves SQLite a wait for the disk. Where it `is_single`, it is one statement, which SQLite takes
        for a transaction by itself.
        """
        with self._translated(), self._turn(), self.engine.connect() as connection:
            if self.is_sqlite:
                if connection.info.get("is_lasting") is not is_lasting:  # as it was left by another transaction
                    connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if is_lasting else 'NORMAL'}")
                    connection.info["is_lasting"] = is_lasting
                if not is_single:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()

    def lock(self, connection: Connection, number: int) -> None:
        """Wait for all other transactions that took the same number, in any process; SQLite's have to anyway."""
        if not self.is_sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(number)))

    def insert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """The database's own insertion, which can do something else where there is such a row."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        """Let go of connections."""
        self.engine.dispose()

    def _turn(self) -> AbstractContextManager[object]:
        """SQLite has one writer at a time, and lets the others ask again and again; here, they wait in a row."""
        return self._row() if self.is_sqlite else nullcontext()

    @contextmanager
    def _row(self) -> Iterator[None]:
        if not self._writer.acquire(timeout=self._wait_s):
            raise self.unavailable(f"others have been writing for {self._wait_s:g} s")
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self.path and not _is_there(self.path, self._inode):  # what is open still is, and is lost when this ends
            raise self.unavailable("its file was removed or replaced while it was in use; restart the service")
        try:
            yield
        except DBAPIError as error:
            raise self.unavailable(str(error.orig)) from error
        except PoolTimeout as error:
            raise self.unavailable("all connections are busy") from error

    def _create(self, path: Path) -> int:
        """For the owner's eyes alone: prompts are in it. SQLite gives the files beside it the same mode. The inode."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            return path.stat().st_ino
        except OSError as error:
            raise self.unavailable(error.strerror or str(error)) from error

    def unavailable(self, reason: str) -> StoreUnavailable:
        """The error that says so, without a password."""
        return StoreUnavailable(f"the database {self.name} cannot be used: {' '.join(reason.split())}")


def _is_there(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


def _prepare(connection: Any, _: object) -> None:  # noqa: ANN401  a driver's
    """Make a new connection to SQLite leave transactions to us, and keep what the tables promise."""
    connection.isolation_level = None
    for pragma in ("foreign_keys = ON", "secure_delete = ON"):  # what is deleted is overwritten
        connection.execute(f"PRAGMA {pragma}")

"""A file outside the database that marks a service with API keys.

If the database is lost, the file remains. The service then refuses to start, instead of serving everyone without a key.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from sd35.access.keys import Key, KeyStore
from sd35.errors import InvalidSetting, StoreUnavailable


class KeysMarker:
    """The file `keys-required` in `data_dir`, which contains the name of the database with the keys."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "keys-required"

    @property
    def is_set(self) -> bool:
        """Whether the file exists, which means that the service once had keys."""
        return os.path.lexists(self.path)

    def set(self, database: str) -> None:
        """Create the file with the name of the database. Does nothing if it exists. Raises OSError if that fails."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self.path, "x", encoding="utf-8", opener=_open_private) as file:
                file.write(f"{database}\n")
        except FileExistsError:
            return

    def clear(self) -> None:
        """Delete the file if it exists. Raises OSError if that fails."""
        self.path.unlink(missing_ok=True)

    def loss_message(self, database: str) -> str:
        """Return an error message for a database that has lost its keys, with the remedies."""
        try:
            recorded = self.path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            recorded = ""
        location = f"in {recorded}" if recorded and recorded != database else "in it"
        return (
            f"{database} has no API keys, but this service had keys {location}, as {self.path} records. The database"
            " was removed or emptied, or the setting `database` names another one. Restore the database, correct the"
            " setting, create a new key (`sd35 keys add NAME`), or serve everyone without keys (`sd35 keys open`)"
        )


class RequiredKeyStore:
    """A KeyStore that raises an error if the service once had keys and has none now.

    Creates the marker file when it first reads keys. If that fails, keys are still required until the process ends.

    Args:
        store: The store with the keys.
        marker: The file that marks a service with keys.
        database: The name of the database, for messages.
    """

    def __init__(self, store: KeyStore, marker: KeysMarker, database: str) -> None:
        self._store, self._marker, self._database = store, marker, database
        self._had_keys = self._is_logged = False

    def check(self) -> None:
        """Check that the keys are not lost.

        Raises:
            InvalidSetting: The service had keys and they are lost.
            StoreUnavailable: The keys cannot be read.
        """
        if self._are_lost(self._store.keys()):
            raise InvalidSetting(f"database: {self._marker.loss_message(self._database)}")

    def add(self, key: Key) -> None:
        """Store a new key."""
        self._store.add(key)

    def keys(self) -> Sequence[Key]:
        """Return all keys, oldest first. Raises StoreUnavailable if they cannot be read or are lost."""
        keys = self._store.keys()
        if self._are_lost(keys):
            # The paths are only in the log, because responses to clients never contain them.
            if not self._is_logged:
                structlog.get_logger().error("the API keys are lost", reason=self._marker.loss_message(self._database))
            self._is_logged = True
            raise StoreUnavailable("the service has lost its API keys; its operator must restore them")
        return keys

    def revoke(self, key_id: str, now_s: float) -> Key | None:
        """Revoke a key and return it, or None if there is no such key."""
        return self._store.revoke(key_id, now_s)

    def _are_lost(self, keys: Sequence[Key]) -> bool:
        """Return whether `keys`, the keys in the store, is empty but the service had keys. Remembers existing keys."""
        if keys:
            self._remember_keys()
            return False
        return self._had_keys or self._marker.is_set

    def _remember_keys(self) -> None:
        """Create the marker file, once per process. Only logs a warning if that fails."""
        if self._had_keys:
            return
        self._had_keys = True
        try:
            self._marker.set(self._database)
        except OSError as error:
            structlog.get_logger().warning(
                "cannot record that API keys are required: if the database is lost, the next start is open to everyone",
                path=str(self._marker.path),
                remedy="make the directory writable",
                reason=error.strerror or str(error),
            )


def _open_private(path: str, flags: int) -> int:
    """Open a file that only its owner can read. An `opener` for Python's `open`."""
    return os.open(path, flags, 0o600)

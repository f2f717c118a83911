"""Remember outside the database that a service has API keys, so that losing them does not open it to everyone."""

import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from sd35.access.keys import Key, KeyStore
from sd35.errors import InvalidSetting, StoreUnavailable


class KeysMarker:
    """The file `keys-required` in `data_dir`. It names the database that the keys are in."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "keys-required"

    @property
    def is_set(self) -> bool:
        """Whether the service once had keys."""
        return os.path.lexists(self.path)

    def set(self, database: str) -> None:
        """Make the file; one that is there stays as it is. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self.path, "x", encoding="utf-8", opener=_private) as file:
                file.write(f"{database}\n")
        except FileExistsError:
            return

    def clear(self) -> None:
        """Remove the file, if it is there. Raises OSError."""
        self.path.unlink(missing_ok=True)

    def missing(self, database: str) -> str:
        """The sentence that says that the keys are gone, and the ways out."""
        try:
            where = self.path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            where = ""
        had = f"in {where}" if where and where != database else "in it"
        return (
            f"{database} has no API keys, but this service had keys {had}, as {self.path} records. The database was"
            " removed or emptied, or the setting names another one. Restore it, or make a new key: sd35 keys add NAME."
            " To serve everyone without keys instead: sd35 keys open"
        )


class RequiredKeyStore:
    """A KeyStore that refuses to have no keys once it had some. `database` is its name in messages.

    The file is made when keys are first read. Where it cannot be, keys are required as long as the process lives.
    """

    def __init__(self, store: KeyStore, marker: KeysMarker, database: str) -> None:
        self._store, self._marker, self._database = store, marker, database
        self._had_keys = self._was_told = False

    def check(self) -> None:
        """Raises InvalidSetting where the keys are lost, StoreUnavailable where they cannot be read."""
        if self._are_lost(self._store.keys()):
            raise InvalidSetting(f"database: {self._marker.missing(self._database)}")

    def add(self, key: Key) -> None:
        """Keep a new one."""
        self._store.add(key)

    def find(self, key_id: str) -> Key | None:
        """One key, revoked or not."""
        return self._store.find(key_id)

    def keys(self) -> Sequence[Key]:
        """All, the oldest first. Raises StoreUnavailable where they are lost, too."""
        found = self._store.keys()
        if self._are_lost(found):
            if not self._was_told:  # clients are not told where files lie
                structlog.get_logger().error("the API keys are lost", reason=self._marker.missing(self._database))
            self._was_told = True
            raise StoreUnavailable("the service has lost its API keys; its operator has to restore them")
        return found

    def revoke(self, key_id: str, now_s: float) -> Key | None:
        """End a key; None where there is none."""
        return self._store.revoke(key_id, now_s)

    def _are_lost(self, found: Sequence[Key]) -> bool:
        if found:
            self._remember()
            return False
        return self._had_keys or self._marker.is_set

    def _remember(self) -> None:
        if self._had_keys:
            return
        self._had_keys = True
        try:
            self._marker.set(self._database)
        except OSError as error:
            structlog.get_logger().warning(
                "that API keys are required cannot be recorded: should the database be lost, the next start is open",
                path=str(self._marker.path),
                reason=error.strerror or str(error),
            )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

"""API keys in memory: for tests, and where jobs are."""

import threading
from collections.abc import Sequence
from dataclasses import replace

from sd35.access.keys import Key


class MemoryKeyStore:
    """A KeyStore."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, Key] = {}

    def add(self, key: Key) -> None:
        """Keep a new one."""
        with self._lock:
            self._keys[key.id] = key

    def find(self, key_id: str) -> Key | None:
        """One key, revoked or not."""
        return self._keys.get(key_id)

    def keys(self) -> Sequence[Key]:
        """All, the oldest first."""
        with self._lock:
            return sorted(self._keys.values(), key=lambda key: (key.created_s, key.id))

    def revoke(self, key_id: str, now_s: float) -> Key | None:
        """End a key; one that was revoked before stays as it is."""
        with self._lock:
            key = self._keys.get(key_id)
            if key and key.revoked_s is None:
                key = self._keys[key_id] = replace(key, revoked_s=now_s)
            return key

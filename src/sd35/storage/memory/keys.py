"""API keys in memory."""

import threading
from collections.abc import Sequence
from dataclasses import replace

from sd35.access.keys import Key


class MemoryKeyStore:
    """A KeyStore in memory. Its keys are lost when the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, Key] = {}

    def add(self, key: Key) -> None:
        """Store a new key."""
        with self._lock:
            self._keys[key.id] = key

    def keys(self) -> Sequence[Key]:
        """Return all keys, oldest first."""
        with self._lock:
            return sorted(self._keys.values(), key=lambda key: (key.created_s, key.id))

    def revoke(self, key_id: str, now_s: float) -> Key | None:
        """Revoke a key and return it, or None if it is missing. The date of an earlier revocation stays."""
        with self._lock:
            key = self._keys.get(key_id)
            if key and key.revoked_s is None:
                key = self._keys[key_id] = replace(key, revoked_s=now_s)
            return key

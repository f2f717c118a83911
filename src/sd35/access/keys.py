"""API keys, their roles and quotas.

A secret has the form `sd35_<id>_<random>`. The ID is public. The random part has 256 bits, so its SHA-256 can be stored
without a slow password hash.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

_SECRET = re.compile(r"sd35_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")


class Role(StrEnum):
    """Role of a key. Users generate images. Administrators also see all jobs and images, and use the admin routes."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Quota:
    """Limits of a key. None means the limit from the settings, and 0 means unlimited."""

    requests_per_minute: int | None = None
    concurrency: int | None = None
    pixels_per_hour: int | None = None


@dataclass(frozen=True)
class Key:
    """A key as it is stored, with only the hash of its secret. The public `id` is the `owner` of jobs and images.

    Times are in seconds since 1970. `revoked_s` is None if the key is valid.
    """

    id: str
    name: str
    secret_sha256: str
    role: Role
    created_s: float
    quota: Quota = Quota()
    revoked_s: float | None = None


class KeyStore(Protocol):
    """Stores keys. Thread-safe. Methods block, and raise StoreUnavailable if the database does not answer."""

    def add(self, key: Key) -> None:
        """Store a new key."""

    def keys(self) -> Sequence[Key]:
        """Return all keys, revoked ones included, oldest first."""

    def revoke(self, key_id: str, now_s: float) -> Key | None:
        """Revoke a key and return it, or None if there is no such key. Does not change an earlier revocation."""


def new_key(name: str, role: Role, now_s: float, quota: Quota | None = None) -> tuple[Key, str]:
    """Return a new key to store, and its secret. The secret is not stored, so it cannot be recovered later."""
    key_id = secrets.token_hex(8)
    secret = f"sd35_{key_id}_{secrets.token_urlsafe(32)}"
    return Key(key_id, name, _sha256(secret), role, now_s, quota or Quota()), secret


def id_of(secret: str) -> str | None:
    """Return the key ID in a secret, or None if the text is not a secret."""
    match = _SECRET.fullmatch(secret)
    return match[1] if match else None


def matches(key: Key, secret: str) -> bool:
    """Return whether a secret belongs to a key, in constant time."""
    return hmac.compare_digest(_sha256(secret), key.secret_sha256)


def _sha256(secret: str) -> str:
    # surrogatepass, because a client's text may not be valid Unicode.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

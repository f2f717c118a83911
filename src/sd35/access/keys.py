"""API keys: who may ask, for what, and how much.

A secret reads `sd35_<id>_<random>`. The id is public; the rest has 256 bits of chance, so that one SHA-256 keeps it.
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
    """A user makes images; an administrator also sees everybody's jobs, the admin routes and the metrics."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Quota:
    """What a key may use; None leaves it to the settings, 0 is without bound."""

    requests_per_minute: int | None = None
    concurrency: int | None = None
    pixels_per_hour: int | None = None


@dataclass(frozen=True)
class Key:
    """A key as it is kept: its secret's hash alone. `id` is public, part of the secret, and the jobs' `owner`."""

    id: str
    name: str
    secret_sha256: str
    role: Role
    created_s: float
    quota: Quota = Quota()
    revoked_s: float | None = None


class KeyStore(Protocol):
    """Keeps keys. Safe for threads; blocks. Raises StoreUnavailable."""

    def add(self, key: Key) -> None:
        """Keep a new one."""

    def find(self, key_id: str) -> Key | None:
        """One key, revoked or not."""

    def keys(self) -> Sequence[Key]:
        """All, the oldest first."""

    def revoke(self, key_id: str, now_s: float) -> Key | None:
        """End a key; None where there is none."""


def new_key(name: str, role: Role, now_s: float, quota: Quota | None = None) -> tuple[Key, str]:
    """A key to keep, and its secret, which is known only now."""
    key_id = secrets.token_hex(8)
    secret = f"sd35_{key_id}_{secrets.token_urlsafe(32)}"
    return Key(key_id, name, _sha256(secret), role, now_s, quota or Quota()), secret


def id_of(secret: str) -> str | None:
    """The id in a secret; None for what is no secret."""
    found = _SECRET.fullmatch(secret)
    return found[1] if found else None


def matches(key: Key, secret: str) -> bool:
    """Whether a secret is a key's, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(_sha256(secret), key.secret_sha256)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

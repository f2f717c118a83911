"""API keys: who may ask, for what, and how much."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Role(StrEnum):
    """A user makes pictures; an administrator also sees everybody's jobs, the admin routes and the metrics."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True)
class Allowance:
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
    allowance: Allowance = Allowance()
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

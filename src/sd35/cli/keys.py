"""`sd35 keys`: API keys, in the database of the settings."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime

from sd35.access.keys import Key, Quota, Role, new_key
from sd35.access.required_keys import KeysMarker
from sd35.errors import InvalidSetting
from sd35.settings import Settings
from sd35.storage.database import MEMORY, Database, database_url, open_database


def add(settings: Settings, name: str, quota: Quota, *, is_admin: bool) -> None:
    """Make a key: its secret goes to stdout alone, for scripts. Raises InvalidSetting, StoreUnavailable."""
    if not name.strip() or not name.isprintable():
        raise InvalidSetting(f"NAME: got {name!r}; allowed: printable characters")
    key, secret = new_key(name, Role.ADMIN if is_admin else Role.USER, time.time(), quota)
    with _stores(settings) as database:
        database.keys.add(key)
        if not database.name.startswith("postgresql"):  # else its servers do so, each in its own data_dir
            _require_keys(settings, database.name)
    print(f"key {key.id} for {name}; its secret is not kept, and never shown again:", file=sys.stderr)
    print(secret)


def list_(settings: Settings, *, as_json: bool) -> None:
    """Print the keys, no hashes. Raises InvalidSetting, StoreUnavailable."""
    with _stores(settings) as database:
        keys = database.keys.keys()
    if as_json:
        print(json.dumps([_as_dict(key) for key in keys], indent=2))
        return
    for key in keys:
        limits = ", ".join(f"{field} {value}" for field, value in asdict(key.quota).items() if value is not None)
        revoked = f", revoked {_date(key.revoked_s)}" if key.revoked_s is not None else ""
        print(
            f"{key.id}  {key.role}  {key.name}; since {_date(key.created_s)}{revoked}{'; ' + limits if limits else ''}"
        )


def revoke(settings: Settings, key_id: str) -> None:
    """End a key. Raises InvalidSetting where there is none of that id, StoreUnavailable."""
    with _stores(settings) as database:
        key = database.keys.revoke(key_id, time.time())
    if key is None:
        raise InvalidSetting(f"ID: no key has the id {key_id!r}; `sd35 keys list` shows them")
    print(f"key {key.id} for {key.name} is revoked")


def open_(settings: Settings) -> None:
    """Let the service start without keys after they were lost. Raises InvalidSetting where it has keys."""
    if settings.database != MEMORY:
        with _stores(settings) as database:
            count, name = len(database.keys.keys()), database.name
        if count:
            keys = "1 key" if count == 1 else f"{count} keys"
            raise InvalidSetting(
                f"database: {name} has {keys}, revoked ones included; allowed: a database without keys"
            )
    marker = KeysMarker(settings.data_dir)
    was_set = marker.is_set
    try:
        marker.clear()
    except OSError as error:
        raise InvalidSetting(f"data_dir: {marker.path} cannot be removed: {error.strerror}") from error
    if was_set:
        print("without keys, the service is open to whoever reaches it, from its next start on")
    else:
        print(f"the service is open already: {marker.path} is not there")


def _require_keys(settings: Settings, database: str) -> None:
    marker = KeysMarker(settings.data_dir)
    try:
        marker.set(database)
    except OSError as error:
        reason = f"{marker.path}: {error.strerror}"
        print(f"WARNING: that keys are required cannot be recorded ({reason})", file=sys.stderr)


@contextmanager
def _stores(settings: Settings) -> Iterator[Database]:
    if settings.database == MEMORY:
        raise InvalidSetting(f"database: got {MEMORY}; allowed here: one that outlives this command")
    database = open_database(database_url(settings))
    try:
        yield database
    finally:
        database.close()


def _as_dict(key: Key) -> dict[str, object]:
    fields = asdict(key)
    del fields["secret_sha256"]
    return fields


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")

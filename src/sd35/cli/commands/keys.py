"""The commands `sd35 keys ...`."""

import json
import sys
import time
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from sd35.access.keys import Key, Quota, Role, new_key
from sd35.access.required_keys import KeysMarker
from sd35.cli.options import AsJson, with_settings
from sd35.errors import InvalidSetting
from sd35.settings import Settings
from sd35.storage.database import MEMORY, Database, database_url, open_database

app = typer.Typer(no_args_is_help=True)
_with_database = with_settings("data_dir", "database")


@app.callback()
def keys() -> None:
    """API keys: who may use the service, and how much.

    They are stored in the database of the settings, with the jobs.

    [bold]Examples[/bold]

      sd35 keys add "the shop"
      sd35 keys list
    """


@app.command()
@_with_database
def add(
    name: Annotated[str, typer.Argument(help="The owner's name, for the list of keys.")],
    *,
    admin: Annotated[bool, typer.Option("--admin", help="Allow all jobs, and the admin routes.")] = False,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Requests in a minute; 0 is unlimited. Default: the service's.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=0, help="Images at the same time; 0 is unlimited. Default: the service's.")
    ] = None,
    pixels_per_hour: Annotated[
        int | None, typer.Option(min=0, help="Pixels in an hour; 0 is unlimited. Default: the service's.")
    ] = None,
    settings: Settings,
) -> None:
    """Create a key and print its secret. Only a hash is stored, so the secret is never shown again.

    The secret goes to stdout, all else to stderr.

    [bold]Examples[/bold]

      sd35 keys add "the shop"
      sd35 keys add ops --admin
      SD35_DATABASE=postgresql://sd35@db/sd35 sd35 keys add trial --requests-per-minute 10 --concurrency 1
    """
    if not name.strip() or not name.isprintable():
        raise InvalidSetting(f"NAME: got {name!r}; allowed: printable characters")
    quota = Quota(requests_per_minute, concurrency, pixels_per_hour)
    key, secret = new_key(name, Role.ADMIN if admin else Role.USER, time.time(), quota)
    with _open_database(settings) as database:
        database.keys.add(key)
        if not database.name.startswith("postgresql"):  # its servers do so themselves, each in its own data_dir
            _require_keys(settings, database.name)
    print(f"key {key.id} for {name}; its secret is not kept, and never shown again:", file=sys.stderr)
    print(secret)


@app.command("list")
@_with_database
def list_(*, as_json: AsJson = False, settings: Settings) -> None:
    """List the keys, oldest first, including revoked ones.

    Secrets are not shown: only their hashes are stored.

    [bold]Examples[/bold]

      sd35 keys list
      sd35 keys list --json | jq -r '.[].id'
    """
    with _open_database(settings) as database:
        keys = database.keys.keys()
    if as_json:
        print(json.dumps([_as_dict(key) for key in keys], indent=2))
        return
    for key in keys:
        print(_as_text(key))


@app.command()
@_with_database
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `sd35 keys list` shows it.")],
    *,
    settings: Settings,
) -> None:
    """Revoke a key: requests with its secret are refused from now on.

    Its jobs and images stay, and so does its line in the list.

    [bold]Examples[/bold]

      sd35 keys revoke 3f9c2a71b04d88e1
    """
    with _open_database(settings) as database:
        key = database.keys.revoke(key_id, time.time())
    if key is None:
        raise InvalidSetting(f"ID: no key has the id {key_id!r}; `sd35 keys list` shows them")
    print(f"key {key.id} for {key.name} is revoked")


@app.command("open")
@_with_database
def open_(*, settings: Settings) -> None:
    """Let the service start without keys after its database was lost. Anyone who reaches it may then use it.

    A service that once had keys does not start without them. This command removes the file in data_dir that says so. If
    the database has keys, even revoked ones, they remain required.

    [bold]Examples[/bold]

      sd35 keys open
    """
    if settings.database != MEMORY:
        with _open_database(settings) as database:
            count, name = len(database.keys.keys()), database.name
        if count:
            amount = "1 key" if count == 1 else f"{count} keys"
            raise InvalidSetting(
                f"database: {name} has {amount}, revoked ones included; allowed: a database without keys"
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


def _open_database(settings: Settings) -> AbstractContextManager[Database]:
    if settings.database == MEMORY:
        raise InvalidSetting(f"database: got {MEMORY}; allowed here: one that outlives this command")
    return closing(open_database(database_url(settings)))


def _as_dict(key: Key) -> dict[str, object]:
    fields = asdict(key)
    del fields["secret_sha256"]
    return fields


def _as_text(key: Key) -> str:
    limits = ", ".join(f"{field} {value}" for field, value in asdict(key.quota).items() if value is not None)
    revoked = f", revoked {_date(key.revoked_s)}" if key.revoked_s is not None else ""
    return f"{key.id}  {key.role}  {key.name}; since {_date(key.created_s)}{revoked}{'; ' + limits if limits else ''}"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")

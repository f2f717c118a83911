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
_UNITS = {
    "requests_per_minute": "requests per minute",
    "concurrency": "images at a time",
    "pixels_per_hour": "pixels per hour",
}
_with_database = with_settings("data_dir", "database")


@app.callback()
def keys() -> None:
    """Create, list and revoke API keys: who may use the service, and how much.

    As soon as a key exists, requests need a key, except for health checks, documentation, the pages
    of the user interface, and signed links. Keys are stored in the service's database: use the same --data-dir and
    --database as for `sd35 serve`.

    [bold]Examples[/bold]

      sd35 keys add "the shop"
      sd35 keys list
    """


@app.command()
@_with_database
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the owner, shown in the list of keys.")],
    *,
    admin: Annotated[
        bool, typer.Option("--admin", help="Create an administrator's key: it sees the jobs and images of all keys.")
    ] = False,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            metavar="REQUESTS", min=0, help="Requests per minute; 0 is unlimited.", show_default="the service's limit"
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            metavar="IMAGES", min=0, help="Images at a time; 0 is unlimited.", show_default="the service's limit"
        ),
    ] = None,
    pixels_per_hour: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", min=0, help="Pixels per hour; 0 is unlimited.", show_default="the service's limit"
        ),
    ] = None,
    settings: Settings,
) -> None:
    """Create a key and print its secret. Only a hash is stored, so the secret cannot be shown again.

    The secret is printed to stdout, everything else to stderr.

    [bold]Examples[/bold]

      sd35 keys add "the shop"
      sd35 keys add ops --admin
      SD35_DATABASE=postgresql://sd35@db/sd35 sd35 keys add trial --requests-per-minute 10 --concurrency 1
    """
    if not name.strip() or not name.isprintable():
        raise InvalidSetting(f"NAME: got {name!r}; allowed: a name of printable characters that is not blank")
    quota = Quota(requests_per_minute, concurrency, pixels_per_hour)
    key, secret = new_key(name, Role.ADMIN if admin else Role.USER, time.time(), quota)
    with _open_database(settings) as database:
        database.keys.add(key)
        if not database.name.startswith("postgresql"):  # servers of PostgreSQL each record it in their own data_dir
            _record_keys_required(settings, database.name)
    print(f"Created key {key.id} for {name}. Save its secret now; it cannot be shown again:", file=sys.stderr)
    print(secret)


@app.command("list")
@_with_database
def list_(*, as_json: AsJson = False, settings: Settings) -> None:
    """List the keys, oldest first, including revoked ones.

    Secrets are not listed, because only their hashes are stored.

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
    if not keys:
        print("There are no keys. Create one with `sd35 keys add NAME` and the same settings.", file=sys.stderr)


@app.command()
@_with_database
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="ID of the key, as `sd35 keys list` shows it.")],
    *,
    settings: Settings,
) -> None:
    """Revoke a key. A running server refuses its secret within five seconds.

    The key's jobs and images stay, and the key stays in the list.

    [bold]Examples[/bold]

      sd35 keys revoke 3f9c2a71b04d88e1
    """
    with _open_database(settings) as database:
        key = database.keys.revoke(key_id, time.time())
    if key is None:
        raise InvalidSetting(f"ID: got {key_id!r}; allowed: an ID that `sd35 keys list` shows")
    print(f"Revoked key {key.id} for {key.name}")


@app.command("open")
@_with_database
def open_(*, settings: Settings) -> None:
    """Let the service start without keys after its database was lost. Anyone who can reach it may then use it.

    A service that once had keys refuses to start with a database without keys. A file in data_dir records that it had
    keys, and this command deletes the file. The command fails if the database has keys, even revoked ones.

    [bold]Examples[/bold]

      sd35 keys open
    """
    if settings.database != MEMORY:
        with _open_database(settings) as database:
            count, name = len(database.keys.keys()), database.name
        if count:
            amount = "1 key" if count == 1 else f"{count} keys"
            raise InvalidSetting(
                f"database: {name} has {amount}, including revoked ones, so the service still requires one; allowed: a"
                " database without keys. If all keys are lost or revoked, create one with: sd35 keys add NAME"
            )
    marker = KeysMarker(settings.data_dir)
    was_set = marker.is_set
    try:
        marker.clear()
    except OSError as error:
        raise InvalidSetting(
            f"data_dir: {marker.path} cannot be deleted ({error.strerror}); run this as a user who may write there"
        ) from error
    if was_set:
        print("From its next start on, the service requires no keys. Anyone who can reach it may use it.")
    else:
        print(f"Nothing to do: {marker.path} does not exist, so the service requires no keys.")


def _record_keys_required(settings: Settings, database: str) -> None:
    """Record in `data_dir` that the service requires keys. Print a warning if that fails."""
    marker = KeysMarker(settings.data_dir)
    try:
        marker.set(database)
    except OSError as error:
        print(
            f"WARNING: {marker.path} cannot be written ({error.strerror}). Without this file, the service is open to"
            " everyone if its database is lost. Make data_dir writable, then start the service: it writes the file",
            file=sys.stderr,
        )


def _open_database(settings: Settings) -> AbstractContextManager[Database]:
    """Open the database of the settings. Raises InvalidSetting for a database in memory."""
    if settings.database == MEMORY:
        raise InvalidSetting(
            f"database: got {MEMORY!r}; allowed here: a file or a PostgreSQL URL, because a database in memory is lost"
            " when this command ends"
        )
    return closing(open_database(database_url(settings), tables="create"))


def _as_dict(key: Key) -> dict[str, object]:
    """Return the fields of a key for --json, without the hash of its secret."""
    fields = asdict(key)
    del fields["secret_sha256"]
    return fields


def _as_text(key: Key) -> str:
    """Return the line of a key in the list: its ID, role, name, dates and limits."""
    facts = [f"created {_format_date(key.created_s)}"]
    if key.revoked_s is not None:
        facts.append(f"revoked {_format_date(key.revoked_s)}")
    for field, value in asdict(key.quota).items():
        if value is not None:
            facts.append(f"{value or 'unlimited'} {_UNITS[field]}")  # 0 is unlimited
    return f"{key.id}  {key.role:<5}  {key.name}: {', '.join(facts)}"


def _format_date(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d")

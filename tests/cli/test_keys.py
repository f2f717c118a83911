"""`sd35 keys`, as an operator uses it."""

import json
import sys
from pathlib import Path

import pytest

from sd35.access.keys import Role, id_of, matches
from sd35.cli.main import main
from sd35.errors import InvalidSetting
from sd35.settings import load_settings
from sd35.storage.database import open_database
from sd35.storage.storage import Storage
from tests.support.postgres import new_schema


@pytest.fixture(autouse=True)
def _database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD35_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("SD35_DATABASE", raising=False)


def keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process. Return the exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["sd35", "keys", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), *capsys.readouterr()


def test_a_key_is_added_listed_and_revoked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """The secret is printed once, and only on stdout. The database has its hash."""
    limits = ("--requests-per-minute", "10", "--concurrency", "0")
    code, secret, stderr = keys(monkeypatch, capsys, "add", "the shop", "--admin", *limits)
    key_id = id_of(secret.strip())
    assert code == 0
    assert key_id is not None
    assert key_id in stderr
    opened_database = open_database(str(tmp_path / "data" / "sd35.db"))
    (key,) = opened_database.keys.keys()
    opened_database.close()
    assert matches(key, secret.strip())
    assert (key.name, key.role, key.quota.requests_per_minute) == ("the shop", Role.ADMIN, 10)
    assert (key.quota.concurrency, key.quota.pixels_per_hour) == (0, None)
    assert key_id in keys(monkeypatch, capsys, "list")[1]
    assert keys(monkeypatch, capsys, "revoke", key_id) == (0, f"Revoked key {key_id} for the shop\n", "")
    code, listed, _ = keys(monkeypatch, capsys, "list", "--json")
    (fields,) = json.loads(listed)
    assert code == 0
    assert (fields["id"], fields["role"], fields["revoked_s"] is None) == (key_id, "admin", False)
    assert secret.strip().split("_", 2)[2] not in listed
    assert key.secret_sha256 not in listed


def test_keys_stay_required_if_the_database_is_lost_until_keys_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """Adding a key ends this too. `open` refuses while the database has keys."""
    settings = load_settings({})
    keys(monkeypatch, capsys, "add", "the shop")
    code, _, stderr = keys(monkeypatch, capsys, "open")
    assert (
        code,
        "has 1 key, including revoked ones, so the service still requires one; allowed: a database" in stderr,
    ) == (2, True)
    keys(monkeypatch, capsys, "add", "another shop")
    assert "has 2 keys, including revoked ones" in keys(monkeypatch, capsys, "open")[2]
    for path in (tmp_path / "data").glob("sd35.db*"):
        path.unlink()
    with pytest.raises(InvalidSetting, match="has no API keys, but this service had keys in it"):
        Storage.open(settings)
    assert keys(monkeypatch, capsys, "open")[:2] == (
        0,
        "From its next start on, the service requires no keys. Anyone who can reach it may use it.\n",
    )
    Storage.open(settings).close()
    assert keys(monkeypatch, capsys, "open")[1].startswith("Nothing to do: ")


def test_a_key_in_a_remote_database_is_not_required_by_a_local_service(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
):
    url = new_schema(request.getfixturevalue("postgres_server")).render_as_string(hide_password=False)
    assert keys(monkeypatch, capsys, "add", "the shop", "--database", url)[0] == 0
    Storage.open(load_settings({})).close()
    Storage.open(load_settings({"database": url})).close()
    assert (tmp_path / "data" / "keys-required").read_text().startswith("postgresql")
    with pytest.raises(InvalidSetting, match="this service had keys in postgresql"):
        Storage.open(load_settings({}))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("revoke", "nothing"), 2, "ID: got 'nothing'; allowed: an ID that `sd35 keys list` shows"),
        (("add", " "), 2, "NAME: got ' '; allowed: a name of printable characters"),
        (("list", "--database", "memory"), 2, "database: got 'memory'; allowed here: a file or a PostgreSQL URL"),
        (("list", "--database", "mysql://me:hush@db/x"), 2, "database: got 'mysql://me:***@db/x'; allowed: `memory`, "),
        (("list", "--database", "/dev/null/x"), 1, "the database /dev/null/x cannot be used: "),
    ],
)
def test_an_error_of_the_user_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
):
    """On stderr, without the password."""
    exit_code, out, stderr = keys(monkeypatch, capsys, *arguments)
    assert (exit_code, out, stderr.count("\n")) == (code, "", 1)
    assert message in stderr
    assert "hush" not in stderr

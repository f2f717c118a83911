"""A service that once had API keys does not open to everyone when they are lost."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sd35.access.keys import Role, new_key
from sd35.access.required_keys import KeysMarker, RequiredKeyStore
from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.settings import load_settings
from sd35.storage.memory.keys import MemoryKeyStore
from sd35.storage.storage import Storage

KEY, _ = new_key("the shop", Role.USER, 1.0)


def open_storage(data: Path, **given: Any) -> Storage:
    """Open the storage as a starting server does."""
    return Storage.open(load_settings({"data_dir": data, **given}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data directory of a stopped server that had a key."""
    data = tmp_path / "data"
    storage = open_storage(data)
    storage.database.keys.add(KEY)
    storage.database.keys.keys()
    storage.close()
    return data


@pytest.mark.parametrize("how", ["removed", "emptied", "memory", "another"])
def test_a_start_without_its_former_keys_is_refused(data: Path, how: str):
    """However the keys were lost. The error is one line, with the cause and the remedies."""
    other = {"memory": "memory", "another": str(data / "other.db")}.get(how)
    if how == "removed":
        for path in data.glob("sd35.db*"):
            path.unlink()
    elif how == "emptied":
        (data / "sd35.db").write_bytes(b"")
    with pytest.raises(InvalidSetting) as refused:
        open_storage(data, **({"database": other} if other else {}))
    message = str(refused.value)
    assert message.startswith(f"database: {other or data / 'sd35.db'} has no API keys, but this service had keys in ")
    assert ("had keys in it" in message) == (other is None)
    assert all(text in message for text in (str(data / "keys-required"), "sd35 keys add NAME", "sd35 keys open"))
    assert "\n" not in message


def test_revoked_keys_are_not_lost(data: Path):
    """The service starts, and requires a key."""
    storage = open_storage(data)
    storage.database.keys.revoke(KEY.id, 2.0)
    storage.close()
    storage = open_storage(data)
    (key,) = storage.database.keys.keys()
    assert (key.id, key.revoked_s) == (KEY.id, 2.0)
    storage.close()


def test_a_service_that_never_had_keys_leaves_no_marker(tmp_path: Path):
    """It can start any number of times, with any database."""
    for database in (None, None, "memory"):
        storage = open_storage(tmp_path, **({"database": database} if database else {}))
        assert storage.database.keys.keys() == []
        storage.close()
    assert not (tmp_path / "keys-required").exists()


def test_a_start_with_keys_creates_the_marker(data: Path):
    """Even if an older version created the keys. The marker names the database."""
    (data / "keys-required").unlink()
    open_storage(data).close()
    assert (data / "keys-required").read_text() == f"{data / 'sd35.db'}\n"
    assert stat.S_IMODE((data / "keys-required").stat().st_mode) == 0o600


def test_keys_lost_at_run_time_let_nobody_in(tmp_path: Path):
    """The reason is logged once. Clients see no paths."""
    inner = MemoryKeyStore()
    store = RequiredKeyStore(inner, KeysMarker(tmp_path), "the database")
    assert store.keys() == []
    store.add(KEY)
    assert list(store.keys()) == [KEY]
    inner._keys.clear()  # noqa: SLF001  as if someone had emptied the database
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="lost its API keys") as error:
                store.keys()
    assert str(tmp_path) not in str(error.value)
    assert [log["event"] for log in logs] == ["the API keys are lost"]


def test_a_marker_that_cannot_be_written_is_a_warning(tmp_path: Path):
    """Keys are still required until the process ends."""
    file = tmp_path / "file"
    file.touch()
    inner = MemoryKeyStore()
    store = RequiredKeyStore(inner, KeysMarker(file / "data"), "the database")
    store.add(KEY)
    with capture_logs() as logs:
        store.keys()
        store.keys()
    assert [log["log_level"] for log in logs] == ["warning"]
    assert logs[0]["reason"] in {os.strerror(17), os.strerror(20)}
    inner._keys.clear()  # noqa: SLF001
    with pytest.raises(StoreUnavailable):
        store.keys()

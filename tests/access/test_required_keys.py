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


def opened(data: Path, **given: Any) -> Storage:
    """What a server opens at its start."""
    return Storage.of(load_settings({"data_dir": data, **given}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data directory of a server that was started with a key, and has ended."""
    data = tmp_path / "data"
    kept = opened(data)
    kept.database.keys.add(KEY)
    kept.database.keys.keys()
    kept.close()
    return data


@pytest.mark.parametrize("how", ["removed", "emptied", "memory", "another"])
def test_a_start_whose_keys_are_lost_is_refused(data: Path, how: str):
    """Whatever became of the database. The error says what happened and the ways out, in one line."""
    other = {"memory": "memory", "another": str(data / "other.db")}.get(how)
    if how == "removed":
        for path in data.glob("sd35.db*"):
            path.unlink()
    elif how == "emptied":
        (data / "sd35.db").write_bytes(b"")
    with pytest.raises(InvalidSetting) as refused:
        opened(data, **({"database": other} if other else {}))
    told = str(refused.value)
    assert told.startswith(f"database: {other or data / 'sd35.db'} has no API keys, but this service had keys in ")
    assert ("had keys in it" in told) == (other is None)
    assert all(words in told for words in (str(data / "keys-required"), "sd35 keys add NAME", "sd35 keys open"))
    assert "\n" not in told


def test_revoked_keys_are_not_lost(data: Path):
    """The service starts, and stays closed: they are in the list."""
    kept = opened(data)
    kept.database.keys.revoke(KEY.id, 2.0)
    kept.close()
    kept = opened(data)
    (key,) = kept.database.keys.keys()
    assert (key.id, key.revoked_s) == (KEY.id, 2.0)
    kept.close()


def test_a_service_that_never_had_keys_leaves_no_marker(tmp_path: Path):
    """It starts open as often as it is started, with any database."""
    for database in (None, None, "memory"):
        kept = opened(tmp_path, **({"database": database} if database else {}))
        assert kept.database.keys.keys() == []
        kept.close()
    assert not (tmp_path / "keys-required").exists()


def test_a_start_with_keys_makes_the_marker(data: Path):
    """Also for keys that an older version made. Only its user reads it; it names the database."""
    (data / "keys-required").unlink()
    opened(data).close()
    assert (data / "keys-required").read_text() == f"{data / 'sd35.db'}\n"
    assert stat.S_IMODE((data / "keys-required").stat().st_mode) == 0o600


def test_keys_that_vanish_while_it_runs_let_nobody_in(tmp_path: Path):
    """It answers that it is unavailable, and logs once why; nothing of its files is told to clients."""
    inner = MemoryKeyStore()
    store = RequiredKeyStore(inner, KeysMarker(tmp_path), "the database")
    assert store.keys() == []
    store.add(KEY)
    assert list(store.keys()) == [KEY]
    inner._keys.clear()  # noqa: SLF001  as someone else's SQL does
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="lost its API keys") as error:
                store.keys()
    assert str(tmp_path) not in str(error.value)
    assert [log["event"] for log in logs] == ["the API keys are lost"]


def test_a_marker_that_cannot_be_made_is_a_warning(tmp_path: Path):
    """The service works; keys are still required while it lives."""
    place = tmp_path / "file"
    place.touch()
    inner = MemoryKeyStore()
    store = RequiredKeyStore(inner, KeysMarker(place / "data"), "the database")
    store.add(KEY)
    with capture_logs() as logs:
        store.keys()
        store.keys()
    assert [log["log_level"] for log in logs] == ["warning"]
    assert logs[0]["reason"] in {os.strerror(17), os.strerror(20)}
    inner._keys.clear()  # noqa: SLF001
    with pytest.raises(StoreUnavailable):
        store.keys()

"""Settings: flags over environment over file over defaults, and errors that name the setting."""

import inspect
import math
import os
from pathlib import Path

import pytest

from sd35.engine.scheduling.scheduler import SLOWDOWN_TARGET
from sd35.errors import InvalidSetting
from sd35.settings import Settings, load_settings, unknown_variables
from sd35.settings.description import group_of, settings_table
from sd35.startup import limits_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SD35_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file that sets the port and the checkpoints."""
    path = tmp_path / "sd35.toml"
    path.write_text('port = 1001\nmax_in_flight = 3\ncheckpoints = ["one", "two"]\n')
    return path


def test_defaults_serve_the_embedded_model_on_this_machine_only():
    """Nothing set: the embedded model, on port 8000 of the loopback address."""
    settings = load_settings()
    assert (settings.host, settings.port, settings.checkpoints) == ("127.0.0.1", 8000, ("sd35-mini",))


def test_flags_win_over_environment_over_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Each source overrides the ones below it, setting by setting."""
    monkeypatch.setenv("SD35_PORT", "1002")
    monkeypatch.setenv("SD35_CONFIG", str(file))
    from_environment = load_settings()
    assert (from_environment.port, from_environment.max_in_flight) == (1002, 3)
    assert load_settings({"port": "1003", "host": None}).port == 1003


def test_several_checkpoints_come_as_list_or_with_commas(file: Path, monkeypatch: pytest.MonkeyPatch):
    """A list in the file and a comma-separated variable mean the same."""
    assert load_settings(config=file).checkpoints == ("one", "two")
    monkeypatch.setenv("SD35_CHECKPOINTS", "three, four")
    assert load_settings(config=file).checkpoints == ("three", "four")


def test_an_unknown_key_in_the_file_is_named(file: Path):
    """A typing error in the file is an error, not a setting that has no effect."""
    file.write_text("prot = 1\n")
    with pytest.raises(InvalidSetting, match=r"unknown key 'prot'; known: .*port"):
        load_settings(config=file)


def test_an_unknown_setting_is_named():
    """Also if a program gives it."""
    with pytest.raises(InvalidSetting, match="--prot: got '1'; extra inputs are not permitted"):
        load_settings({"prot": "1"})


@pytest.mark.parametrize("content", ["port = ", "port = " + "[" * 200_000, "port = " + "9" * 5_000, None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None):
    """A missing or malformed file is an error that names it."""
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSetting, match=r"mine\.toml cannot be read"):
        load_settings(config=path)


def test_a_wrong_value_is_named_with_where_it_came_from(file: Path, monkeypatch: pytest.MonkeyPatch):
    """The error names the flag, the variable or the file's key."""
    with pytest.raises(InvalidSetting, match="--max-pixels: got '1'"):
        load_settings({"max_pixels": "1"})
    file.write_text('port = "x"')
    with pytest.raises(InvalidSetting, match=r"sd35\.toml: port: got 'x'"):
        load_settings(config=file)
    monkeypatch.setenv("SD35_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(InvalidSetting, match="SD35_PORT: got 'tcp://"):
        load_settings(config=file)


def test_variables_that_nothing_reads_are_found(monkeypatch: pytest.MonkeyPatch):
    """A mistyped variable can be warned of."""
    monkeypatch.setenv("SD35_PROT", "1")
    monkeypatch.setenv("SD35_PORT", "1")
    assert unknown_variables() == ["SD35_PROT"]


def test_the_documented_table_is_the_settings():
    """docs/settings.md holds the table that `sd35.settings.description.settings_table()` returns."""
    assert settings_table() in DOCUMENT.read_text()


def test_every_setting_has_a_description_and_belongs_to_a_group():
    """The table and the help of `sd35 serve` show both."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    groups = {group_of(name) for name in Settings.model_fields}
    assert groups == {"Server", "Access", "Limits", "Models", "Compute", "Storage", "Webhooks"}


def test_every_setting_is_read_somewhere():
    """No setting is accepted and then ignored."""
    floor = Path(inspect.getfile(Settings)).parent
    paths = [path for path in floor.parent.rglob("*.py") if floor not in path.parents]
    code = "".join(path.read_text() for path in paths)
    assert [name for name in Settings.model_fields if f"settings.{name}" not in code] == []


@pytest.mark.parametrize("amount", ["lots", "-1GiB", "12xB"])
def test_an_amount_of_memory_that_is_none_is_refused_with_its_form(amount: str):
    """What came is named, and how an amount is written."""
    with pytest.raises(InvalidSetting, match=rf"--vram: got '{amount}'; allowed: .* as 12GiB"):
        load_settings({"vram": amount})


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch):
    """Neither where it is wrong nor where the settings are printed."""
    monkeypatch.setenv("SD35_LINK_SECRET", "unspeakable")
    with pytest.raises(InvalidSetting, match=r"SD35_LINK_SECRET: got a secret; .* at least 16") as refused:
        load_settings()
    assert "unspeakable" not in str(refused.value)
    monkeypatch.setenv("SD35_LINK_SECRET", "unspeakable, and long enough")
    assert "unspeakable" not in repr(load_settings())


@pytest.mark.parametrize("url", ["images.example.com", "ftp://example.com", "https://example.com/?a=1", "https://a b"])
def test_a_public_address_that_links_cannot_begin_with_is_refused(url: str):
    """It is http or https, without parameters."""
    with pytest.raises(InvalidSetting, match=f"--public-url: got {url!r}".replace("?", "[?]")):
        load_settings({"public_url": url})


def test_secrets_are_in_no_error_and_no_representation(file: Path):
    """Nor is a database's URL, which may hold a password."""
    settings = load_settings({"database": "postgresql://me:hush@db/jobs", "webhook_secret": "whsec_hush"})
    assert "hush" not in repr(settings)
    file.write_text('database = ["hush"]')
    with pytest.raises(InvalidSetting, match="database: got a secret") as error:
        load_settings(config=file)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(("rows", "asked", "most"), [(8, 0, 10), (1, 0, 3), (32, 0, 40), (8, 64, 64)])
def test_little_more_than_a_batch_is_let_in_unless_asked_for(rows: int, asked: int, most: int):
    """As many images as rows and a quarter more, two at least; a number that is given is taken."""
    assert limits_of(load_settings({"max_batch_rows": rows, "max_in_flight": asked}), 1).max_in_flight == most


@pytest.mark.parametrize(("asked", "slowdown"), [(0, SLOWDOWN_TARGET), (64, math.inf)])
def test_lasting_overload_leaves_a_number_of_places_that_was_asked_for(asked: int, slowdown: float):
    """Only the automatic number of places is reduced while overload lasts."""
    assert limits_of(load_settings({"max_in_flight": asked}), 1).max_slowdown == slowdown

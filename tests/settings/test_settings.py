"""Settings from flags, the environment and a file, and errors that name the setting."""

import inspect
import math
import os
from pathlib import Path

import pytest

from sd35.engine.scheduling.scheduler import SLOWDOWN_TARGET
from sd35.errors import InvalidSetting
from sd35.settings import Settings, load_settings, unknown_variables
from sd35.settings.description import group_of
from sd35.startup import limits_of


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SD35_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file with a port, `max_in_flight` and checkpoints."""
    path = tmp_path / "sd35.toml"
    path.write_text('port = 1001\nmax_in_flight = 3\ncheckpoints = ["one", "two"]\n')
    return path


def test_defaults_serve_the_embedded_model_on_this_machine_only():
    """On port 8000 of the loopback address."""
    settings = load_settings()
    assert (settings.host, settings.port, settings.checkpoints) == ("127.0.0.1", 8000, ("sd35-mini",))


def test_flags_override_the_environment_which_overrides_the_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    """For each setting separately."""
    monkeypatch.setenv("SD35_PORT", "1002")
    monkeypatch.setenv("SD35_CONFIG", str(file))
    from_environment = load_settings()
    assert (from_environment.port, from_environment.max_in_flight) == (1002, 3)
    assert load_settings({"port": "1003", "host": None}).port == 1003


def test_several_checkpoints_are_a_list_in_the_file_or_separated_by_commas(file: Path, monkeypatch: pytest.MonkeyPatch):
    assert load_settings(config=file).checkpoints == ("one", "two")
    monkeypatch.setenv("SD35_CHECKPOINTS", "three, four")
    assert load_settings(config=file).checkpoints == ("three", "four")


def test_an_unknown_key_in_the_file_is_an_error(file: Path):
    file.write_text("prot = 1\n")
    with pytest.raises(InvalidSetting, match=r"unknown key 'prot'; allowed: .*port"):
        load_settings(config=file)


def test_an_unknown_setting_of_a_program_is_an_error():
    with pytest.raises(InvalidSetting, match=r"--prot: there is no such setting; allowed: .*port"):
        load_settings({"prot": "1"})


@pytest.mark.parametrize("content", ["port = ", "port = " + "[" * 200_000, "port = " + "9" * 5_000, None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None):
    """It is missing or malformed."""
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSetting, match=r"mine\.toml (cannot be read|is not valid TOML)"):
        load_settings(config=path)


def test_the_error_of_a_wrong_value_names_its_source(file: Path, monkeypatch: pytest.MonkeyPatch):
    """The flag, the variable, or the key in the file."""
    with pytest.raises(InvalidSetting, match="--max-pixels: got '1'"):
        load_settings({"max_pixels": "1"})
    file.write_text('port = "x"')
    with pytest.raises(InvalidSetting, match=r"sd35\.toml: port: got 'x'"):
        load_settings(config=file)
    monkeypatch.setenv("SD35_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(InvalidSetting, match="SD35_PORT: got 'tcp://"):
        load_settings(config=file)


def test_unknown_variables_are_found(monkeypatch: pytest.MonkeyPatch):
    """A mistyped variable can then be a warning."""
    monkeypatch.setenv("SD35_PROT", "1")
    monkeypatch.setenv("SD35_PORT", "1")
    assert unknown_variables() == ["SD35_PROT"]


def test_every_setting_has_a_description_and_belongs_to_a_group():
    """The reference page and the help of `sd35 serve` show both."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    groups = {group_of(name) for name in Settings.model_fields}
    assert groups == {"Server", "Access", "Limits", "Models", "Compute", "Storage", "Webhooks"}


def test_every_setting_is_read_somewhere():
    """No setting is accepted and then ignored."""
    package = Path(inspect.getfile(Settings)).parent
    paths = [path for path in package.parent.rglob("*.py") if package not in path.parents]
    code = "".join(path.read_text() for path in paths)
    assert [name for name in Settings.model_fields if f"settings.{name}" not in code] == []


@pytest.mark.parametrize("amount", ["lots", "-1GiB", "12xB"])
def test_a_malformed_amount_of_memory_is_refused_with_an_example(amount: str):
    with pytest.raises(InvalidSetting, match=rf"--vram: got '{amount}'; allowed: .* such as 12GiB"):
        load_settings({"vram": amount})


def test_a_link_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch):
    """Neither in an error nor in the representation of the settings."""
    monkeypatch.setenv("SD35_LINK_SECRET", "unspeakable")
    with pytest.raises(InvalidSetting, match=r"SD35_LINK_SECRET: got a secret; .* at least 16") as refused:
        load_settings()
    assert "unspeakable" not in str(refused.value)
    monkeypatch.setenv("SD35_LINK_SECRET", "unspeakable, and long enough")
    assert "unspeakable" not in repr(load_settings())


@pytest.mark.parametrize("url", ["images.example.com", "ftp://example.com", "https://example.com/?a=1", "https://a b"])
def test_a_public_url_that_links_cannot_begin_with_is_refused(url: str):
    """It must be http or https, without a query."""
    with pytest.raises(InvalidSetting, match=f"--public-url: got {url!r}".replace("?", "[?]")):
        load_settings({"public_url": url})


def test_the_database_and_the_webhook_secret_are_never_shown(file: Path):
    """The URL of a database may contain a password."""
    settings = load_settings({"database": "postgresql://me:hush@db/jobs", "webhook_secret": "whsec_hush"})
    assert "hush" not in repr(settings)
    file.write_text('database = ["hush"]')
    with pytest.raises(InvalidSetting, match="database: got a secret") as error:
        load_settings(config=file)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(("rows", "setting", "limit"), [(8, 0, 10), (1, 0, 3), (32, 0, 40), (8, 64, 64)])
def test_the_default_limit_of_images_in_flight_is_a_little_more_than_a_batch(rows: int, setting: int, limit: int):
    """A quarter more than the rows of a batch, and at least two more."""
    assert limits_of(load_settings({"max_batch_rows": rows, "max_in_flight": setting}), 1).max_in_flight == limit


@pytest.mark.parametrize(("setting", "slowdown"), [(0, SLOWDOWN_TARGET), (64, math.inf)])
def test_lasting_overload_does_not_reduce_a_limit_that_the_operator_set(setting: int, slowdown: float):
    """It reduces the default limit only."""
    assert limits_of(load_settings({"max_in_flight": setting}), 1).max_slowdown == slowdown


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("port", "99999", "--port: got '99999'; allowed: 65535 or less"),
        ("port", "x", "--port: got 'x'; allowed: a whole number"),
        ("retention_days", "-1", "--retention-days: got '-1'; allowed: 0 or more"),
        ("max_wait_s", "0", "--max-wait-s: got '0'; allowed: more than 0"),
        ("offline", "maybe", "--offline: got 'maybe'; allowed: true or false"),
        ("log_format", "xml", "--log-format: got 'xml'; allowed: auto, console or json"),
        ("link_secret", "short", "--link-secret: got a secret; allowed: at least 16 characters"),
        ("checkpoints", "", "--checkpoint: got []; allowed: at least one item"),
        ("root_path", "/a/", "--root-path: got '/a/'; allowed: a path such as /images, without a slash at its end"),
        ("trusted_proxies", "x", "allowed: addresses and networks, such as 10.0.0.7 or 10.0.0.0/8"),
    ],
)
def test_errors_of_pydantic_are_translated_to_plain_english(name: str, value: str, message: str):
    """Patterns and types, for example."""
    with pytest.raises(InvalidSetting) as error:
        load_settings({name: value})
    assert message in str(error.value)


def test_the_error_without_a_home_directory_names_the_settings(monkeypatch: pytest.MonkeyPatch):
    """The defaults are invalid, so the error has no file or variable to name."""
    monkeypatch.setattr(Path, "expanduser", refuse_home)
    with pytest.raises(InvalidSetting, match=r"^cache_dir: got '~/\.cache/sd35'; this user has no home directory\."):
        load_settings()


def refuse_home(path: Path) -> Path:
    raise RuntimeError(path)

"""The settings as flags of commands, and what a command receives."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from sd35.cli.main import COMMANDS, load_command
from sd35.cli.options import SettingFlags, with_settings
from sd35.settings import Settings
from sd35.settings.description import flag_of, secret_settings

RUNNER = CliRunner()


def commands() -> dict[str, TyperCommand | TyperGroup]:
    """Return every command by its full name, including those of groups."""
    found: dict[str, TyperCommand | TyperGroup] = {}
    for name in COMMANDS:
        found[name] = command = load_command(name)
        for child, each in getattr(command, "commands", {}).items():
            found[f"{name} {child}"] = each
    return found


def flags_of(command: TyperCommand | TyperGroup) -> set[str]:
    """Return the flags of a command."""
    return {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}


def test_the_flags_of_serve_are_all_settings_except_secrets_and_the_file():
    """Secrets have no flags, because every user of the machine can read the flags of a process."""
    public = {flag_of(name) for name in Settings.model_fields if name not in secret_settings()}
    assert flags_of(load_command("serve")) == {*public, "--config"}


def test_no_command_has_a_flag_for_a_secret():
    secrets = {flag_of(name) for name in secret_settings()}
    assert {name for name, command in commands().items() if flags_of(command) & secrets} == set()


def test_every_command_with_the_flag_of_a_setting_has_config_too():
    public = {flag_of(name) for name in Settings.model_fields}
    own = {"compile": {"--precision"}, "synth": {"--precision"}}  # the precision of a graph, and of weights
    for name, command in commands().items():
        if name.startswith("keys"):  # these are the limits of the key
            own[name] = {"--requests-per-minute", "--concurrency", "--pixels-per-hour"}
        uses_settings = bool(flags_of(command) & public - own.get(name, set()))
        assert uses_settings == ("--config" in flags_of(command)), name


def test_a_command_that_names_an_unknown_setting_cannot_be_imported():
    with pytest.raises(ValueError, match="'ports' is not in list"):
        with_settings("host", "ports")


def run(command: Callable[..., None], *arguments: str) -> None:
    """Run a function as a command in this process."""
    app = typer.Typer()
    app.command()(command)
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_a_command_receives_the_loaded_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Flags override the environment, which overrides the file."""
    file = tmp_path / "sd35.toml"
    file.write_text('host = "file"\nport = 1\nmax_jobs = 1\ncheckpoints = ["file"]\n')
    monkeypatch.setenv("SD35_PORT", "2")
    monkeypatch.setenv("SD35_HOST", "variable")
    received: list[object] = []

    @with_settings("host", "port", "checkpoints")
    def command(name: str, *, settings: Settings) -> None:
        received.extend((name, settings.host, settings.port, settings.max_jobs, settings.checkpoints))

    run(command, "me", "--port", "3", "--config", str(file))
    run(command, "me", "--config", str(file), "--checkpoint", "one", "--checkpoint", "two")
    assert received == ["me", "variable", 3, 1, ("file",), "me", "variable", 2, 1, ("one", "two")]


def test_a_command_with_the_parameter_flags_loads_the_settings_itself():
    """It knows the given flags, and can set values for the others."""
    received: list[object] = []

    @with_settings("host", "port", "log_prompts")
    def command(*, flags: SettingFlags) -> None:
        settings = flags.load({"port": "7", "host": "fallback"})
        received.extend((flags.given, settings.host, settings.port))

    run(command, "--host", "given", "--log-prompts")
    assert received == [{"host": "given", "log_prompts": True}, "given", 7]


@pytest.mark.skipif(sys.flags.optimize > 1, reason="help is in docstrings")
def test_the_help_of_a_flag_is_that_of_its_setting(monkeypatch: pytest.MonkeyPatch):
    """With the placeholder, the default, and the title of the group as the panel."""
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()

    @app.command()
    @with_settings("port", "vram", "model_aliases")
    def command(*, settings: Settings) -> None:
        del settings

    text = " ".join(RUNNER.invoke(app, ["--help"]).output.split())
    assert "─ Server ─" in text
    assert "--port PORT Port to listen on; 0 picks a free one. [default: 8000]" in text
    assert "--vram SIZE Memory of the CUDA device that the memory plan assumes, such as 12GiB." in text
    assert "[default: the free memory]" in text
    assert "[6ce0161689]]" in text

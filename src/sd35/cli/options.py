"""Options that several commands share: the settings as flags, `--json`, and sizes."""

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import typer

from sd35.errors import InvalidSetting
from sd35.settings import CONFIG_VARIABLE, Settings, load_settings
from sd35.settings.description import default_of, flag_of, group_of, metadata_of

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

# Settings of commands that open a checkpoint, and of commands that also compute with it.
CHECKPOINT = ("checkpoints", "weights", "registry", "base_checkpoint", "transformer")
PIPELINE = (
    *CHECKPOINT,
    *("backend", "precision", "device", "offload", "tiled_decode", "torch_compile"),
    *("vram", "ram", "threads", "max_pixels", "cache_dir"),
)

_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(help="TOML file with settings.", metavar="FILE", envvar=CONFIG_VARIABLE, show_default=False),
    ],
)


class SettingFlags(NamedTuple):
    """The flags of a command that were given: values by name of the setting, and the file of `--config`."""

    given: Mapping[str, Any]
    config: Path | None

    def load(self, fallback: Mapping[str, str] | None = None) -> Settings:
        """Return the settings. `fallback` has values of flags that were not given. Raises InvalidSetting."""
        settings = load_settings({**(fallback or {}), **self.given}, self.config)
        if settings.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read on import by Diffusers, Transformers and huggingface_hub
        return settings


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the flags of settings, and `--config`, to a command.

    The command receives the loaded settings in its parameter `settings`. A command with a parameter `flags` receives
    `SettingFlags` instead, and loads the settings itself.
    """
    flags = [_flag(name) for name in sorted(names, key=list(Settings.model_fields).index)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = dict(inspect.signature(command).parameters)
        loads = parameters.pop("settings", None) is not None
        parameters.pop("flags", None)

        @functools.wraps(command)
        def run(config: Path | None, **arguments: Any) -> None:  # noqa: ANN401  of the command's own types
            if "checkpoints" in names:
                _log_to_stderr()
            given = {name: arguments.pop(name) for name in names}
            values = SettingFlags({name: value for name, value in given.items() if value is not None}, config)
            if loads:
                command(settings=values.load(), **arguments)
            else:
                command(flags=values, **arguments)

        # Typer reads the options from the signature.
        run.__signature__ = inspect.Signature([*parameters.values(), *flags, _CONFIG])  # type: ignore[attr-defined]
        return run

    return decorate


def _log_to_stderr() -> None:
    """Send logs to stderr, such as which model `auto` chooses. By default, structlog prints to stdout."""
    from sd35.telemetry.logs import configure_logs

    configure_logs("console", library_level=logging.WARNING)


def parse_size(text: str) -> tuple[int, int]:
    """Return the width and height, in pixels, from text such as `1024x768`. Raises InvalidSetting for `--size`."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidSetting(f"--size: got {text!r}; allowed: WIDTHxHEIGHT in pixels, such as 1024x1024")
    return int(width), int(height)


def _flag(name: str) -> inspect.Parameter:
    """Return a setting as an option. It takes any text: `load_settings` validates it like values of other sources."""
    field, metadata = Settings.model_fields[name], metadata_of(name)
    kind: Any = bool if field.annotation is bool else list[str] if metadata.is_repeated else str
    text = f"{(field.description or '').replace('`', '')} [default: {default_of(name)}]".replace("[", r"\[")
    option = typer.Option(
        flag_of(name), help=text, metavar=metadata.metavar, rich_help_panel=group_of(name), show_default=False
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

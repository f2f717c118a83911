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
    """The settings that the user gave as flags.

    Attributes:
        given: Values by name of the setting. Settings without a flag on the command line are missing.
        config: The file of `--config`, if any.
    """

    given: Mapping[str, Any]
    config: Path | None

    def load(self, defaults: Mapping[str, str] | None = None) -> Settings:
        """Return the settings from flags, `defaults`, environment variables and the file, in order of precedence.

        Raises InvalidSetting if a value is invalid.
        """
        settings = load_settings({**(defaults or {}), **self.given}, self.config)
        if settings.offline:
            # Diffusers, Transformers and huggingface_hub read this variable when they are imported later.
            os.environ["HF_HUB_OFFLINE"] = "1"
        return settings


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the flags of settings, and `--config`, to a command.

    The command receives the loaded settings in its parameter `settings`. A command with a parameter `flags` receives
    `SettingFlags` instead, and loads the settings itself.
    """
    flags = [_flag(name) for name in sorted(names, key=list(Settings.model_fields).index)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        """Return a function with the command's parameters and the flags, for Typer. It calls the command."""
        parameters = dict(inspect.signature(command).parameters)
        takes_settings = parameters.pop("settings", None) is not None
        parameters.pop("flags", None)

        @functools.wraps(command)
        def run(config: Path | None, **arguments: Any) -> None:  # noqa: ANN401  the types of the command's parameters
            """Separate the flags of settings from the command's own arguments, and run the command with both."""
            if "checkpoints" in names:  # opening checkpoints may log
                _log_to_stderr()
            given = {name: arguments.pop(name) for name in names}
            values = SettingFlags({name: value for name, value in given.items() if value is not None}, config)
            if takes_settings:
                command(settings=values.load(), **arguments)
            else:
                command(flags=values, **arguments)

        # Typer reads the options from the signature.
        run.__signature__ = inspect.Signature([*parameters.values(), *flags, _CONFIG])  # type: ignore[attr-defined]
        return run

    return decorate


def _log_to_stderr() -> None:
    """Send logs to stderr, such as the model that `auto` chooses. By default, structlog prints to stdout."""
    from sd35.telemetry.logs import configure_logs

    configure_logs("console", library_level=logging.WARNING)


def parse_size(text: str) -> tuple[int, int]:
    """Return the width and height, in pixels, of `--size`, such as `1024x768`. Raises InvalidSetting for other text."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidSetting(f"--size: got {text!r}; allowed: WIDTHxHEIGHT in pixels, such as 1024x768")
    return int(width), int(height)


def _flag(name: str) -> inspect.Parameter:
    """Return the parameter of a command for a setting's flag.

    The flag takes any text, because `load_settings` validates the values of flags, variables and files in the same way.
    """
    field, metadata = Settings.model_fields[name], metadata_of(name)
    kind: Any = bool if field.annotation is bool else list[str] if metadata.is_repeated else str
    text = f"{(field.description or '').replace('`', '')} [default: {default_of(name)}]".replace("[", r"\[")
    option = typer.Option(
        flag_of(name), help=text, metavar=metadata.metavar, rich_help_panel=group_of(name), show_default=False
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

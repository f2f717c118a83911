"""From flags, environment and file to the settings in force, and what is wrong with them in words."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr, ValidationError

from sd35.errors import InvalidSetting
from sd35.parsing import read_toml
from sd35.settings.fields import CONFIG_VARIABLE, PREFIX, Settings


def load_settings(flags: Mapping[str, object] | None = None, config: Path | None = None) -> Settings:
    """The settings in force. `flags` that are None were not given; `config` defaults to `SD35_CONFIG`, if that is set.

    Raises InvalidSetting, naming the setting and where it came from.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    path = config or (Path(variable) if (variable := os.environ.get(CONFIG_VARIABLE)) else None)
    file = _read_file(path) if path else {}
    below_environment = {name: value for name, value in file.items() if not os.environ.get(PREFIX + name.upper())}
    try:
        return Settings(**{**below_environment, **given})
    except ValidationError as error:
        raise InvalidSetting("; ".join(_explain(dict(detail), given, path) for detail in error.errors())) from error


def unknown_variables() -> list[str]:
    """The `SD35_...` environment variables that nothing reads: typing errors, or links that Kubernetes sets."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def settings_table() -> str:
    """The table of docs/settings.md, in Markdown."""
    lines = ["| Variable | Key in the file | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        default = extra["default"] if isinstance(extra, dict) else field.default
        shown = ", ".join(default) if isinstance(default, tuple) else default
        lines.append(f"| `{PREFIX}{name.upper()}` | `{name}` | `{shown}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = read_toml(path)
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"{path} cannot be read as TOML: {error}") from error
    if unknown := sorted(content.keys() - Settings.model_fields.keys()):
        known = ", ".join(sorted(Settings.model_fields))
        raise InvalidSetting(f"{path}: unknown key {', '.join(map(repr, unknown))}; known: {known}")
    return content


def _explain(detail: dict[str, Any], given: Mapping[str, object], path: Path | None) -> str:
    name = str(detail["loc"][0])
    if name in given:
        source = flag_of(name)
    elif os.environ.get(PREFIX + name.upper()):
        source = PREFIX + name.upper()
    else:
        source = f"{path}: {name}"
    if detail["type"].startswith("byte_size"):
        return f"{source}: got {detail['input']!r}; allowed: a number of bytes, or one with a unit, as 12GiB or 800MB"
    got = "a secret" if name in {"database", *secret_settings()} else repr(detail["input"])
    words = detail["msg"].removeprefix("Value error, ")
    return f"{source}: got {got}; {words[0].lower()}{words[1:]}"


def secret_settings() -> set[str]:
    """The settings that no message shows, and that are no flags: everyone on a machine may read those."""
    return {name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)}


def flag_of(name: str) -> str:
    """The flag that sets a setting: `--max-pixels`; `--checkpoint` sets `checkpoints`, one each time."""
    return "--checkpoint" if name == "checkpoints" else "--" + name.replace("_", "-")

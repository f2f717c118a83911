"""Load the settings from flags, environment and file, and explain invalid ones."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sd35.errors import InvalidSetting
from sd35.parsing import read_toml
from sd35.settings.description import flag_of, secret_settings
from sd35.settings.settings import CONFIG_VARIABLE, PREFIX, Settings


def load_settings(
    arguments: Mapping[str, object] | None = None,
    config: Path | None = None,
    *,
    argument_name: Callable[[str], str] = flag_of,
) -> Settings:
    """Return the settings: arguments override environment variables, which override the file, then come defaults.

    Args:
        arguments: Values by the setting's name. None means that an argument was not given.
        config: The TOML file; by default, the one that `SD35_CONFIG` names, if set.
        argument_name: The name of a setting's argument in errors; by default, its flag.

    Raises:
        InvalidSetting: A value is invalid. The error names the argument, the variable or the file's key.
    """
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    path = config or (Path(variable) if (variable := os.environ.get(CONFIG_VARIABLE)) else None)
    file = _read_file(path) if path else {}
    not_in_environment = {name: value for name, value in file.items() if not os.environ.get(PREFIX + name.upper())}
    try:
        return Settings(**{**not_in_environment, **given})
    except ValidationError as error:
        sources = {name: argument_name(name) for name in given}
        raise InvalidSetting("; ".join(_explain(dict(detail), sources, path) for detail in error.errors())) from error


def unknown_variables() -> list[str]:
    """Return the `SD35_...` environment variables that are no settings: typos, or links that Kubernetes sets."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = read_toml(path)
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"{path} cannot be read as TOML: {error}") from error
    if unknown := sorted(content.keys() - Settings.model_fields.keys()):
        known = ", ".join(sorted(Settings.model_fields))
        raise InvalidSetting(f"{path}: unknown key {', '.join(map(repr, unknown))}; known: {known}")
    return content


def _explain(detail: dict[str, Any], sources: Mapping[str, str], path: Path | None) -> str:
    """Return one sentence for an error of Pydantic: the source of the value, the value, and what is allowed."""
    name = str(detail["loc"][0])
    if name in sources:
        source = sources[name]
    elif os.environ.get(PREFIX + name.upper()):
        source = PREFIX + name.upper()
    else:
        source = f"{path}: {name}"
    if detail["type"].startswith("byte_size"):
        return f"{source}: got {detail['input']!r}; allowed: a number of bytes, or one with a unit, as 12GiB or 800MB"
    got = "a secret" if name in {"database", *secret_settings()} else repr(detail["input"])
    message = detail["msg"].removeprefix("Value error, ")
    return f"{source}: got {got}; {message[0].lower()}{message[1:]}"

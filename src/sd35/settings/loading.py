"""Load the settings from flags, environment variables and a file, and explain invalid values."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sd35.errors import InvalidSetting
from sd35.parsing import read_toml
from sd35.settings.description import flag_of, secret_settings
from sd35.settings.settings import CONFIG_VARIABLE, PREFIX, Settings

# Descriptions of allowed values, by the prefix of the type of Pydantic's error, with fields of the error in braces.
_ALLOWED = {
    "byte_size": "a number of bytes, or one with a unit, such as 12GiB or 800MB",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "literal_error": "{expected}",
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "{le:g} or less",
    "string_too_short": "at least {min_length} characters",
    "too_short": "at least {items}",  # a list, or a secret
}


def load_settings(
    arguments: Mapping[str, object] | None = None,
    config: Path | None = None,
    *,
    argument_name: Callable[[str], str] = flag_of,
) -> Settings:
    """Return the settings, from arguments, environment variables, a file and defaults, in order of precedence.

    Args:
        arguments: Values by name of the setting. None means that the argument was not given.
        config: The TOML file. The default is the file that the variable `SD35_CONFIG` names, if set.
        argument_name: Returns the name of a setting's argument for errors. The default is the setting's flag.

    Raises:
        InvalidSetting: A value is invalid. The error names the argument, the variable, or the key in the file.
    """
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    variable = os.environ.get(CONFIG_VARIABLE)
    path = config or (Path(variable) if variable else None)
    file = _read_file(path) if path else {}
    # Pydantic prefers arguments over variables, so values of the file are passed only if there is no variable.
    not_in_environment = {name: value for name, value in file.items() if not os.environ.get(PREFIX + name.upper())}
    try:
        return Settings(**{**not_in_environment, **given})
    except ValidationError as error:
        sources = {name: argument_name(name) for name in given}
        raise InvalidSetting("; ".join(_explain(dict(detail), sources, path) for detail in error.errors())) from error


def unknown_variables() -> list[str]:
    """Return the names of `SD35_...` environment variables that are not settings.

    They may be typos, or come from Kubernetes, which sets variables for a Service named `sd35`.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def _read_file(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file by name. Raises InvalidSetting if it is not readable or has unknown keys."""
    where = f"--config (SD35_CONFIG): {path}"
    try:
        content = read_toml(path)
    except OSError as error:
        raise InvalidSetting(f"{where} cannot be read: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise InvalidSetting(f"{where} is not valid TOML: {error}; correct the file") from error
    if unknown := sorted(content.keys() - Settings.model_fields.keys()):
        known = ", ".join(sorted(Settings.model_fields))
        keys = "key" if len(unknown) == 1 else "keys"
        raise InvalidSetting(f"{path}: unknown {keys} {', '.join(map(repr, unknown))}; allowed: {known}")
    return content


def _explain(detail: dict[str, Any], sources: Mapping[str, str], path: Path | None) -> str:
    """Return a message for an error of Pydantic: the source of the value, the value, and what is allowed.

    Args:
        detail: The error, as `ValidationError.errors` describes it.
        sources: The names of the given arguments, by setting.
        path: The file of settings, if any.
    """
    name = str(detail["loc"][0])
    value = str(detail["input"]) if isinstance(detail["input"], Path) else detail["input"]
    variable = PREFIX + name.upper()
    in_file = f"{path}: {name}" if path else name  # without a file, a default is invalid: there is no home directory
    source = sources.get(name) or (variable if os.environ.get(variable) else in_file)
    if detail["type"] == "extra_forbidden":
        return f"{source}: there is no such setting; allowed: {', '.join(sorted(Settings.model_fields))}"
    # `database` may contain a password.
    got = "a secret" if name in {"database", *secret_settings()} else repr(value)
    return f"{source}: got {got}; {_allowed(detail)}"


def _allowed(detail: dict[str, Any]) -> str:
    """Return the end of a message, which says what is allowed. `detail` is an error of Pydantic, as in `_explain`."""
    template = next((text for kind, text in _ALLOWED.items() if detail["type"].startswith(kind)), None)
    if template:
        context = detail.get("ctx", {})
        length = context.get("min_length")  # of a list of checkpoints, or of a secret
        items = "one item" if length == 1 else f"{length} characters"
        text = template.format_map({**context, "items": items})
        return f"allowed: {text}".replace("'", "")  # Pydantic quotes each item of a list
    # A validator of Settings raised a ValueError with a message for users.
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"

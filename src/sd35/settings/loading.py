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

# What is allowed, by the beginning of the type of Pydantic's error.
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
        arguments: Values by name of the setting. None stands for an argument that was not given.
        config: The TOML file. The default is the file in the variable `SD35_CONFIG`, if set.
        argument_name: Returns how errors call a setting's argument. The default is its flag.

    Raises:
        InvalidSetting: A value is invalid. The error names the argument, the variable, or the key in the file.
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
    """Return the `SD35_...` environment variables that are not settings: typos, or service links of Kubernetes."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = read_toml(path)
    except OSError as error:
        raise InvalidSetting(f"--config (SD35_CONFIG): {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidSetting(f"--config (SD35_CONFIG): {path} is not valid TOML: {error}") from error
    if unknown := sorted(content.keys() - Settings.model_fields.keys()):
        known = ", ".join(sorted(Settings.model_fields))
        keys = "key" if len(unknown) == 1 else "keys"
        raise InvalidSetting(f"{path}: unknown {keys} {', '.join(map(repr, unknown))}; allowed: {known}")
    return content


def _explain(detail: dict[str, Any], sources: Mapping[str, str], path: Path | None) -> str:
    """Return one sentence for an error of Pydantic: where the value comes from, the value, and what is allowed."""
    name = str(detail["loc"][0])
    if name in sources:
        source = sources[name]
    elif os.environ.get(PREFIX + name.upper()):
        source = PREFIX + name.upper()
    else:
        source = f"{path}: {name}"
    got = "a secret" if name in {"database", *secret_settings()} else repr(detail["input"])
    return f"{source}: got {got}; {_allowed(detail)}"


def _allowed(detail: dict[str, Any]) -> str:
    """Return what is allowed instead of the invalid value."""
    if allowed := next((text for kind, text in _ALLOWED.items() if detail["type"].startswith(kind)), None):
        context = detail.get("ctx", {})
        items = "one item" if context.get("min_length") == 1 else f"{context.get('min_length')} characters"
        text = allowed.format_map({**context, "items": items})
        return f"allowed: {text}".replace("'", "")  # Pydantic quotes each item of a list
    if detail["type"] == "extra_forbidden":
        return f"there is no such setting; allowed: {', '.join(sorted(Settings.model_fields))}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"

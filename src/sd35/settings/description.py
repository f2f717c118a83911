"""Descriptions of the settings: their flags, groups and defaults."""

from typing import get_args

from pydantic import BaseModel, SecretStr

from sd35.settings.flag import Flag
from sd35.settings.settings import Settings


def metadata_of(name: str) -> Flag:
    """Return the metadata of a setting's flag. The metadata of an unknown name is empty."""
    field = Settings.model_fields.get(name)
    metadata = field.metadata if field else ()
    return next((item for item in metadata if isinstance(item, Flag)), Flag())


def flag_of(name: str) -> str:
    """Return the flag of a setting, such as `--max-pixels`."""
    return metadata_of(name).name or "--" + name.replace("_", "-")


def group_of(name: str) -> str:
    """Return the title of the group that a setting belongs to."""
    groups = (base for base in Settings.__bases__ if issubclass(base, BaseModel))
    return next(str(group.model_config["title"]) for group in groups if name in group.model_fields)


def default_of(name: str) -> str:
    """Return the default of a setting as text. Items of a list are separated by commas."""
    default = metadata_of(name).default or Settings.model_fields[name].default
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return str(default).lower()  # as in TOML
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def secret_settings() -> set[str]:
    """Return the names of the secret settings. Messages never show their values.

    They have no flags, because other users of the machine could read the value of a flag.
    """
    return {name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)}

"""The settings as flags and as the table of docs/settings.md."""

from typing import get_args

from pydantic import BaseModel, SecretStr

from sd35.settings.flag import Flag
from sd35.settings.settings import PREFIX, Settings


def metadata_of(name: str) -> Flag:
    """Return the flag's metadata of a setting; the default metadata for a name that is no setting."""
    field = Settings.model_fields.get(name)
    return next((each for each in (field.metadata if field else ()) if isinstance(each, Flag)), Flag())


def flag_of(name: str) -> str:
    """Return the flag of a setting: `--max-pixels`; `--checkpoint` for `checkpoints`."""
    return metadata_of(name).name or "--" + name.replace("_", "-")


def group_of(name: str) -> str:
    """Return the title of the group of settings that declares a setting."""
    groups = (base for base in Settings.__bases__ if issubclass(base, BaseModel))
    return next(str(group.model_config["title"]) for group in groups if name in group.model_fields)


def default_of(name: str) -> str:
    """Return the default of a setting in words. The items of a list are separated by commas."""
    default = metadata_of(name).default or Settings.model_fields[name].default
    if default is None or default == ():
        return "none"
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def secret_settings() -> set[str]:
    """Return the settings that appear in no message and have no flag, since other users can read a process's flags."""
    return {name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)}


def settings_table() -> str:
    """Return the Markdown table of docs/settings.md."""
    lines = ["| Variable | Key in the file | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `{PREFIX}{name.upper()}` | `{name}` | `{default_of(name)}` | {field.description} |")
    return "\n".join(lines) + "\n"

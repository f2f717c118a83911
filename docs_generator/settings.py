"""Generate docs/reference/settings.md from the class `Settings`."""

from pydantic import BaseModel
from pydantic_settings import BaseSettings

from docs_generator.markdown import code, document, table
from sd35.settings.description import default_of, flag_of, metadata_of, secret_settings
from sd35.settings.settings import PREFIX, Settings

_INTRODUCTION = """
Each setting has a key in the settings file, an environment variable and a flag of `sd35 serve`. The first column of the
tables lists these three names. A flag overrides the variable, the variable overrides the file, and the file overrides
the default.

The file is TOML. Name it with `--config FILE` or `SD35_CONFIG`. A key that does not exist is an error:

```toml
host = "0.0.0.0"
checkpoints = ["sd3.5-medium"]
max_pixels = 1048576
```

The flag of a setting that is `true` or `false`, such as `--log-prompts`, sets it to `true`. To set `false`, use the
variable or the file. Only secrets have no flag, because every user of a machine can read the flags of its processes.
[Command line](cli.md) lists the flags of the other commands, and the [glossary](glossary.md) explains terms such as
checkpoint, row and offload.
"""
_KUBERNETES = """
On Kubernetes, a Service named `sd35` makes the cluster set `SD35_PORT=tcp://...`, which is not a port number. Set
`enableServiceLinks: false` in the pod, or give the Service another name.
"""


def page() -> str:
    """Return the page in Markdown. The base classes of `Settings` are its groups, from last to first."""
    groups = [base for base in reversed(Settings.__bases__) if base is not BaseSettings and issubclass(base, BaseModel)]
    sections = [
        f"## {group.model_config['title']}\n\n{group.__doc__}\n\n{_table(list(group.model_fields))}" for group in groups
    ]
    return document("Settings", "src/sd35/settings", _INTRODUCTION, *sections, "## Kubernetes", _KUBERNETES)


def _table(names: list[str]) -> str:
    return table(
        ["Setting", "Default", "Meaning"],
        ([_names(name), _default(name), Settings.model_fields[name].description or ""] for name in names),
    )


def _names(name: str) -> str:
    """Return a cell with the key, the environment variable and the flag of a setting. Secrets have no flag."""
    flags = [] if name in secret_settings() else [flag_of(name)]
    return "<br>".join(map(code, [name, PREFIX + name.upper(), *flags]))


def _default(name: str) -> str:
    """Return the default of a setting: as code, unless it is described in words."""
    default = default_of(name)
    is_in_words = default == "none" or metadata_of(name).default is not None
    return default if is_in_words else ", ".join(map(code, default.split(", ")))

"""The settings: flags over environment variables (`SD35_...`) over a TOML file over defaults."""

from sd35.settings.description import (
    default_of,
    flag_of,
    group_of,
    metadata_of,
    secret_settings,
    settings_table,
)
from sd35.settings.groups.compute import Precision
from sd35.settings.loading import load_settings, unknown_variables
from sd35.settings.settings import CONFIG_VARIABLE, PREFIX, Settings

__all__ = [
    "CONFIG_VARIABLE",
    "PREFIX",
    "Precision",
    "Settings",
    "default_of",
    "flag_of",
    "group_of",
    "load_settings",
    "metadata_of",
    "secret_settings",
    "settings_table",
    "unknown_variables",
]

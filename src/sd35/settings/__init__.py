"""The settings: flags over environment (`SD35_...`) over a TOML file over defaults. They make docs/settings.md."""

from sd35.settings.fields import CONFIG_VARIABLE, PREFIX, Precision, Settings
from sd35.settings.loading import flag_of, load_settings, secret_settings, settings_table, unknown_variables

__all__ = [
    "CONFIG_VARIABLE",
    "PREFIX",
    "Precision",
    "Settings",
    "flag_of",
    "load_settings",
    "secret_settings",
    "settings_table",
    "unknown_variables",
]

"""The settings, from flags, environment variables (`SD35_...`), a TOML file and defaults, in order of precedence."""

from sd35.settings.groups.compute import Precision
from sd35.settings.loading import load_settings, unknown_variables
from sd35.settings.settings import CONFIG_VARIABLE, PREFIX, Settings

__all__ = ["CONFIG_VARIABLE", "PREFIX", "Precision", "Settings", "load_settings", "unknown_variables"]

"""The class `Settings`, which combines the groups of settings."""

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sd35.settings.groups.access import AccessSettings
from sd35.settings.groups.compute import ComputeSettings
from sd35.settings.groups.limits import LimitSettings
from sd35.settings.groups.models import ModelSettings
from sd35.settings.groups.server import ServerSettings
from sd35.settings.groups.storage import StorageSettings
from sd35.settings.groups.webhooks import WebhookSettings

PREFIX = "SD35_"
CONFIG_VARIABLE = PREFIX + "CONFIG"


class Settings(  # Pydantic orders the fields from the last base class to the first
    WebhookSettings,
    StorageSettings,
    ComputeSettings,
    ModelSettings,
    LimitSettings,
    AccessSettings,
    ServerSettings,
    BaseSettings,
):
    """All settings. Each field is an environment variable `SD35_<NAME>` and a key of the file.

    All fields but secrets also have a flag. Create instances with `load_settings`.
    """

    model_config = SettingsConfigDict(
        title="Settings", env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, defer_build=False
    )

    @property
    def fallback_settings(self) -> "Settings | None":
        """The same settings with the fallback as their backend, or None without a fallback."""
        if self.fallback is None:
            return None
        backend, _, precision = self.fallback.partition("/")
        return self.model_copy(update={"backend": backend, "precision": precision or "auto", "fallback": None})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments and environment variables, but no .env file and no directory of secrets."""
        return init_settings, env_settings

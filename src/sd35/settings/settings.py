"""The class `Settings`, composed of one group per subject."""

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


class Settings(  # Pydantic lists the fields of the last base first
    WebhookSettings,
    StorageSettings,
    ComputeSettings,
    ModelSettings,
    LimitSettings,
    AccessSettings,
    ServerSettings,
    BaseSettings,
):
    """All settings. Each field is a variable `SD35_<NAME>`, a key of the file, and a flag. Use `load_settings`."""

    model_config = SettingsConfigDict(
        title="Settings", env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, defer_build=False
    )

    @property
    def fallback_settings(self) -> "Settings | None":
        """The same settings with the fallback as the backend, or None without a fallback."""
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
        """Read arguments, then environment variables; neither a .env file nor a directory of secrets."""
        return init_settings, env_settings

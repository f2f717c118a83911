"""The flags that several commands share, and from flags to settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from sd35.settings import Settings, flag_of, load_settings

_SERVICE, _ACCESS, _COMPUTE = "Service", "Who may use it", "What computes"
EPILOG = "Every setting is also an environment variable (SD35_...) or a key of a TOML file: see docs/settings.md."


def _setting(name: str, panel: str, **more: Any) -> Any:  # noqa: ANN401  typer's own type is not public
    """A flag that sets a setting; its help is the setting's own."""
    field = Settings.model_fields[name]
    extra = field.json_schema_extra
    default = extra["default"] if isinstance(extra, dict) else field.default
    shown = ",".join(default) if isinstance(default, tuple) else default
    text = f"{(field.description or '').replace('`', '')} [default: {shown}]"
    return typer.Option(flag_of(name), help=text.replace("[", r"\["), rich_help_panel=panel, show_default=False, **more)


Host: TypeAlias = Annotated[str | None, _setting("host", _SERVICE)]
Port: TypeAlias = Annotated[str | None, _setting("port", _SERVICE, metavar="PORT")]
Ui: TypeAlias = Annotated[str | None, _setting("ui", _SERVICE, metavar="WHEN")]
RootPath: TypeAlias = Annotated[str | None, _setting("root_path", _ACCESS, metavar="PATH")]
TrustedProxies: TypeAlias = Annotated[str | None, _setting("trusted_proxies", _ACCESS, metavar="NETWORKS")]
AllowedHosts: TypeAlias = Annotated[str | None, _setting("allowed_hosts", _ACCESS, metavar="NAMES")]
CorsOrigins: TypeAlias = Annotated[str | None, _setting("cors_origins", _ACCESS, metavar="ORIGINS")]
CorsPrivateNetwork: TypeAlias = Annotated[bool | None, _setting("cors_private_network", _ACCESS)]
BodyTimeout: TypeAlias = Annotated[str | None, _setting("body_timeout_s", _ACCESS, metavar="SECONDS")]
RequestsPerMinute: TypeAlias = Annotated[str | None, _setting("requests_per_minute", _ACCESS, metavar="REQUESTS")]
Concurrency: TypeAlias = Annotated[str | None, _setting("concurrency", _ACCESS, metavar="PICTURES")]
PixelsPerHour: TypeAlias = Annotated[str | None, _setting("pixels_per_hour", _ACCESS, metavar="PIXELS")]
MetricsNeedAdmin: TypeAlias = Annotated[bool | None, _setting("metrics_need_admin", _ACCESS)]
MaxPixels: TypeAlias = Annotated[str | None, _setting("max_pixels", _SERVICE, metavar="PIXELS")]
MaxInFlight: TypeAlias = Annotated[str | None, _setting("max_in_flight", _SERVICE, metavar="PICTURES")]
MaxWait: TypeAlias = Annotated[str | None, _setting("max_wait_s", _SERVICE, metavar="SECONDS")]
MaxBatchRows: TypeAlias = Annotated[str | None, _setting("max_batch_rows", _COMPUTE, metavar="ROWS")]
Reproducible: TypeAlias = Annotated[bool | None, _setting("reproducible", _COMPUTE)]
MemoryMb: TypeAlias = Annotated[str | None, _setting("memory_mb", _COMPUTE, metavar="MB")]
EmbeddingCacheMb: TypeAlias = Annotated[str | None, _setting("embedding_cache_mb", _COMPUTE, metavar="MB")]
ImageStore: TypeAlias = Annotated[str | None, _setting("image_store", _SERVICE, metavar="DIRECTORY|URL")]
RetentionDays: TypeAlias = Annotated[str | None, _setting("retention_days", _SERVICE, metavar="DAYS")]
RetentionGb: TypeAlias = Annotated[str | None, _setting("retention_gb", _SERVICE, metavar="GB")]
PublicUrl: TypeAlias = Annotated[str | None, _setting("public_url", _SERVICE, metavar="URL")]
LogFormat: TypeAlias = Annotated[str | None, _setting("log_format", _SERVICE, metavar="FORMAT")]
LogPrompts: TypeAlias = Annotated[bool | None, _setting("log_prompts", _SERVICE)]
KeepMetadata: TypeAlias = Annotated[bool | None, _setting("keep_metadata", _SERVICE)]
ContentFilter: TypeAlias = Annotated[str | None, _setting("content_filter", _SERVICE, metavar="MODULE:NAME")]
RedirectImages: TypeAlias = Annotated[bool | None, _setting("redirect_images", _SERVICE)]
MaxJobs: TypeAlias = Annotated[str | None, _setting("max_jobs", _SERVICE, metavar="JOBS")]
ShutdownGrace: TypeAlias = Annotated[str | None, _setting("shutdown_grace_s", _SERVICE, metavar="SECONDS")]
CacheDir: TypeAlias = Annotated[str | None, _setting("cache_dir", _SERVICE, metavar="DIRECTORY")]
DataDir: TypeAlias = Annotated[str | None, _setting("data_dir", _SERVICE, metavar="DIRECTORY")]
Database: TypeAlias = Annotated[str | None, _setting("database", _SERVICE, metavar="FILE|URL")]
WebhookAllowPrivate: TypeAlias = Annotated[bool | None, _setting("webhook_allow_private", _SERVICE)]
Checkpoints: TypeAlias = Annotated[list[str] | None, _setting("checkpoints", _COMPUTE, metavar="NAME|PATH")]
Weights: TypeAlias = Annotated[list[str] | None, _setting("weights", _COMPUTE, metavar="FILE")]
Variants: TypeAlias = Annotated[str | None, _setting("registry", _COMPUTE, metavar="FILE")]
BaseCheckpoint: TypeAlias = Annotated[str | None, _setting("base_checkpoint", _COMPUTE, metavar="NAME|DIRECTORY")]
Transformer: TypeAlias = Annotated[str | None, _setting("transformer", _COMPUTE, metavar="FORMAT")]
ModelAliases: TypeAlias = Annotated[str | None, _setting("model_aliases", _SERVICE, metavar="NAMES")]
StrictDialects: TypeAlias = Annotated[bool | None, _setting("strict_dialects", _SERVICE)]
Offline: TypeAlias = Annotated[bool | None, _setting("offline", _SERVICE)]
Backend: TypeAlias = Annotated[str | None, _setting("backend", _COMPUTE, metavar="NAME")]
Precision: TypeAlias = Annotated[str | None, _setting("precision", _COMPUTE, metavar="FORMAT")]
Fallback: TypeAlias = Annotated[str | None, _setting("fallback", _COMPUTE, metavar="BACKEND")]
Device: TypeAlias = Annotated[str | None, _setting("device", _COMPUTE, metavar="DEVICE")]
Offload: TypeAlias = Annotated[str | None, _setting("offload", _COMPUTE, metavar="HOW")]
TiledDecode: TypeAlias = Annotated[str | None, _setting("tiled_decode", _COMPUTE, metavar="WHEN")]
TorchCompile: TypeAlias = Annotated[bool | None, _setting("torch_compile", _COMPUTE)]
Vram: TypeAlias = Annotated[str | None, _setting("vram", _COMPUTE, metavar="SIZE")]
Ram: TypeAlias = Annotated[str | None, _setting("ram", _COMPUTE, metavar="SIZE")]
Threads: TypeAlias = Annotated[str | None, _setting("threads", _COMPUTE, metavar="COUNT")]
Config: TypeAlias = Annotated[
    Path | None, typer.Option(help="TOML file of settings.", envvar="SD35_CONFIG", show_default=False)
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def settings_of(arguments: Mapping[str, Any], otherwise: Mapping[str, str] | None = None) -> Settings:
    """The settings in force for a command's arguments. `otherwise` stands for flags that were not given.

    Raises InvalidSetting.
    """
    named = {"checkpoints" if name == "checkpoint" else name: value for name, value in arguments.items()}
    flags = {name: value for name, value in named.items() if name in Settings.model_fields and value is not None}
    settings = load_settings({**(otherwise or {}), **flags}, named.get("config"))
    if settings.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for Diffusers, Transformers and the hub's library, which read it on import
    return settings


def print_version(asked: bool) -> None:
    """Print the version and end, where that was asked."""
    if asked:
        from importlib.metadata import version

        print(version("sd35-fp8-mirror"))
        raise typer.Exit

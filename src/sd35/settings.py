"""The settings: flags over environment (`SD35_...`) over a TOML file over defaults. They make docs/settings.md."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from sd35.errors import InvalidSetting

PREFIX = "SD35_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
_SECRETS = ("database", "webhook_secret")  # whose values no error shows


def _home(variable: str, otherwise: str) -> Path:
    """The XDG base directory of a kind, with this project's name."""
    return Path(os.environ.get(variable) or Path("~") / otherwise) / "sd35"


class Settings(BaseSettings):
    """What can be set. Each field is `SD35_<NAME>`, a key of the file, and a flag. Use `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` for all of the machine's.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    checkpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        ("sd35-mini",),
        min_length=1,
        description="Checkpoints to serve: names that `sd35 models` lists, directories in the Diffusers layout"
        " or of NVIDIA's ONNX graphs, Stability's single files, or `auto`: the best of SD3.5 Large and Medium that"
        " memory and the weights, or the token, at hand allow. Several are separated by commas (in the file a list, the"
        " flag `--checkpoint` repeated); the first is the default.",
    )
    weights: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Safetensors files to read weights from instead of the checkpoint's own: single files, CLIPs,"
        " T5s; also FP8, plain or scaled. Several are separated by commas (in the file a list, the flag `--weights`"
        " repeated).",
        json_schema_extra={"default": "none"},
    )
    variants: Path | None = Field(
        None,
        description="TOML file of further checkpoints by name, of the form of `checkpoints/variants.toml`.",
        json_schema_extra={"default": "none"},
    )
    companion: str | None = Field(
        None,
        description="Where a checkpoint without tokenizers and configurations has them from: a name that `sd35 models`"
        " lists, or a directory in the Diffusers layout, of the same model.",
        json_schema_extra={"default": "none"},
    )
    transformer: Literal["auto", "bf16", "fp8"] = Field(
        "auto",
        description="Of NVIDIA's ONNX graphs, the transformer to read; `auto`: the one on disk, `bf16` where both are.",
    )
    offline: bool = Field(default=False, description="Never use the network: fetch nothing, ask the hub nothing.")
    backend: str = Field(
        "onnx", description="What computes: `onnx` (no PyTorch), `diffusers`, `tensorrt`. See `sd35 doctor`."
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Number format to compute in; `auto` is the backend's best for the device."
    )
    device: str = Field("auto", description="Device to compute on: `auto`, `cpu`, `cuda`, `cuda:1`, ...")
    offload: Literal["auto", "none", "encoders", "model", "sequential"] = Field(
        "auto",
        description="Networks that are not on the device all the time: `none`, the text `encoders`, each `model`"
        " (part), or layer by layer, `sequential`; `auto` is the fastest that fits: see `sd35 plan`.",
    )
    tiled_decode: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Decode large pictures in tiles, for less memory and slightly other pixels; `auto` where needed.",
    )
    vram: ByteSize | None = Field(
        None,
        description="Memory of the CUDA device to plan with, as `12GiB`.",
        json_schema_extra={"default": "what is free"},
    )
    ram: ByteSize | None = Field(
        None,
        description="Memory of the host to plan with, as `24GiB`.",
        json_schema_extra={"default": "what is free"},
    )
    threads: int = Field(0, ge=0, description="Processor threads for computing; 0 takes as many as there are cores.")
    max_pixels: int = Field(
        2 * 1024 * 1024, ge=64 * 64, description="Most pixels (width x height) a request may ask for."
    )
    max_pictures: int = Field(
        64, ge=1, description="Most pictures accepted and not ended; further ones are refused with 503."
    )
    max_wait_s: float = Field(
        600, gt=0, description="Longest wait, in estimated seconds, that a picture is accepted for; else 503."
    )
    max_batch_rows: int = Field(
        8, ge=1, description="Most transformer rows in a step: a picture is one, or two where its guidance is above 1."
    )
    reproducible: bool = Field(
        default=False,
        description="Compute each picture by itself: its bytes are the same whatever the load, which takes longer.",
    )
    memory_mb: int = Field(
        0, ge=0, description="Megabytes for the working memory of steps and decodings; 0 takes 90 % of what is free."
    )
    embedding_cache_mb: int = Field(64, ge=0, description="Megabytes of encoded prompts to keep.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Logs for people or for machines; `auto` is `console` on a terminal, else `json`."
    )
    cache_dir: Path = Field(
        default_factory=lambda: _home("XDG_CACHE_HOME", ".cache"),
        validate_default=True,
        description="What can be fetched or built again.",
        json_schema_extra={"default": "~/.cache/sd35"},
    )
    data_dir: Path = Field(
        default_factory=lambda: _home("XDG_DATA_HOME", ".local/share"),
        validate_default=True,
        description="What cannot be made again.",
        json_schema_extra={"default": "~/.local/share/sd35"},
    )
    database: str | None = Field(
        None,
        repr=False,
        description="Where jobs and keys are kept: a file of SQLite's, `postgresql://USER:PASSWORD@HOST/NAME` (with the"
        " extra `postgres`), or `memory`, which ends with the process. The flag shows a password to other users of the"
        " machine, the variable does not.",
        json_schema_extra={"default": "sd35.db in data_dir"},
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="What signs webhooks: `whsec_` and 24 to 64 random bytes in base64; without it, jobs take none."
        " The flag shows it to other users of the machine, the variable does not.",
        json_schema_extra={"default": "none"},
    )
    webhook_allow_private: bool = Field(
        default=False, description="Let webhooks go to private addresses, this machine included, and by plain HTTP."
    )

    @field_validator("checkpoints", "weights", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("cache_dir", "data_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError as error:  # a user of a container without a home directory
            raise ValueError(
                f"{value}: there is no home directory; name one with SD35_CACHE_DIR, SD35_DATA_DIR"
            ) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given at construction over the environment; no .env file, no secrets directory."""
        return init_settings, env_settings


def load_settings(flags: Mapping[str, object] | None = None, config: Path | None = None) -> Settings:
    """The settings in force. `flags` that are None were not given; `config` defaults to `SD35_CONFIG`, if that is set.

    Raises InvalidSetting, naming the setting and where it came from.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    path = config or (Path(variable) if (variable := os.environ.get(CONFIG_VARIABLE)) else None)
    file = _read_file(path) if path else {}
    below_environment = {name: value for name, value in file.items() if not os.environ.get(PREFIX + name.upper())}
    try:
        return Settings(**{**below_environment, **given})
    except ValidationError as error:
        raise InvalidSetting("; ".join(_explain(dict(detail), given, path) for detail in error.errors())) from error


def unknown_variables() -> list[str]:
    """The `SD35_...` environment variables that nothing reads: typing errors, or links that Kubernetes sets."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def settings_table() -> str:
    """The table of docs/settings.md, in Markdown."""
    lines = ["| Variable | Key in the file | Default | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        default = extra["default"] if isinstance(extra, dict) else field.default
        shown = ", ".join(default) if isinstance(default, tuple) else default
        lines.append(f"| `{PREFIX}{name.upper()}` | `{name}` | `{shown}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"{path} cannot be read as TOML: {error}") from error
    if unknown := sorted(content.keys() - Settings.model_fields.keys()):
        known = ", ".join(sorted(Settings.model_fields))
        raise InvalidSetting(f"{path}: unknown key {', '.join(map(repr, unknown))}; known: {known}")
    return content


def _explain(detail: dict[str, Any], given: Mapping[str, object], path: Path | None) -> str:
    name = str(detail["loc"][0])
    if name in given:
        source = flag_of(name)
    elif os.environ.get(PREFIX + name.upper()):
        source = PREFIX + name.upper()
    else:
        source = f"{path}: {name}"
    if detail["type"].startswith("byte_size"):
        return f"{source}: got {detail['input']!r}; allowed: a number of bytes, or one with a unit, as 12GiB or 800MB"
    got = "something else" if name in _SECRETS else repr(detail["input"])
    return f"{source}: got {got}; {detail['msg'][0].lower()}{detail['msg'][1:]}"


def flag_of(name: str) -> str:
    """The flag that sets a setting: `--max-pixels`; `--checkpoint` sets `checkpoints`, one each time."""
    return "--checkpoint" if name == "checkpoints" else "--" + name.replace("_", "-")

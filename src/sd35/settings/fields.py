"""What can be set, with its default, what is allowed, and the words of docs/settings.md and of the flags' help."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "SD35_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+|file://")

Precision: TypeAlias = Literal[
    "auto", "float32", "float16", "bfloat16", "fp8", "fp8-dynamic", "fp8-weights", "fp8-storage"
]


def _home(variable: str, otherwise: str) -> Path:
    """The XDG base directory of a kind, with this project's name."""
    return Path(os.environ.get(variable) or Path("~") / otherwise) / "sd35"


class Settings(BaseSettings):
    """What can be set. Each field is `SD35_<NAME>`, a key of the file, and a flag. Use `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` for all of the machine's.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ui: Literal["auto", "off"] = Field(
        "auto", description="The page for people, at `/`: `auto` where the extra `ui` is installed, or `off`."
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path under which a proxy offers the service, and which it takes off, as `/images`.",
        json_schema_extra={"default": "none"},
    )
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Addresses and networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."
        " Several are separated by commas (in the file a list).",
        json_schema_extra={"default": "none"},
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names under which clients may reach a server without API keys, besides IP addresses,"
        " `localhost` and the host of `public_url`: `gpu.example`, `*.example.com` for all names below one, `*` for"
        " any. Several are separated by commas (in the file a list).",
        json_schema_extra={"default": "none"},
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may use the API from a browser, as `https://example.com`; `*` for all."
        " Several are separated by commas (in the file a list).",
        json_schema_extra={"default": "none"},
    )
    cors_private_network: bool = Field(
        default=False,
        description="Let pages of `cors_origins` on public sites reach a server on a private network or the user's own"
        " machine: answer the browser's private network preflights.",
    )
    body_timeout_s: float = Field(
        30, gt=0, description="Longest time for a request's head to arrive, and then for its body; else 408."
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        description="Most requests for images, or to read an image's file, by a key, or an address where there are"
        " no keys; 0 for any.",
    )
    concurrency: int = Field(
        0, ge=0, description="Most images at once for a key, or an address where there are no keys; 0 for any."
    )
    pixels_per_hour: int = Field(
        0, ge=0, description="Most pixels for a key, or an address where there are no keys; 0 for any."
    )
    metrics_need_admin: bool = Field(
        default=False, description="Give `/metrics` to administrators' keys only; else any key is enough."
    )
    checkpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        ("sd35-mini",),
        min_length=1,
        description="Checkpoints to serve: names that `sd35 models` lists, directories in the Diffusers layout"
        " or of NVIDIA's ONNX graphs, Stability's single files, or `auto`: the best of SD3.5 Large and Medium that"
        " memory and the weights, or the token, at hand allow; `sd35-mini`, with a warning, where there are neither"
        " weights nor token. Several are separated by commas (in the file a list, the flag `--checkpoint` repeated);"
        " the first is the default.",
    )
    weights: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Safetensors files to read weights from instead of the checkpoint's own: single files, CLIPs,"
        " T5s; also FP8, plain or scaled. Several are separated by commas (in the file a list, the flag `--weights`"
        " repeated).",
        json_schema_extra={"default": "none"},
    )
    registry: Path | None = Field(
        None,
        description="TOML file of further checkpoints by name, of the form of `checkpoints/registry.toml`.",
        json_schema_extra={"default": "none"},
    )
    base_checkpoint: str | None = Field(
        None,
        description="Where a checkpoint without tokenizers and configurations has them from: a name that `sd35 models`"
        " lists, or a directory in the Diffusers layout, of the same model.",
        json_schema_extra={"default": "none"},
    )
    transformer: Literal["auto", "bf16", "fp8"] = Field(
        "auto",
        description="Of NVIDIA's ONNX graphs, the transformer to read; `auto`: the one on disk, `bf16` where both are.",
    )
    model_aliases: Annotated[tuple[str, ...], NoDecode] = Field(
        (
            *("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"),
            *("sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium", "sd3.5-flash", "sd3", "sd3-large", "sd3-medium"),
            "v1-5-pruned-emaonly.safetensors [6ce0161689]",
        ),
        description="Names by which clients of OpenAI's, AUTOMATIC1111's and Stability's APIs may call a checkpoint:"
        " NAME for the first that is served, or NAME=CHECKPOINT. Several are separated by commas (in the file a list);"
        " `none` for no such names. A name that is served is never another's.",
    )
    strict_dialects: bool = Field(
        default=False,
        description="Refuse what clients of those APIs are served by something else for: `model_aliases`, and samplers"
        " that are not there.",
    )
    offline: bool = Field(default=False, description="Never use the network: fetch nothing, ask the hub nothing.")
    backend: str = Field(
        "onnx",
        description="What computes: `onnx` (no PyTorch), `openvino`, `diffusers`, `tensorrt`. See `sd35 doctor`.",
    )
    precision: Precision = Field(
        "auto",
        description="Number format to compute in; `auto` is the backend's best for the device. `fp8`: most of the"
        " transformer, the rest in `bfloat16`. With `diffusers` that is `fp8-dynamic`, which multiplies in FP8, where"
        " the GPU can, else `fp8-weights`, which only keeps weights so; either can be named. `fp8-storage`, of"
        " `diffusers`, takes the least memory: also T5's weights are in FP8.",
    )
    fallback: str | None = Field(
        None,
        description="Of `serve`: a second backend to load beside, as `diffusers` or `onnx/float32`: it answers while"
        " the first's graphs or engines are built, and makes again what that spoils, where its precision is wider.",
        json_schema_extra={"default": "none"},
    )
    device: str = Field("auto", description="Device to compute on: `auto`, `cpu`, `cuda`, `cuda:1`, ...")
    offload: Literal["auto", "none", "encoders", "model", "sequential"] = Field(
        "auto",
        description="Networks that are not on the device all the time: `none`, the text `encoders`, each `model`"
        " (part), or layer by layer, `sequential`; `auto` is the fastest that fits: see `sd35 plan`.",
    )
    tiled_decode: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Decode large images in tiles, for less memory and slightly other pixels; `auto` where needed.",
    )
    torch_compile: bool = Field(
        default=False,
        description="Compile the transformer with `torch.compile`: quicker steps after a longer start, and slightly"
        " other pixels. `diffusers` backend only, without `model` or `sequential` offload.",
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
    max_in_flight: int = Field(
        0,
        ge=0,
        description="Most images that wait or are being made at the same time; further ones are refused with 429. 0"
        " allows 1.25 times `max_batch_rows`, but at least `max_batch_rows` + 2. While overload lasts, 0 allows only as"
        " many as keep the device busy, so that accepted images wait less.",
    )
    max_wait_s: float = Field(
        600, gt=0, description="Longest wait, in estimated seconds, that an image is accepted for; else 429."
    )
    max_batch_rows: int = Field(
        8, ge=1, description="Most transformer rows in a step: an image is one, or two where its guidance is above 1."
    )
    reproducible: bool = Field(
        default=False,
        description="Compute each image by itself: its bytes are the same whatever the load, which takes longer.",
    )
    memory_mb: int = Field(
        0, ge=0, description="Megabytes for the working memory of steps and decodings; 0 takes 90 % of what is free."
    )
    embedding_cache_mb: int = Field(64, ge=0, description="Megabytes of encoded prompts to keep.")
    image_store: str | None = Field(
        None,
        description="Where images are kept: a directory, `s3://BUCKET/PREFIX`, `gs://...`, `az://CONTAINER/PREFIX`,"
        " or `memory` for as long as the process lives. Credentials, region and endpoint of an object store come from"
        " the environment: `AWS_...`, `GOOGLE_...`, `AZURE_...`.",
        json_schema_extra={"default": "images in data_dir"},
    )
    retention_days: float = Field(
        30, ge=0, description="Days to keep an image after it was last asked for; 0 is without bound."
    )
    retention_gb: float = Field(
        20, ge=0, description="Gigabytes of images to keep; beyond, the oldest are removed. 0 is without bound."
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^?#\s]+$",
        description="Address by which clients reach the service, as `https://images.example.com/sd35`, for links.",
        json_schema_extra={"default": "that of the request"},
    )
    link_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Secret that signs links to images, of 16 characters at least; several processes need the same.",
        json_schema_extra={"default": "drawn once, kept in data_dir"},
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Logs for people or for machines; `auto` is `console` on a terminal, else `json`."
    )
    log_prompts: bool = Field(
        default=False, description="Log each image's prompts, the first 200 characters of them; else no log has any."
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
    keep_metadata: bool = Field(
        default=True, description="Let image files say what made them, where the request does not say otherwise."
    )
    content_filter: str | None = Field(
        None,
        description="Import path, `package.module:name`, of a hook that sees each prompt and image, and allows, blurs"
        " or refuses it.",
        json_schema_extra={"default": "none"},
    )
    redirect_images: bool = Field(
        default=False,
        description="Send who asks for a stored PNG file to the object store, by a signed address, where it has one.",
    )
    max_jobs: int = Field(10_000, ge=1, description="Most jobs that wait; further ones are refused with 429.")
    shutdown_grace_s: float = Field(
        60,
        ge=0,
        description="Seconds for what runs to end once the service closes; then jobs are handed back, and calls end.",
    )
    database: str | None = Field(
        None,
        repr=False,
        description="Where jobs and keys are kept: a file of SQLite's, `postgresql://USER:PASSWORD@HOST/NAME` (with"
        " the extra `postgres`), or `memory`, which ends with the process. The flag shows a password to other users of"
        " the machine, the variable does not.",
        json_schema_extra={"default": "sd35.db in data_dir"},
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="What signs webhooks: `whsec_` and 24 to 64 random bytes in base64; without it, jobs take none.",
        json_schema_extra={"default": "none"},
    )
    webhook_allow_private: bool = Field(
        default=False, description="Let webhooks go to private addresses, this machine included, and by plain HTTP."
    )

    @property
    def fallback_settings(self) -> "Settings | None":
        """The same settings with the fallback as the backend; None where there is none."""
        if self.fallback is None:
            return None
        backend, _, precision = self.fallback.partition("/")
        return self.model_copy(update={"backend": backend, "precision": precision or "auto", "fallback": None})

    @field_validator("model_aliases")
    @classmethod
    def _empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return () if value == ("none",) else value

    @field_validator(
        "checkpoints", "weights", "trusted_proxies", "allowed_hosts", "cors_origins", "model_aliases", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("fallback")
    @classmethod
    def _check_standby(cls, value: str | None) -> str | None:
        precisions = get_args(cls.model_fields["precision"].annotation)
        backend, slash, precision = (value or "").partition("/")
        if value is not None and (not backend or (slash and precision not in precisions)):
            raise ValueError(f"allowed: BACKEND or BACKEND/PRECISION, of which {', '.join(precisions)}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            ipaddress.ip_network(each)  # its error says what is wrong; an address is a network of one
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [each for each in value if each != "*" and not _HOST.fullmatch(each)]:
            raise ValueError(
                f"{wrong[0]}: no host name; allowed: a name without scheme and port, as gpu.example (international ones"
                " as xn--...), *.example.com for all names below one, * for any; IP addresses need no entry"
            )
        return value

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        try:
            is_valid = value is None or (urlsplit(value).hostname and urlsplit(value).port != 0)
        except ValueError:  # raised for a port out of range, and for brackets around something else than IPv6
            is_valid = False
        if not is_valid:
            raise ValueError("allowed: an address with a host, as https://images.example.com/sd35")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [each for each in value if each != "*" and not _ORIGIN.fullmatch(each)]:
            raise ValueError(
                f"{wrong[0]}: no origin, which is of the form https://example.com or http://localhost:3000"
            )
        return value

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

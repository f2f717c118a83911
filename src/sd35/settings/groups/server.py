"""Settings of the HTTP server: address, timeouts, logs."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator

from sd35.settings.flag import Flag


class ServerSettings(BaseModel, title="Server", defer_build=True):
    """Where the server listens, how clients address it, and what it logs."""

    host: str = Field("127.0.0.1", description="Address to listen on. `0.0.0.0` listens on all addresses.")
    port: Annotated[int, Flag("PORT")] = Field(
        8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one."
    )
    ui: Annotated[Literal["auto", "off"], Flag("WHEN")] = Field(
        "auto", description="User interface at `/`: `auto` serves it if the extra `ui` is installed; `off` never does."
    )
    root_path: Annotated[str, Flag("PATH", default="none")] = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path prefix under which a reverse proxy publishes the service and which it strips, such as"
        " `/images`.",
    )
    public_url: Annotated[str | None, Flag("URL", default="that of the request")] = Field(
        None,
        pattern=r"^https?://[^?#\s]+$",
        description="Base URL of links to the service, such as `https://images.example.com/sd35`.",
    )
    body_timeout_s: Annotated[float, Flag("SECONDS")] = Field(
        30,
        gt=0,
        description="Seconds for a request's head to arrive, and again for its body; beyond that, 408.",
    )
    shutdown_grace_s: Annotated[float, Flag("SECONDS")] = Field(
        60,
        ge=0,
        description="Seconds that running work may take to finish during shutdown. After that, jobs return to the"
        " queue and open requests end.",
    )
    log_format: Annotated[Literal["auto", "console", "json"], Flag("FORMAT")] = Field(
        "auto", description="Log format: `console`, `json`, or `auto`: `console` on a terminal, `json` otherwise."
    )
    log_prompts: bool = Field(
        default=False, description="Log the first 200 characters of each prompt. By default, no log contains prompts."
    )

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        try:
            is_valid = value is None or (urlsplit(value).hostname and urlsplit(value).port != 0)
        except ValueError:  # raised for a port out of range, and for brackets around anything but IPv6
            is_valid = False
        if not is_valid:
            raise ValueError("allowed: an address with a host, as https://images.example.com/sd35")
        return value

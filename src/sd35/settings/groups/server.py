"""Settings of the HTTP server: address, timeouts and logs."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator

from sd35.settings.flag import Flag

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_PUBLIC_URL = re.compile(r"https?://[^?#\s]+")


class ServerSettings(BaseModel, title="Server", defer_build=True):
    """The address of the server, its URLs, its timeouts, and its logs."""

    host: Annotated[str, Flag("ADDRESS")] = Field(
        "127.0.0.1", description="Address to listen on; `0.0.0.0` is all addresses of the machine."
    )
    port: Annotated[int, Flag("PORT")] = Field(
        8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one."
    )
    ui: Annotated[Literal["auto", "off"], Flag("WHEN")] = Field(
        "auto",
        description="Whether to serve the user interface at `/`: `auto` (if the extra `ui` is installed) or `off`.",
    )
    root_path: Annotated[str, Flag("PATH", default="none")] = Field(
        "",
        description="Path prefix under which a reverse proxy publishes the service, such as `/images`. The proxy must"
        " strip it.",
    )
    public_url: Annotated[str | None, Flag("URL", default="the URL of the request")] = Field(
        None,
        description="Base URL of links in responses, such as `https://images.example.com/sd35`.",
    )
    body_timeout_s: Annotated[float, Flag("SECONDS")] = Field(
        30,
        gt=0,
        description="Timeout, in seconds, for the headers of a request to arrive, and again for its body. A"
        " slower request gets the HTTP status 408.",
    )
    shutdown_grace_s: Annotated[float, Flag("SECONDS")] = Field(
        60,
        ge=0,
        description="Maximum time, in seconds, for running images to finish during shutdown. After that, jobs return to"
        " the queue and open requests end.",
    )
    log_format: Annotated[Literal["auto", "console", "json"], Flag("FORMAT")] = Field(
        "auto", description="Log format: `console`, `json`, or `auto` (`console` on a terminal, otherwise `json`)."
    )
    log_prompts: bool = Field(
        default=False, description="Log the first 200 characters of each prompt. By default, no log contains prompts."
    )

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        """Return the path prefix, which may be empty. Raises ValueError if it is malformed."""
        if not _ROOT_PATH.fullmatch(value):
            raise ValueError("allowed: a path such as /images, without a slash at its end")
        return value

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        """Return the URL. Raises ValueError if links cannot begin with it."""
        try:
            is_valid = value is None or (
                _PUBLIC_URL.fullmatch(value) and urlsplit(value).hostname and urlsplit(value).port != 0
            )
        except ValueError:  # the port is out of range, or brackets enclose something other than an IPv6 address
            is_valid = False
        if not is_valid:
            raise ValueError(
                "allowed: an http or https URL without query and fragment, such as https://images.example.com/sd35"
            )
        return value

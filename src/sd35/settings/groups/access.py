"""Settings of access: trusted proxies, host names, web pages of other origins, and the content filter."""

import ipaddress
import re
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

from sd35.settings.flag import CommaSeparated, Flag

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+|file://")


class AccessSettings(BaseModel, title="Access", defer_build=True):
    """Which clients and web pages may use the service, and which content it allows."""

    trusted_proxies: Annotated[CommaSeparated[str], Flag("NETWORKS")] = Field(
        (),
        description="Addresses and networks of trusted reverse proxies. Their `X-Forwarded-For` and `X-Forwarded-Proto`"
        " headers are used. Headers of other senders are ignored. Separated by commas (in the file, a list).",
    )
    allowed_hosts: Annotated[CommaSeparated[str], Flag("NAMES")] = Field(
        (),
        description="Host names under which clients may reach `sd35 ui`, or a server without API keys: `gpu.example`,"
        " `*.example.com` for all subdomains, or `*` for any name. IP addresses, `localhost` and the host of"
        " `public_url` are always allowed. Separated by commas (in the file, a list).",
    )
    cors_origins: Annotated[CommaSeparated[str], Flag("ORIGINS")] = Field(
        (),
        description="Origins of web pages that may call the API from a browser, such as `https://example.com`; `*`"
        " allows all. Separated by commas (in the file, a list).",
    )
    cors_private_network: bool = Field(
        default=False,
        description="Allow web pages of `cors_origins` that come from the public internet to call a server on a"
        " private network or on the user's own machine (private network access).",
    )
    metrics_need_admin: bool = Field(
        default=False,
        description="Require an administrator's API key for `/metrics`. By default, any API key is enough.",
    )
    content_filter: Annotated[str | None, Flag("MODULE:NAME")] = Field(
        None,
        description="Import path, `package.module:name`, of a content filter. It receives each prompt and image, and"
        " allows, blurs or refuses it.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Return the networks. Raises ValueError if one is malformed."""
        for network in value:
            try:
                ipaddress.ip_network(network)  # a single address counts as a network
            except ValueError as error:
                raise ValueError(f"{error}; allowed: addresses and networks, such as 10.0.0.7 or 10.0.0.0/8") from error
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Return the host names. Raises ValueError if one is malformed."""
        if invalid := [host for host in value if host != "*" and not _HOST.fullmatch(host)]:
            raise ValueError(
                f"{invalid[0]} is not a host name. Allowed: names without scheme and port such as gpu.example, in ASCII"
                " (xn--...); *.example.com for all subdomains; * for any name. IP addresses need no entry"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Return the origins. Raises ValueError if one is malformed."""
        if invalid := [origin for origin in value if origin != "*" and not _ORIGIN.fullmatch(origin)]:
            raise ValueError(
                f"{invalid[0]} is not an origin. Allowed: scheme, host and port without a path, such as"
                " https://example.com or http://localhost:3000; or * for any origin"
            )
        return value

"""Settings about clients: proxies, host names, browsers, content."""

import ipaddress
import re
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

from sd35.settings.flag import CommaSeparated, Flag

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+|file://")


class AccessSettings(BaseModel, title="Access", defer_build=True):
    """Which clients and web pages may use the service, and what they may see."""

    trusted_proxies: Annotated[CommaSeparated[str], Flag("NETWORKS")] = Field(
        (),
        description="Addresses and networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` headers are"
        " trusted, separated by commas (in the file, a list).",
    )
    allowed_hosts: Annotated[CommaSeparated[str], Flag("NAMES")] = Field(
        (),
        description="Host names under which clients may reach a server without API keys: `gpu.example`,"
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
        description="Answer private network preflights, so that public pages of `cors_origins` can reach a server on a"
        " private network or on the user's own machine.",
    )
    metrics_need_admin: bool = Field(
        default=False, description="Require an administrator's key for `/metrics`. By default, any key is enough."
    )
    content_filter: Annotated[str | None, Flag("MODULE:NAME")] = Field(
        None,
        description="Import path, `package.module:name`, of a hook that receives each prompt and image, and allows,"
        " blurs or refuses it.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            ipaddress.ip_network(each)  # its ValueError says what is wrong; an address is a network of one
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if invalid := [each for each in value if each != "*" and not _HOST.fullmatch(each)]:
            raise ValueError(
                f"{invalid[0]}: no host name; allowed: a name without scheme and port, as gpu.example (international"
                " ones as xn--...), *.example.com for all names below one, * for any; IP addresses need no entry"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if invalid := [each for each in value if each != "*" and not _ORIGIN.fullmatch(each)]:
            raise ValueError(
                f"{invalid[0]}: no origin, which is of the form https://example.com or http://localhost:3000"
            )
        return value

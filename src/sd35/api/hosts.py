"""Check of the `Host` header: the protection against DNS rebinding.

In a DNS rebinding attack, a web site points its own name at the address of this server. The browser then treats the
site and the server as one origin, so the site's scripts may read every response. Only the `Host` header shows the name.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette._utils import parse_host_header
from starlette.datastructures import Headers

from sd35.errors import HostNotAllowed

_ZONE = re.compile(r"%[^\]]*(?=\])")  # of a link-local IPv6 address, as in [fe80::1%25eth0]


class AllowedHosts:
    """The hosts under which a server without API keys may be reached.

    These are IP addresses, loopback names, the host of `public_url` and the `names`. A name is an exact host, or
    `*.example.com` for the names below one, or `*` for any. IP addresses need no entry: nobody can rebind an address.
    """

    def __init__(self, names: Sequence[str], public_url: str | None = None) -> None:
        public = (urlsplit(public_url).hostname or "") if public_url else ""
        self._any = "*" in names
        self._names = {"localhost", normalise(public), *map(normalise, names)} - {""}
        self._endings = (".localhost", *(normalise(name[1:]) for name in names if name.startswith("*.")))

    def error(self, headers: Headers) -> HostNotAllowed | None:
        """Return the error of a request with these headers, or None if its host is allowed.

        A request without a host is allowed: HTTP/1.0 clients send such requests, browsers never do. A repeated or
        malformed `Host` is not.
        """
        sent = headers.getlist("host")
        if self._any or not any(sent) or (len(sent) == 1 and self._allows(sent[0])):
            return None
        return HostNotAllowed(", ".join(sent))

    def _allows(self, header: str) -> bool:
        parsed = parse_host_header(_ZONE.sub("", header))
        if parsed is None:
            return False
        host = normalise(parsed.host)
        return host in self._names or host.endswith(self._endings) or _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def normalise(host: str) -> str:
    """Return a host name as browsers send it: in lower case, in Punycode if international, without a trailing dot."""
    host = host.lower().removesuffix(".")
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host  # matches no `Host` header

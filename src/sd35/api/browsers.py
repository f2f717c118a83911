"""Protection against other web sites that use this server through a visitor's browser, or embed its pages.

DNS rebinding: a web site points its own name at the address of this server. The browser then treats the site and the
server as one origin, so the site's scripts may read every response. Only the `Host` header shows the name.

Cross-site request forgery: a web page can make the visitor's browser send a form to any server, even one on the
visitor's machine. The page cannot read the response, but the request takes effect. Browsers name the origin of the page
in `Origin` and `Sec-Fetch-Site`, and pages cannot change these headers. Clients other than browsers do not send them.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from starlette._utils import get_route_path, parse_host_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35.api.auth import ErrorHandler, is_open
from sd35.errors import HostNotAllowed, OriginNotAllowed, Sd35Error

_PROBES = {"/healthz", "/readyz"}  # load balancers use any host name, and the responses contain nothing private
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}  # routes with these methods change nothing
_ZONE = re.compile(r"%[^\]]*(?=\])")  # the zone of a link-local IPv6 address, as in [fe80::1%25eth0]
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class AllowedHosts:
    """The hosts that requests to a server without API keys may name in `Host`.

    These are IP addresses, loopback names, the host of `public_url` and the `names`. A name is an exact host name,
    `*.example.com` for all subdomains of example.com, or `*` for any host. IP addresses are always allowed, because DNS
    rebinding needs a name.
    """

    def __init__(self, names: Sequence[str], public_url: str | None = None) -> None:
        public = urlsplit(public_url or "").hostname or ""
        self._any = "*" in names
        self._names = {"localhost", _normalise(public), *map(_normalise, names)} - {""}
        # "*.example.com" becomes ".example.com".
        self._endings = (".localhost", *(_normalise(name[1:]) for name in names if name.startswith("*.")))

    def error(self, headers: Headers) -> HostNotAllowed | None:
        """Return the error of a request with these headers, or None if its host is allowed.

        A request without `Host` is allowed: HTTP/1.0 clients send such requests, and browsers never do. A repeated or
        malformed `Host` is refused.
        """
        sent = headers.getlist("host")
        if self._any or not any(sent) or (len(sent) == 1 and self._allows(sent[0])):
            return None
        return HostNotAllowed(", ".join(sent))

    def _allows(self, header: str) -> bool:
        """Return whether the value of one `Host` header names an allowed host."""
        parsed = parse_host_header(_ZONE.sub("", header))
        if parsed is None:
            return False
        host = _normalise(parsed.host)
        return host in self._names or host.endswith(self._endings) or _is_address(host)


class AllowedOrigins:
    """The origins whose pages may send requests that change something.

    These are the server's own origin, the origin of `public_url`, and `others`. `*` in `others` allows any origin.
    """

    def __init__(self, others: Sequence[str], public_url: str | None = None) -> None:
        self._any, self._others = "*" in others, set(others)
        parts = urlsplit(public_url or "")
        self._public = _origin(parts.scheme, parts.netloc.rpartition("@")[2])

    def error(self, headers: Headers, scheme: str) -> OriginNotAllowed | None:
        """Return the error of a request with these headers, or None if the request is allowed.

        `scheme` is the scheme of the URL that the client used. `Sec-Fetch-Site: same-origin` is sufficient, because a
        proxy may have rewritten `Host`. Browsers send `Sec-Fetch-Site` to HTTPS and loopback addresses only. For other
        addresses, `Origin` must match.
        """
        origin, site = headers.get("origin") or None, headers.get("sec-fetch-site")
        if self._any or site == "same-origin" or origin in self._others:
            return None
        # With `cross-site`, an equal `Host` proves nothing: a proxy has written it, not the browser.
        if site != "cross-site" and origin in {_origin(scheme, headers.get("host", "")), self._public}:
            return None
        if origin is None and site in {None, "none"}:  # not a browser, or a URL that the user typed
            return None
        return OriginNotAllowed("sec-fetch-site", site) if origin is None else OriginNotAllowed("origin", origin)


class BrowserProtection:
    """ASGI middleware that refuses DNS rebinding and cross-site requests, and keeps other sites from framing pages.

    A server with API keys needs no check of most requests, because other sites do not know a key. It still refuses
    cross-site requests that need no key, and cross-site requests with HTTP Basic credentials, because the browser may
    have added the credentials by itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: AllowedHosts,
        origins: AllowedOrigins,
        has_keys: Callable[[], Awaitable[bool]],
        on_error: ErrorHandler,
    ) -> None:
        self._app = app
        self._hosts, self._origins, self._has_keys, self._on_error = hosts, origins, has_keys, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it if another web site may have sent it. Add headers to the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_protective_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            await self._check_host_and_origin(scope)
        except Sd35Error as error:
            response = await self._on_error(Request(scope), error)
            await response(scope, receive, send_protected)
            return
        await self._app(scope, receive, send_protected)

    async def _check_host_and_origin(self, scope: Scope) -> None:
        """Refuse a request that another web site may have sent through the visitor's browser.

        Raises HostNotAllowed or OriginNotAllowed, and StoreUnavailable if the key store does not answer.
        """
        headers, path = Headers(scope=scope), get_route_path(scope)
        is_safe = scope["method"] in _SAFE_METHODS
        origin_error = None if is_safe else self._origins.error(headers, scope.get("scheme", "http"))
        if origin_error and (is_open(path) or _has_basic_credentials(headers)):
            raise origin_error
        host_error = None if path in _PROBES else self._hosts.error(headers)
        error = host_error or origin_error
        if error and not await self._has_keys():  # last, because most requests do not need this lookup
            raise error


def _has_basic_credentials(headers: Headers) -> bool:
    return headers.get("authorization", "").lower().startswith("basic ")


def _add_protective_headers(headers: MutableHeaders) -> None:
    """Forbid browsers to guess content types, and other sites to frame HTML pages."""
    headers["X-Content-Type-Options"] = "nosniff"
    if headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("Content-Security-Policy", "frame-ancestors 'self'")  # the user interface sets its own
        headers["X-Frame-Options"] = "SAMEORIGIN"


def _origin(scheme: str, authority: str) -> str:
    """Return an origin as browsers write it, without the scheme's default port."""
    return f"{scheme}://{_normalise(authority.removesuffix(_DEFAULT_PORTS.get(scheme, '')))}"


def _is_address(host: str) -> bool:
    """Return whether a host is an IP address. An IPv6 address may be in brackets."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _normalise(host: str) -> str:
    """Return a host name as browsers send it: lower case, in Punycode if international, without a trailing dot."""
    host = host.lower().removesuffix(".")
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host  # matches no `Host` header

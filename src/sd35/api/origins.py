"""Check of the origin of requests: the protection against cross-site request forgery.

A web page can make the visitor's browser send a form to any server, also to one on the visitor's machine. It cannot
read the response, but the request has an effect. Browsers say which page sent it, in `Origin` and `Sec-Fetch-Site`, and
no page can change these headers. Clients other than browsers do not send them.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from sd35.api.hosts import normalise
from sd35.errors import OriginNotAllowed

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class AllowedOrigins:
    """The origins whose pages may send requests that have an effect.

    These are the server's own origin, that of `public_url`, and `others`, where `*` means any.
    """

    def __init__(self, others: Sequence[str], public_url: str | None = None) -> None:
        self._any, self._others = "*" in others, set(others)
        parts = urlsplit(public_url or "")
        self._public = _origin(parts.scheme, parts.netloc.rpartition("@")[2])

    def error(self, headers: Headers, scheme: str) -> OriginNotAllowed | None:
        """Return the error of a request with these headers, or None if no page of another origin sent it.

        `scheme` is the one that the client used. `Sec-Fetch-Site: same-origin` is enough, so that a proxy may rewrite
        `Host`. Browsers send `Sec-Fetch-Site` to HTTPS and loopback addresses only; elsewhere `Origin` has to match.
        """
        origin, site = headers.get("origin") or None, headers.get("sec-fetch-site")
        if self._any or site == "same-origin" or origin in self._others:
            return None
        if site != "cross-site" and origin in {_origin(scheme, headers.get("host", "")), self._public}:
            return None
        if origin is None and site in {None, "none"}:  # not a browser, or an address that the user typed
            return None
        return OriginNotAllowed("sec-fetch-site", site) if origin is None else OriginNotAllowed("origin", origin)


def _origin(scheme: str, authority: str) -> str:
    """Return an origin as browsers write it: without the scheme's default port."""
    return f"{scheme}://{normalise(authority.removesuffix(_DEFAULT_PORTS.get(scheme, '')))}"

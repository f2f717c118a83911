"""Checks of URLs, and of proxy variables such as HTTP_PROXY, with clearer errors than those of httpx2."""

from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies

from sd35.errors import InvalidSetting

_READ = ("http", "https", "all")  # httpx2 reads HTTP_PROXY, HTTPS_PROXY and ALL_PROXY
_HTTP, _SOCKS = ("http", "https"), ("socks5", "socks5h")


def check_proxies() -> None:
    """Raise InvalidSetting if a proxy variable has an address that httpx2 cannot use.

    The error does not show the value, which may contain a password.
    """
    proxies = getproxies()
    if "*" in (host.strip() for host in proxies.get("no", "").split(",")):
        return  # httpx2 then ignores the other variables
    allowed = _HTTP if find_spec("socksio") is None else (*_HTTP, *_SOCKS)
    for scheme, url in proxies.items():
        if scheme in _READ and url and not is_address(url if "://" in url else f"http://{url}", allowed):
            lacks_socks = allowed == _HTTP and url.lower().startswith(_SOCKS)
            socks = " (SOCKS 5 needs the package socksio)" if lacks_socks else ""
            raise InvalidSetting(
                f"{scheme.upper()}_PROXY: got an address that cannot be used; allowed: one with the scheme"
                f" {' or '.join(allowed)}, such as http://proxy.example:3128{socks}"
            )


def is_address(text: str, schemes: tuple[str, ...]) -> bool:
    """Return whether a URL has one of the schemes, a valid host, and a valid port or none."""
    import httpx2

    try:
        url = httpx2.URL(text)
        port = urlsplit(text).port  # raises ValueError above 65535; httpx2 would fail later, when it connects
    except (ValueError, httpx2.InvalidURL):
        return False
    return url.scheme in schemes and bool(url.host) and port != 0 and url.host.isprintable() and " " not in url.host

"""Signed links: URLs that return an image without an API key, to anyone who has the URL, until it expires.

The signature covers the path, the parameters in their order, and the expiry time, but not the host. A link to another
image, in another format or with another expiry time needs another signature.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from sd35.errors import InvalidRequest, InvalidSetting, LinkRefused
from sd35.settings import Settings
from sd35.storage.atomic_files import AtomicWriter

PATH = "/v1/artifacts"  # prefix of the URLs of images
DEFAULT_LIFETIME_S = 3600
MAX_LIFETIME_S = 7 * 24 * 3600  # as for S3's presigned URLs
_MIN_SECRET_BYTES = 16  # as in the setting `link_secret`
_EXPIRES, _SIGNATURE = "expires", "signature"
_PURPOSE = b"sd35 link 1\n"  # the start of each signed text, so that signatures for another purpose are not valid here


class Links:
    """Signs and checks links.

    Args:
        secret: Key of the HMAC.
        public_url: Base URL of the service for clients. If None, links use the base URL of the current request.
    """

    def __init__(self, secret: bytes, public_url: str | None = None) -> None:
        self._secret, self._public_url = secret, public_url

    @classmethod
    def from_settings(cls, settings: Settings) -> "Links":
        """Use the setting `link_secret`. If it is not set, use the secret stored in `data_dir`.

        The first call generates the stored secret. Raises InvalidSetting if the file of the secret cannot be written or
        read, or if it is too short.
        """
        if settings.link_secret:
            secret = settings.link_secret.get_secret_value().encode()
        else:
            secret = _load_or_create_secret(settings)
        return cls(secret, settings.public_url)

    def sign(self, path: str, parameters: Sequence[tuple[str, str]], expires_s: int, base_url: str) -> str:
        """Return a signed URL.

        Args:
            path: Path of the URL.
            parameters: Names and values of its query, in their order.
            expires_s: When the link expires, in seconds since 1970.
            base_url: Base URL of the current request. The setting `public_url` overrides it.
        """
        assert not {_EXPIRES, _SIGNATURE} & {name for name, _ in parameters}
        query = [*parameters, (_EXPIRES, str(expires_s))]
        base = (self._public_url or base_url).rstrip("/")
        return f"{base}{quote(path)}?{urlencode([*query, (_SIGNATURE, self._signature(path, query))])}"

    def check(self, path: str, parameters: Sequence[tuple[str, str]], now_s: float) -> None:
        """Check the signature and expiry time of a requested URL.

        Args:
            path: Path of the URL.
            parameters: Names and values of its query, in their original order, which the signature covers.
            now_s: The current time, in seconds since 1970.

        Raises:
            LinkRefused: The signature is wrong, or the link has expired.
        """
        signatures = [value for name, value in parameters if name == _SIGNATURE]
        query = [pair for pair in parameters if pair[0] != _SIGNATURE]
        expected = self._signature(path, query).encode()
        if len(signatures) != 1 or not hmac.compare_digest(signatures[0].encode("utf-8", "replace"), expected):
            raise LinkRefused("signature: not valid for this URL; use the link unchanged, or request a new one")
        # The signature is valid, so `sign` wrote the expiry time, and it is a number.
        if int(dict(query)[_EXPIRES]) <= now_s:
            raise LinkRefused("expires: this link has expired; request a new one")

    def _signature(self, path: str, query: Sequence[tuple[str, str]]) -> str:
        """Return the HMAC of a path and a query in hexadecimal digits. Replaces characters that UTF-8 cannot encode."""
        signed = f"{quote(path, errors='replace')}?{urlencode(query, errors='replace')}"
        return hmac.new(self._secret, _PURPOSE + signed.encode(), hashlib.sha256).hexdigest()


def is_link(path: str, query: str) -> bool:
    """Return whether a URL looks like a signed link to an image. `Links.check` verifies it."""
    return path.startswith(f"{PATH}/") and f"{_SIGNATURE}=" in query


def expiry(now_s: float, lifetime_s: int | None) -> int:
    """Return when a link created at `now_s` expires, in seconds since 1970.

    A lifetime of None means `DEFAULT_LIFETIME_S`. Raises InvalidRequest if the lifetime is out of range.
    """
    if lifetime_s is None:
        lifetime_s = DEFAULT_LIFETIME_S
    if not 1 <= lifetime_s <= MAX_LIFETIME_S:
        raise InvalidRequest("expires_in_s", lifetime_s, f"1 to {MAX_LIFETIME_S}")
    return int(now_s) + lifetime_s


def _load_or_create_secret(settings: Settings) -> bytes:
    """Return the secret from the file `link-secret` in `data_dir`. Generates it if the file is missing.

    Raises InvalidSetting if the file cannot be written or read, or if it is too short.
    """
    path, writer = settings.data_dir / "link-secret", AtomicWriter(settings.data_dir)
    try:
        writer.prepare()
        writer.write_once(path.name, secrets.token_hex(32).encode())
        secret = path.read_bytes()
    except OSError as error:
        raise InvalidSetting(
            f"link_secret: not set, and a secret cannot be stored in or read from {path} ({error.strerror or error});"
            " set link_secret, or give this process access to data_dir and its files"
        ) from error
    if len(secret) < _MIN_SECRET_BYTES:  # with an empty secret, anyone could sign links
        raise InvalidSetting(
            f"link_secret: not set, and the stored secret {path} is damaged. The file has {len(secret)} bytes but needs"
            f" at least {_MIN_SECRET_BYTES}. Delete it to generate a new secret; existing links then stop working"
        )
    return secret

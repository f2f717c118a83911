"""Signed links: URLs that give an image to anyone who has them, without an API key, until they expire.

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
MAX_LIFETIME_S = 7 * 24 * 3600  # as in S3
_MIN_SECRET_BYTES = 16  # as in the setting `link_secret`
_EXPIRES, _SIGNATURE = "expires", "signature"
_PURPOSE = b"sd35 link 1\n"  # domain separation: any other use of the secret gives another signature


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
        """Use the secret from the settings, or the one stored in `data_dir`, which is generated if it is missing.

        Raises InvalidSetting if the secret cannot be stored, or if the stored one is damaged.
        """
        given = settings.link_secret
        return cls(given.get_secret_value().encode() if given else _stored_secret(settings), settings.public_url)

    def sign(self, path: str, parameters: Sequence[tuple[str, str]], expires_s: int, base_url: str) -> str:
        """Return the signed URL of `path`, valid until `expires_s` (seconds since 1970).

        `base_url` is the base URL of the current request. The setting `public_url` overrides it.
        """
        assert not {_EXPIRES, _SIGNATURE} & {name for name, _ in parameters}
        query = [*parameters, (_EXPIRES, str(expires_s))]
        base = (self._public_url or base_url).rstrip("/")
        return f"{base}{quote(path)}?{urlencode([*query, (_SIGNATURE, self._signature(path, query))])}"

    def check(self, path: str, parameters: Sequence[tuple[str, str]], now_s: float) -> None:
        """Check the signature and expiry time of a request. Raises LinkRefused.

        `parameters` must have their original order, because the signature covers it.
        """
        signatures = [value for name, value in parameters if name == _SIGNATURE]
        query = [pair for pair in parameters if pair[0] != _SIGNATURE]
        expected = self._signature(path, query).encode()
        if len(signatures) != 1 or not hmac.compare_digest(signatures[0].encode("utf-8", "replace"), expected):
            raise LinkRefused("signature: not valid for this URL; use the link exactly as you received it")
        # The signature is valid, so `sign` wrote the expiry time.
        if int(dict(query)[_EXPIRES]) <= now_s:
            raise LinkRefused("expires: this link has expired; request a new one")

    def _signature(self, path: str, query: Sequence[tuple[str, str]]) -> str:
        signed = f"{quote(path, errors='replace')}?{urlencode(query, errors='replace')}"
        return hmac.new(self._secret, _PURPOSE + signed.encode(), hashlib.sha256).hexdigest()


def is_link(path: str, query: str) -> bool:
    """Return whether a URL looks like a signed link to an image. `Links.check` verifies it."""
    return path.startswith(f"{PATH}/") and f"{_SIGNATURE}=" in query


def expiry(now_s: float, lifetime_s: int | None) -> int:
    """Return the expiry time of a link created now, in seconds since 1970. None means `DEFAULT_LIFETIME_S`.

    Raises InvalidRequest if the lifetime is out of range.
    """
    if lifetime_s is None:
        lifetime_s = DEFAULT_LIFETIME_S
    if not 1 <= lifetime_s <= MAX_LIFETIME_S:
        raise InvalidRequest("expires_in_s", lifetime_s, f"1 to {MAX_LIFETIME_S}")
    return int(now_s) + lifetime_s


def _stored_secret(settings: Settings) -> bytes:
    path, writer = settings.data_dir / "link-secret", AtomicWriter(settings.data_dir)
    try:
        writer.prepare()
        writer.write_once(path.name, secrets.token_hex(32).encode())
        secret = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror or error}: {path}"
        raise InvalidSetting(f"link_secret: not set, and it cannot be stored in data_dir: {reason}") from error
    if len(secret) < _MIN_SECRET_BYTES:  # with an empty secret, anyone could sign links
        raise InvalidSetting(
            f"link_secret: not set, and {path} is damaged: got {len(secret)} bytes; allowed: at least"
            f" {_MIN_SECRET_BYTES}. Delete the file to generate a new secret; existing links then stop working"
        )
    return secret

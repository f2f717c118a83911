"""Signed links: URLs that give an image to anyone who has them, without an API key, until they expire.

The signature covers the URL without its host: the path, the parameters in order, and the expiry time. Any other image,
format or expiry needs another signature.
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
_PURPOSE = b"sd35 link 1\n"  # domain separation: no other use of the secret gives the same signature


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
        """Use the secret from the settings, or generate one once and store it in `data_dir`.

        Raises InvalidSetting if the secret cannot be stored.
        """
        given = settings.link_secret
        return cls(given.get_secret_value().encode() if given else _stored_secret(settings), settings.public_url)

    def sign(self, path: str, parameters: Sequence[tuple[str, str]], expires_s: int, base_url: str) -> str:
        """Return the signed URL of `path`, valid until `expires_s` (seconds since 1970).

        `base_url` is that of the current request; `public_url` overrides it.
        """
        assert not {_EXPIRES, _SIGNATURE} & {name for name, _ in parameters}
        query = [*parameters, (_EXPIRES, str(expires_s))]
        base = (self._public_url or base_url).rstrip("/")
        return f"{base}{quote(path)}?{urlencode([*query, (_SIGNATURE, self._signature(path, query))])}"

    def check(self, path: str, parameters: Sequence[tuple[str, str]], now_s: float) -> None:
        """Check the parameters of a request, in the order received. Raises LinkRefused."""
        signatures = [value for name, value in parameters if name == _SIGNATURE]
        query = [pair for pair in parameters if pair[0] != _SIGNATURE]
        expected = self._signature(path, query).encode()
        if len(signatures) != 1 or not hmac.compare_digest(signatures[0].encode("utf-8", "replace"), expected):
            raise LinkRefused("signature: it is not this service's for this address; a link is to be used as it came")
        # The signature is valid, so `sign` wrote the expiry time.
        if int(dict(query)[_EXPIRES]) <= now_s:
            raise LinkRefused("expires: this link has expired; ask for a new one")

    def _signature(self, path: str, query: Sequence[tuple[str, str]]) -> str:
        signed = f"{quote(path, errors='replace')}?{urlencode(query, errors='replace')}"
        return hmac.new(self._secret, _PURPOSE + signed.encode(), hashlib.sha256).hexdigest()


def is_link(path: str, query: str) -> bool:
    """Whether a URL claims to be a signed link to an image. `Links.check` verifies the claim."""
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
        raise InvalidSetting(f"link_secret: none is set, and none can be stored in data_dir: {reason}") from error
    if len(secret) < _MIN_SECRET_BYTES:  # with an empty secret, anybody could sign links
        raise InvalidSetting(
            f"link_secret: none is set, and {path} is damaged: it has {len(secret)} bytes; allowed: at least"
            f" {_MIN_SECRET_BYTES}. Delete it to generate a new secret; links signed so far then stop working"
        )
    return secret

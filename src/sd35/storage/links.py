"""Links that give an image to whoever has them, without a key, until they expire.

What is signed is the address without its host: path, parameters in their order, and when it expires. Any other image,
format or time is another address, and has another signature.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from sd35.errors import InvalidRequest, InvalidSetting, LinkRefused
from sd35.settings import Settings
from sd35.storage.whole_files import FileStage

PATH = "/v1/artifacts"  # under which images are reached
LASTING_S = 3600
MOST_LASTING_S = 7 * 24 * 3600  # S3 signs for no longer either
_LEAST_SECRET_BYTES = 16  # as of the setting
_EXPIRES, _SIGNATURE = "expires", "signature"
_PURPOSE = b"sd35 link 1\n"  # so that no other use of the secret ever makes the same signature


class Links:
    """Signs with `secret`, and checks. `public_url` is where clients reach the service, None: where they just did."""

    def __init__(self, secret: bytes, public_url: str | None = None) -> None:
        self._secret, self._public_url = secret, public_url

    @classmethod
    def of(cls, settings: Settings) -> "Links":
        """With the settings' secret, or one that is drawn once and kept. Raises InvalidSetting where it cannot be."""
        given = settings.link_secret
        return cls(given.get_secret_value().encode() if given else _kept_secret(settings), settings.public_url)

    def link(self, path: str, parameters: Sequence[tuple[str, str]], expires_s: int, reached_at: str) -> str:
        """The signed address of `path`, good until `expires_s`; `reached_at` is where it was asked for."""
        assert not {_EXPIRES, _SIGNATURE} & {name for name, _ in parameters}
        query = [*parameters, (_EXPIRES, str(expires_s))]
        base = (self._public_url or reached_at).rstrip("/")
        return f"{base}{quote(path)}?{urlencode([*query, (_SIGNATURE, self._signature(path, query))])}"

    def check(self, path: str, parameters: Sequence[tuple[str, str]], now_s: float) -> None:
        """Whether a link may be followed, its parameters as they came. Raises LinkRefused."""
        signatures = [value for name, value in parameters if name == _SIGNATURE]
        query = [pair for pair in parameters if pair[0] != _SIGNATURE]
        right = self._signature(path, query).encode()
        if len(signatures) != 1 or not hmac.compare_digest(signatures[0].encode("utf-8", "replace"), right):
            raise LinkRefused("signature: it is not this service's for this address; a link is to be used as it came")
        # Signed here, so that it is as it was written here.
        if int(dict(query)[_EXPIRES]) <= now_s:
            raise LinkRefused("expires: this link has expired; ask for a new one")

    def _signature(self, path: str, query: Sequence[tuple[str, str]]) -> str:
        signed = f"{quote(path, errors='replace')}?{urlencode(query, errors='replace')}"
        return hmac.new(self._secret, _PURPOSE + signed.encode(), hashlib.sha256).hexdigest()


def is_link(path: str, query: str) -> bool:
    """Whether an address claims to be a signed link to an image; `Links.check` says whether it is."""
    return path.startswith(f"{PATH}/") and f"{_SIGNATURE}=" in query


def expiry(now_s: float, lasting_s: int | None) -> int:
    """When a link of this moment expires, in seconds since 1970; None lasts an hour. Raises InvalidRequest."""
    if lasting_s is None:
        lasting_s = LASTING_S
    if not 1 <= lasting_s <= MOST_LASTING_S:
        raise InvalidRequest("expires_in_s", lasting_s, f"1 to {MOST_LASTING_S}")
    return int(now_s) + lasting_s


def _kept_secret(settings: Settings) -> bytes:
    path, stage = settings.data_dir / "link-secret", FileStage(settings.data_dir)
    try:
        stage.prepare()
        stage.write_once(path.name, secrets.token_hex(32).encode())
        secret = path.read_bytes()
    except OSError as error:
        reason = f"{error.strerror or error}: {path}"
        raise InvalidSetting(f"link_secret: none is set, and none can be kept in data_dir: {reason}") from error
    if len(secret) < _LEAST_SECRET_BYTES:  # with an empty secret, anybody could sign links
        raise InvalidSetting(
            f"link_secret: none is set, and {path} is damaged: it has {len(secret)} bytes; allowed: at least"
            f" {_LEAST_SECRET_BYTES}. Delete it to have a new one drawn, which ends all links that were signed so far"
        )
    return secret

"""Sign webhooks as in Standard Webhooks 1.0.0: https://github.com/standard-webhooks/standard-webhooks.

Receivers can verify signatures with the libraries of that project, which exist for many languages.
"""

import base64
import binascii
import hmac

from sd35.errors import InvalidSetting
from sd35.settings import Settings

_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64


def secret_of(settings: Settings) -> bytes | None:
    """Return the signing key from the setting `webhook_secret`, or None if the setting is not set.

    Raises InvalidSetting if the setting is not a valid secret. The message does not contain it.
    """
    if settings.webhook_secret is None:
        return None
    text = settings.webhook_secret.get_secret_value()
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or not _MIN_BYTES <= len(secret) <= _MAX_BYTES:
        raise InvalidSetting(
            f"webhook_secret: the value must be {_PREFIX} followed by {_MIN_BYTES} to {_MAX_BYTES} random bytes in"
            f' base64; create one with: echo "{_PREFIX}$(openssl rand -base64 32)"'
        )
    return secret


def headers(secret: bytes, message_id: str, now_s: float, body: bytes) -> dict[str, str]:
    """Return the headers that sign a webhook: its ID, the time, and the signature of ID, time and body.

    Args:
        secret: Key of the HMAC.
        message_id: ID of the webhook.
        now_s: The time to sign, in seconds since 1970.
        body: The body to sign.
    """
    timestamp = str(int(now_s))
    digest = hmac.digest(secret, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "Webhook-Id": message_id,
        "Webhook-Timestamp": timestamp,
        "Webhook-Signature": f"v1,{base64.b64encode(digest).decode()}",
    }

"""Signs webhooks as Standard Webhooks has it: https://github.com/standard-webhooks/standard-webhooks, version 1.0.0.

Its libraries verify them in most languages.
"""

import base64
import binascii
import hmac

from sd35.errors import InvalidSetting
from sd35.settings import Settings

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64


def secret_of(settings: Settings) -> bytes | None:
    """The bytes to sign with; None where there is no secret. Raises InvalidSetting, which does not tell the secret."""
    if settings.webhook_secret is None:
        return None
    text = settings.webhook_secret.get_secret_value()
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or not _LEAST_BYTES <= len(secret) <= _MOST_BYTES:
        raise InvalidSetting(
            f"webhook_secret: got something else; allowed: {_PREFIX} and then {_LEAST_BYTES} to {_MOST_BYTES} random"
            f' bytes in base64, as echo "{_PREFIX}$(openssl rand -base64 32)" makes'
        )
    return secret


def headers(secret: bytes, message_id: str, now_s: float, body: bytes) -> dict[str, str]:
    """What says of a body which message it is, when it was sent, and that it is from who has the secret."""
    timestamp = str(int(now_s))
    digest = hmac.digest(secret, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "Webhook-Id": message_id,
        "Webhook-Timestamp": timestamp,
        "Webhook-Signature": f"v1,{base64.b64encode(digest).decode()}",
    }

"""Checks of the environment variables that `huggingface_hub` and its HTTP client read.

The library does not check them. Without these checks, a malformed variable would raise an exception that does not name
the variable.
"""

import os
from collections.abc import Callable, Mapping
from types import ModuleType
from urllib.parse import urlsplit

from sd35.errors import InvalidSetting
from sd35.settings.proxies import check_proxies, is_address

_MAX_TIMEOUT_S = 24 * 60 * 60
_LOG_IN = "run `hf auth login`, or set HF_TOKEN"
_ADDRESS = "an address such as https://huggingface.co"
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # in the order in which the library reads them


def hub_constants() -> ModuleType:
    """Import `huggingface_hub.constants`. Raises InvalidSetting if a variable that the import reads is not valid."""
    check_import_variables()
    from huggingface_hub import constants

    return constants


def check_import_variables() -> None:
    """Raise InvalidSetting if an environment variable would make the import of `huggingface_hub` fail."""
    for name, (parse, allowed) in _READ_ON_IMPORT.items():
        if (value := os.environ.get(name)) is not None:
            try:
                parse(value)
            except ValueError as error:
                raise InvalidSetting(f"{name}: got {_shown(value)}; allowed: {allowed}") from error


def check_request_variables() -> None:
    """Raise InvalidSetting if an environment variable for addresses, headers or certificates would break requests."""
    constants = hub_constants()
    if not is_address(constants.ENDPOINT, ("http", "https")):
        raise InvalidSetting(f"HF_ENDPOINT: got {_shown(constants.ENDPOINT)}; allowed: {_ADDRESS}")
    check_proxies()
    origin = constants.HF_HUB_USER_AGENT_ORIGIN
    if origin and (position := _first_unsendable(origin, " ")) is not None:
        raise InvalidSetting(
            f"HF_HUB_USER_AGENT_ORIGIN: got {origin[position]!a} as character {position + 1}; allowed: printable ASCII"
        )
    for name, exists in (("SSL_CERT_FILE", os.path.isfile), ("SSL_CERT_DIR", os.path.isdir)):
        if (path := os.environ.get(name)) and not exists(path):
            kind = "file" if name == "SSL_CERT_FILE" else "directory"
            raise InvalidSetting(f"{name}: got {_shown(path)}; allowed: an existing {kind} of certificates")


def hub_token() -> str | None:
    """Return the token for requests to the hub, or None if there is no token.

    Raises InvalidSetting if the token cannot be read or cannot be sent in an HTTP header. The message never contains
    the token.
    """
    constants = hub_constants()
    from huggingface_hub import get_token
    from huggingface_hub.errors import OIDCError

    try:
        token = get_token()
    except OIDCError as error:
        raise InvalidSetting(f"HF_OIDC_RESOURCE: {error}; correct or unset the variable") from error
    except OSError as error:
        file = error.filename or constants.HF_TOKEN_PATH
        raise InvalidSetting(f"the token's file {file} cannot be read: {error.strerror}; {_LOG_IN}") from error
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"the token's file {constants.HF_TOKEN_PATH} is not UTF-8; {_LOG_IN}") from error
    if token is not None and (position := _first_unsendable(token)) is not None:
        source = next((name for name in _TOKEN_VARIABLES if os.environ.get(name)), constants.HF_TOKEN_PATH)
        raise InvalidSetting(
            f"{source}: got a token with {token[position]!a} as character {position + 1}; allowed: visible ASCII"
            f" characters; copy it again from {constants.ENDPOINT}/settings/tokens"
        )
    return token


def _check_timeout(value: str) -> None:
    """Raise ValueError if a value is not a whole number of seconds in the range. Sockets refuse far longer timeouts."""
    if not 0 <= int(value) <= _MAX_TIMEOUT_S:
        raise ValueError


_SECONDS = f"a whole number of seconds, 0 to {_MAX_TIMEOUT_S}"
# By variable: a function that raises ValueError for a malformed value, and a description of the allowed values.
_READ_ON_IMPORT: Mapping[str, tuple[Callable[[str], object], str]] = {
    "HF_ENDPOINT": (urlsplit, _ADDRESS),
    "HF_HUB_DOWNLOAD_TIMEOUT": (_check_timeout, _SECONDS),
    "HF_HUB_ETAG_TIMEOUT": (_check_timeout, _SECONDS),
}


def _first_unsendable(text: str, extra: str = "") -> int | None:
    """Return the index of the first character that is not visible ASCII and not in `extra`, or None."""
    return next((index for index, char in enumerate(text) if not "!" <= char <= "~" and char not in extra), None)


def _shown(value: str, limit: int = 80) -> str:
    """Format a value in ASCII for an error message, shortened to `limit`. Invisible characters become escapes."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."

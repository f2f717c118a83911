"""Convert errors of downloads to messages that say what to do."""

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from sd35.checkpoints.hub.environment import check_request_variables, hub_token
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import DownloadFailed
from sd35.settings.directories import why_not_writable

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
CORRECT_ENTRY = "correct its entry in the file of SD35_REGISTRY, or update sd35 if the name is built in"


@contextmanager
def download_errors(entry: RegisteredCheckpoint) -> Iterator[None]:
    """Convert errors of the hub's library, of HTTP and of the disk in a `with` block to DownloadFailed.

    Before the block, check the environment variables and the token. Raises InvalidSetting if one of them is not valid.
    """
    check_request_variables()
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        hub_token()
        yield
    except OfflineModeIsEnabled as error:
        raise DownloadFailed("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids downloads; unset both") from error
    except HfHubHTTPError as error:
        raise DownloadFailed(_http_error(entry, error)) from error
    except (HTTPError, InvalidURL) as error:
        raise DownloadFailed(_connection_error(entry, error)) from error
    except ssl.SSLError as error:  # from reading certificates; TLS errors of a connection are ConnectError
        why = f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read: {error}"
        raise DownloadFailed(f"{why}; correct the variables, or unset them") from error
    except OSError as error:
        raise DownloadFailed(_disk_error(entry, error)) from error


def _http_error(entry: RegisteredCheckpoint, error: "HfHubHTTPError") -> str:
    """Explain a response with an error status, and say what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if status in {401, 403} or isinstance(error, GatedRepoError):
        return _access_error(entry, error)
    if isinstance(error, RevisionNotFoundError):
        return f"{entry.repository} has no revision {entry.revision}; {CORRECT_ENTRY}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{_endpoint()} has no repository {entry.repository}, or you have no access to it; {CORRECT_ENTRY}"
    if status == 404:
        return (
            f"{error.response.url.path} does not exist at {_endpoint()}; check that HF_ENDPOINT is the address of a"
            " Hugging Face hub"
        )
    return f"{_endpoint()} answered with status {status}; {retry_command(entry)} later to resume"


def _access_error(entry: RegisteredCheckpoint, error: "HfHubHTTPError") -> str:
    """Explain status 401 (the token or the repository is unknown) or 403 (no access), and say what to do."""
    page, tokens = f"{_endpoint()}/{entry.repository}", f"{_endpoint()}/settings/tokens"
    if error.response.status_code == 401 and hub_token() is None:
        return (
            f"{entry.repository} is gated or does not exist, and no token was found: check its name, accept its licence"
            f" at {page}, get a token at {tokens}, and set HF_TOKEN or run `hf auth login`; then {retry_command(entry)}"
        )
    if error.response.status_code == 401:
        return (
            "the hub does not accept the token (from HF_TOKEN or `hf auth login`): it is wrong or has expired; create"
            f" another at {tokens}, then {retry_command(entry)}"
        )
    message = f" (the hub says: {error.server_message})" if error.server_message else ""
    return (
        f"the token's account has no access to {entry.repository}{message}: accept its licence at {page}, and give"
        f" the token access to gated repositories at {tokens}; then {retry_command(entry)}"
    )


def _connection_error(entry: RegisteredCheckpoint, error: Exception) -> str:
    """Explain why the hub cannot be reached or a connection ended, and say what to do."""
    from httpx2 import ConnectError, ProxyError, TimeoutException

    host = urlsplit(_endpoint()).hostname or _endpoint()
    proxy = _proxy(host)
    if isinstance(error, ProxyError) or (proxy and isinstance(error, ConnectError)):
        return f"the proxy {proxy} cannot reach {host} ({error}): correct HTTPS_PROXY, or list the host in NO_PROXY"
    if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
        return (
            f"the host name {host} cannot be resolved ({error}): check the network, HF_ENDPOINT, and HTTPS_PROXY if"
            " the hub is behind a proxy"
        )
    if isinstance(error, ConnectError):
        return f"{host} cannot be reached ({error}): check the network, HF_ENDPOINT and HTTPS_PROXY"
    problem = "timed out" if isinstance(error, TimeoutException) else f"broke off ({error})"
    return f"the connection to {host} {problem}; {retry_command(entry)} to resume"


def _disk_error(entry: RegisteredCheckpoint, error: OSError) -> str:
    """Explain why the cache cannot be used, and say what to do."""
    from huggingface_hub import constants

    cache, retry = constants.HF_HUB_CACHE, f"{retry_command(entry)} to resume"
    if error.errno in _DISK_FULL:
        return f"the disk of {cache} is full: free some space, or set HF_HOME to a directory elsewhere; then {retry}"
    if isinstance(error, PermissionError) and (why := why_not_writable(Path(cache))):
        return f"{why}; or set HF_HOME to a directory elsewhere; then {retry}"
    return f"{error.filename or cache} cannot be used ({error.strerror or error}): fix this or HF_HOME, then {retry}"


def retry_command(entry: RegisteredCheckpoint) -> str:
    """Return the part of a message that says how to try again."""
    return f"run `sd35 pull {entry.name}` again"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _proxy(host: str) -> str | None:
    """Return HOST:PORT of the proxy for requests to the hub, without its password, or None without a proxy."""
    proxies = getproxies()
    url = proxies.get(urlsplit(_endpoint()).scheme) or proxies.get("all")
    if not url or proxy_bypass(host):
        return None
    parts = urlsplit(url if "//" in url else f"//{url}")
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its cause, the cause of the cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""What can go wrong between here and the hub, each as one sentence that says what to do."""

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

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def translated(registered: RegisteredCheckpoint) -> Iterator[None]:
    """Turn what the hub's library, HTTP and the disk raise into DownloadFailed; first check what requests read.

    Raises InvalidSetting if a variable, or the token, cannot be used.
    """
    check_request_variables()
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        hub_token()
        yield
    except OfflineModeIsEnabled as error:
        raise DownloadFailed("HF_HUB_OFFLINE is set: nothing is fetched; unset it to fetch") from error
    except HfHubHTTPError as error:
        raise DownloadFailed(_refusal(registered, error)) from error
    except (HTTPError, InvalidURL) as error:
        raise DownloadFailed(_connection(registered, error)) from error
    except ssl.SSLError as error:  # of a connection, it comes as httpx2's ConnectError
        raise DownloadFailed(f"the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({error})") from error
    except OSError as error:
        raise DownloadFailed(_disk(registered, error)) from error


def _refusal(registered: RegisteredCheckpoint, error: "HfHubHTTPError") -> str:
    """The hub answered, with an error."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if status in {401, 403} or isinstance(error, GatedRepoError):
        return _not_allowed(registered, error)
    where = "its entry in the file of SD35_REGISTRY, or this version of sd35 is too old"
    if isinstance(error, RevisionNotFoundError):
        return f"{registered.repository} has no revision {registered.revision}: correct {where}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{_endpoint()} has no repository {registered.repository}, or hides it from you: correct {where}"
    if status == 404:
        return f"{error.response.url.path} is not at {_endpoint()}; is HF_ENDPOINT a server of the hub's protocol?"
    return f"{_endpoint()} answered with {status}; {_again(registered)} later, which goes on where this stopped"


def _not_allowed(registered: RegisteredCheckpoint, error: "HfHubHTTPError") -> str:
    """401: the hub does not know who asks, and hides what is not there as well; 403: it knows, and says no."""
    page, tokens = f"{_endpoint()}/{registered.repository}", f"{_endpoint()}/settings/tokens"
    if error.response.status_code == 401 and hub_token() is None:
        return (
            f"{registered.repository} is not for everyone, or not there, and no token was found: accept its licence at"
            f" {page}, make a token at {tokens}, and give it with `hf auth login` or HF_TOKEN; then"
            f" {_again(registered)}"
        )
    if error.response.status_code == 401:
        return (
            "the hub does not accept the token that was sent (HF_TOKEN, or of `hf auth login`): it is wrong, or has"
            f" ended; make another at {tokens}, then {_again(registered)}"
        )
    said = f" (the hub says: {error.server_message})" if error.server_message else ""
    return (
        f"the account of the token may not read {registered.repository}{said}: accept its licence at {page}, and let"
        f" the token read gated repositories at {tokens}; then {_again(registered)}"
    )


def _connection(registered: RegisteredCheckpoint, error: Exception) -> str:
    """No answer, or not all of it."""
    from httpx2 import ConnectError, ProxyError, TimeoutException

    host = urlsplit(_endpoint()).hostname or _endpoint()
    proxy = _proxy(host)
    if isinstance(error, ProxyError) or (proxy and isinstance(error, ConnectError)):
        return f"the proxy {proxy} does not lead to {host} ({error}): correct HTTPS_PROXY, or name the host in NO_PROXY"
    if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
        return (
            f"the name {host} cannot be looked up ({error}): check the network, HF_ENDPOINT, and HTTPS_PROXY where the"
            " hub is behind a proxy"
        )
    if isinstance(error, ConnectError):
        return f"{host} cannot be reached ({error}): check the network, HF_ENDPOINT and HTTPS_PROXY"
    what = "is silent" if isinstance(error, TimeoutException) else f"breaks off ({error})"
    return f"the connection to {host} {what}; {_again(registered)}, which goes on where this stopped"


def _disk(registered: RegisteredCheckpoint, error: OSError) -> str:
    from huggingface_hub import constants

    cache, again = constants.HF_HUB_CACHE, f"{_again(registered)}, which goes on where this stopped"
    if error.errno in _NO_ROOM:
        return f"the disk of {cache} is full: free some and {again}; or name a directory elsewhere with HF_HOME"
    if isinstance(error, PermissionError) and (why := why_not_writable(Path(cache))):
        return f"{why}; or name a directory elsewhere with HF_HOME; then {again}"
    return (
        f"{error.filename or cache} cannot be used ({error.strerror or error}): correct that, or HF_HOME, and {again}"
    )


def _again(registered: RegisteredCheckpoint) -> str:
    return f"run `sd35 pull {registered.name}` again"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _proxy(host: str) -> str | None:
    """The proxy that requests to the hub take, without the password it may carry."""
    given = getproxies()
    url = given.get(urlsplit(_endpoint()).scheme) or given.get("all")
    if not url or proxy_bypass(host):
        return None
    parts = urlsplit(url if "//" in url else f"//{url}")
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

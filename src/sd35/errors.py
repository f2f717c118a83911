"""All errors meant for users. Code that calls a library turns the library's errors into these.

Sd35Error
├── InvalidRequest        a field of a request is invalid              (HTTP 422, exit 2)
├── UnknownModel          the named model is not served                (HTTP 404, exit 2)
├── NotAuthenticated      the API key is missing or invalid            (HTTP 401, exit 1)
├── NotAllowed            the client's role or limits forbid it        (HTTP 403, exit 1)
├── TooMany               the client has reached its own limit         (HTTP 429, exit 1)
├── UntrustedRequest      another web site may have sent it            (HTTP 403, exit 1)
│   ├── HostNotAllowed    the host name is not allowed                 (HTTP 403, exit 1)
│   └── OriginNotAllowed  a web page of another origin sent it         (HTTP 403, exit 1)
├── NotAcceptable         the client accepts no available image format (HTTP 406, exit 2)
├── LinkRefused           a link is expired or has a wrong signature   (HTTP 403, exit 1)
├── Overloaded            the service has no room for another image    (HTTP 429, exit 1)
├── NotReady              the service is loading, closing or broken    (HTTP 503, exit 1)
├── GenerationFailed      this image could not be generated            (HTTP 500, exit 1)
│   └── NumericalFailure  its values became invalid                    (HTTP 500, exit 1)
├── ContentRefused        the operator's content filter refused it     (HTTP 422, exit 1)
├── JobEnded              the job of an idempotency key has no image   (HTTP status of the job, exit 1)
├── IdempotencyConflict   a key was used before with another body      (HTTP 409, exit 1)
├── StoreUnavailable      the database or image store does not answer  (HTTP 503, exit 1)
├── NotReplayable         a file does not record how it was generated  (exit 2)
├── InvalidSetting        a setting or flag is invalid                 (exit 2)
├── CheckpointError       a checkpoint is missing or unusable          (exit 1)
│   └── NotCompiled       its graphs or engines are not built yet      (exit 1)
├── BuildFailed           a graph or an engine cannot be built         (exit 1)
├── DownloadFailed        a download from the hub failed               (exit 1)
├── DoesNotFit            the models do not fit in memory              (exit 1)
├── BackendUnavailable    a backend cannot run on this machine         (exit 1)
└── MeasuringFailed       a server cannot be started or measured       (exit 1)

docs/reference/errors.md has the meaning and the remedy of each, from the docstrings of the classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, TypeAlias

from sd35 import error_base
from sd35.error_base import Sd35Error as Sd35Error  # noqa: PLC0414  other modules import it from here
from sd35.error_base import shorten

NumericalFailureKind: TypeAlias = Literal["not_finite", "uniform"]


class InvalidRequest(error_base.FieldError):
    """A field of a request is invalid.

    Remedy: Correct the field. The error names it, the value received and the allowed values.
    """

    exit_code = 2
    status = 422


class UnknownModel(Sd35Error):  # noqa: N818  the names read as sentences: "raise UnknownModel"
    """The request names a model that is not served.

    Remedy: Use a name that the error lists, or that `/v1/models` lists.
    """

    exit_code = 2
    status = 404

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(f"model: got {shorten(name)}; allowed: {', '.join(served)}")
        self.name, self.served = name, tuple(served)


class NotAuthenticated(Sd35Error):  # noqa: N818
    """The API key is missing or invalid.

    Remedy: Send a valid key: `Authorization: Bearer sd35_...`. `sd35 keys add` creates one.
    """

    status = 401


class NotAllowed(Sd35Error):  # noqa: N818
    """The client is known, but its role or its limits do not allow this request.

    Remedy: Use an administrator's key, or request fewer or smaller images.
    """

    status = 403


class UntrustedRequest(error_base.FieldError):
    """A browser may have sent the request on behalf of another web site.

    Remedy: See `HostNotAllowed` and `OriginNotAllowed`.
    """

    status = 403


class HostNotAllowed(UntrustedRequest):
    """The request's `Host` header names a host that is not allowed. Servers with API keys allow any host.

    Remedy: Add the name to the setting `allowed_hosts`. For `sd35 serve`, you can create an API key instead.
    """

    def __init__(self, host: str) -> None:
        allowed = "an IP address, localhost, and the hosts in the settings public_url and allowed_hosts"
        super().__init__("host", host, allowed)


class OriginNotAllowed(UntrustedRequest):
    """A web page of another origin sent a request without an API key, or with a key that the browser adds by itself.

    Remedy: Add the page's origin to the setting `cors_origins`.
    """

    def __init__(self, header: str, value: object) -> None:
        origins = "the server's own origin, and the origins in the settings public_url and cors_origins"
        sites = "same-origin or none; pages of other origins must also send the header Origin"
        super().__init__(header, value, origins if header == "origin" else sites)


class TooMany(error_base.RetryError):
    """The client has reached its own limit. Other clients are not affected.

    Remedy: Send the request again after the seconds in `Retry-After`.
    """


class NotAcceptable(Sd35Error):  # noqa: N818
    """The request's `Accept` header allows none of the available formats.

    Remedy: Accept one of the formats that the error lists.
    """

    exit_code = 2
    status = 406

    def __init__(self, got: str, allowed: Sequence[str]) -> None:
        super().__init__(f"accept: got {shorten(got)}; allowed: {', '.join(allowed)}")
        self.got, self.allowed = got, tuple(allowed)


class LinkRefused(Sd35Error):  # noqa: N818
    """A link to an image has expired, or its signature does not match.

    Remedy: Create a new link, and use it unchanged.
    """

    status = 403


class Overloaded(error_base.RetryError):
    """The service is at its limit and accepts no more images or jobs for now.

    Remedy: Send the request again after the seconds in `Retry-After`. The operator can raise the settings
    `max_in_flight`, `max_wait_s` and `max_jobs`.
    """


class NotReady(Sd35Error):  # noqa: N818
    """The service is still loading, is closing, or its engine has failed.

    Remedy: Wait until `/readyz` answers 200. If the engine has failed, restart the service.
    """

    status = 503

    def __init__(self, state: str, retry_after_s: float, remedy: str | None = None) -> None:
        super().__init__(f"the service is {state}; {remedy or f'try again in {retry_after_s:.0f} s'}")
        self.state, self.retry_after_s = state, retry_after_s

    @classmethod
    def after_engine_failure(cls, retry_after_s: float) -> Self:
        """Build the error for an engine with a failed thread. Waiting does not help: the service must be restarted."""
        remedy = "its operator must restart it (its log shows the reason)"
        return cls("broken because its engine has failed", retry_after_s, remedy)


class GenerationFailed(Sd35Error):  # noqa: N818
    """The image could not be generated.

    Remedy: Try again. If it fails again, read the server's log. If an engine thread failed, restart the service.
    """

    status = 500


class NumericalFailure(GenerationFailed):
    """The numbers of an image became invalid: some are not finite, or all pixels have one colour.

    Remedy: Try another seed or other values. The operator can set a wider `precision`, or a `fallback`.

    Attributes:
        kind: "not_finite" or "uniform", which means one colour.
        happened: What happened, in which precision and in which step. The message begins with it.
    """

    def __init__(self, kind: NumericalFailureKind, happened: str, remedy: str) -> None:
        super().__init__(f"{happened}; {remedy}")
        self.kind, self.happened = kind, happened


class ContentRefused(Sd35Error):  # noqa: N818
    """The operator's content filter refuses the prompt or the image, or the filter failed.

    Remedy: Change the prompt. If the message says that the filter failed, the operator must repair the filter.
    """

    status = 422


class JobEnded(Sd35Error):  # noqa: N818
    """A request repeats an idempotency key, but the job of that key failed, was cancelled, or its image was removed.

    Remedy: Send the request with a new idempotency key.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class IdempotencyConflict(Sd35Error):  # noqa: N818
    """The idempotency key was used before with another body.

    Remedy: Send the same body again, or use a new key.
    """

    status = 409

    def __init__(self, key: str) -> None:
        super().__init__(
            f"idempotency-key: {shorten(key)} was used before with another body; allowed: the same body, or a new key"
        )


class StoreUnavailable(Sd35Error):  # noqa: N818
    """The database or the image store does not answer or is full, or the API keys were lost.

    Remedy: Send the request again later. The operator must repair the store that the error names. If the API keys were
    lost, the error shows the commands to use.
    """

    status = 503


class NotReplayable(Sd35Error):  # noqa: N818
    """A file is not a PNG file of this project, or has no complete record of its request.

    Remedy: Use the unchanged PNG file that the service or `sd35 generate` wrote.
    """

    exit_code = 2


class InvalidSetting(Sd35Error):  # noqa: N818
    """A flag, an environment variable or a key of the settings file has an invalid value.

    Remedy: Correct the value. The error names the flag, variable or key, and the allowed values.
    """

    exit_code = 2


class CheckpointError(Sd35Error):
    """A checkpoint is missing or cannot be used.

    Remedy: Follow the error's message. `sd35 models` lists the checkpoints, and `sd35 doctor` checks them.
    """


class NotCompiled(CheckpointError):  # noqa: N818
    """A backend needs graphs or engines of the checkpoint that are not built yet.

    Remedy: Build them with the command that the error shows.

    Args:
        what: The beginning of the message, such as "the graphs are".
        arguments: Arguments of `sd35` that build the graphs or engines.
        cache_dir: The cache directory to build in. With None, the message does not name one.
    """

    def __init__(self, what: str, arguments: Sequence[str], cache_dir: Path | None = None) -> None:
        there = f" --cache-dir {cache_dir}" if cache_dir else ""
        super().__init__(f"{what} not built yet; build them with: sd35 {' '.join(arguments)}{there}")
        self.arguments = tuple(arguments)


class BuildFailed(Sd35Error):  # noqa: N818
    """A graph or an engine cannot be built, or fails its quality check.

    Remedy: Correct the cause that the error names, then run `sd35 compile` again.
    """


class DownloadFailed(Sd35Error):  # noqa: N818
    """A checkpoint could not be downloaded, or the hub did not answer. Files already downloaded stay on disk.

    Remedy: Follow the error's message, then run `sd35 pull` again: it continues the download.
    """


class DoesNotFit(Sd35Error):  # noqa: N818
    """The checkpoints do not fit in the available memory. The message ends with the tables of the memory plan.

    Remedy: Choose a smaller checkpoint, a narrower precision or another offload. `sd35 plan` shows the alternatives.
    """


class BackendUnavailable(Sd35Error):  # noqa: N818
    """A backend cannot run on this machine.

    Remedy: Install what the error names, or choose another backend. `sd35 doctor` lists the backends that can run.
    """

    def __init__(self, backend: str, reason: str, remedy: str) -> None:
        super().__init__(f"backend {backend!r} cannot run: {reason}. {remedy}")
        self.reason = reason


class MeasuringFailed(Sd35Error):  # noqa: N818
    """A server cannot be measured: it does not start, cannot be reached, or generates no image.

    Remedy: Check the server's address and log, then measure again.
    """

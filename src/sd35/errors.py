"""Every error a user can meet. Foreign exceptions are translated into these once, at the boundary.

Sd35Error
├── InvalidRequest        a field of a request is wrong           (HTTP 422, exit 2)
├── UnknownModel          no checkpoint of that name is served    (HTTP 404, exit 2)
├── NotAuthenticated      no API key came, or none that is valid  (HTTP 401, exit 1)
├── NotAllowed            the caller's key does not give that     (HTTP 403, exit 1)
├── TooMany               the caller's own limit is reached       (HTTP 429, exit 1)
├── UntrustedRequest      a browser sent it for another site      (HTTP 403, exit 1)
│   ├── HostNotAllowed    under a host name that is not allowed   (HTTP 403, exit 1)
│   └── OriginNotAllowed  from a web page of another origin       (HTTP 403, exit 1)
├── NotAcceptable         no format that the caller takes         (HTTP 406, exit 2)
├── LinkRefused           a link is expired, or was not signed    (HTTP 403, exit 1)
├── Overloaded            no room for another image now           (HTTP 429, exit 1)
├── NotReady              loading, or closing                     (HTTP 503, exit 1)
├── GenerationFailed      this image could not be made            (HTTP 500, exit 1)
│   └── NumericalFailure  its values went bad while it was made   (HTTP 500, exit 1)
├── ContentRefused        the operator's filter refuses it        (HTTP 422, exit 1)
├── JobEnded              a job that was waited for has no image  (HTTP as it ended, exit 1)
├── IdempotencyConflict   a key came again with another body      (HTTP 409, exit 1)
├── StoreUnavailable      database or image store do not answer   (HTTP 503, exit 1)
├── NotReplayable         a file does not say what made it        (exit 2)
├── InvalidSetting        a setting is wrong                      (exit 2)
├── CheckpointError       a checkpoint is missing or not usable   (exit 1)
│   └── NotCompiled       its graphs or engines are not built yet (exit 1)
├── BuildFailed           a graph or an engine cannot be built    (exit 1)
├── DownloadFailed        the hub cannot be used, or the disk     (exit 1)
├── DoesNotFit            no placement fits the memory there is   (exit 1)
├── BackendUnavailable    a backend cannot run here, and why      (exit 1)
└── MeasuringFailed       a server cannot be started or measured  (exit 1)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

NumericalFailureKind: TypeAlias = Literal["not_finite", "uniform"]


class Sd35Error(Exception):
    """Base of all errors meant for the user; `str()` of each says what to do. `exit_code` is 2 for wrong asking.

    `status` is HTTP's, where a request ends with it.
    """

    exit_code = 1
    status = 500
    _given: tuple[tuple[object, ...], dict[str, object]]

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Keep the arguments, see `__reduce__`."""
        error = super().__new__(cls, *args)
        error._given = args, kwargs
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the class's name and the arguments it was raised with, so that it crosses processes as itself."""
        return _raised, (type(self).__name__, *self._given)


class _FieldError(Sd35Error):
    """Base of errors about one field or header of a request."""

    def __init__(self, field: str, got: object, allowed: str) -> None:
        super().__init__(f"{field}: got {_shorten(got)}; allowed: {allowed}")
        self.field, self.got, self.allowed = field, got, allowed


class _RetryError(Sd35Error):
    """Base of errors after which the same request may succeed later."""

    status = 429

    def __init__(self, reason: str, retry_after_s: float) -> None:
        self.retry_after_s = max(1.0, retry_after_s)
        super().__init__(f"{reason}; try again in {self.retry_after_s:.0f} s")


class InvalidRequest(_FieldError):  # noqa: N818  these read as sentences: "raise InvalidRequest"
    """A field of a request is wrong."""

    exit_code = 2
    status = 422


class UnknownModel(Sd35Error):  # noqa: N818
    """No checkpoint of that name is served."""

    exit_code = 2
    status = 404

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(f"model: no model named {_shorten(name)} is served; served: {', '.join(served)}")
        self.name, self.served = name, tuple(served)


class NotAuthenticated(Sd35Error):  # noqa: N818
    """An API key is needed, and none came, or none that is valid: which of these is wrong with it is not said."""

    status = 401


class NotAllowed(Sd35Error):  # noqa: N818
    """The caller is known, and what was asked for is not for it."""

    status = 403


class UntrustedRequest(_FieldError):  # noqa: N818
    """A request that a browser may have sent on behalf of another web site."""

    status = 403


class HostNotAllowed(UntrustedRequest):
    """The `Host` header of a request names a host that is not allowed."""

    def __init__(self, host: str) -> None:
        allowed = "an IP address, localhost, the host of public_url, and the names in the setting allowed_hosts"
        super().__init__("host", host, allowed)


class OriginNotAllowed(UntrustedRequest):
    """A web page of another origin sent the request. `header` is the one that says so, `value` what it holds."""

    def __init__(self, header: str, value: object) -> None:
        allowed = "the server's own origin, that of public_url, and the origins in the setting cors_origins"
        super().__init__(header, value, allowed)


class TooMany(_RetryError):  # noqa: N818
    """The caller has reached a limit of its own; others have not."""


class NotAcceptable(Sd35Error):  # noqa: N818
    """The caller's `Accept` header takes none of the formats there are."""

    exit_code = 2
    status = 406

    def __init__(self, got: str, allowed: Sequence[str]) -> None:
        super().__init__(f"accept: got {_shorten(got)}; allowed: {', '.join(allowed)}")
        self.got, self.allowed = got, tuple(allowed)


class LinkRefused(Sd35Error):  # noqa: N818
    """A link to an image has expired, or its signature is not this service's."""

    status = 403


class Overloaded(_RetryError):  # noqa: N818
    """There is no room for another image now."""


class NotReady(Sd35Error):  # noqa: N818
    """The service is still loading, or closing."""

    status = 503

    def __init__(self, state: str, retry_after_s: float) -> None:
        super().__init__(f"the service is {state}; try again in {retry_after_s:.0f} s")
        self.state, self.retry_after_s = state, retry_after_s


class GenerationFailed(Sd35Error):  # noqa: N818
    """This image could not be made; others are not affected."""


class NumericalFailure(GenerationFailed):
    """Its values went bad: not finite any more, or a frame of one colour. `happened` is where, in which precision."""

    def __init__(self, kind: NumericalFailureKind, happened: str, remedy: str) -> None:
        super().__init__(f"{happened}; {remedy}")
        self.kind, self.happened = kind, happened


class ContentRefused(Sd35Error):  # noqa: N818
    """The operator's filter refuses the prompt or the image."""

    status = 422


class JobEnded(Sd35Error):  # noqa: N818
    """A job that someone waited for ended without an image, with the status of what ended it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class IdempotencyConflict(Sd35Error):  # noqa: N818
    """An idempotency key came again, with another body."""

    status = 409

    def __init__(self, key: str) -> None:
        super().__init__(f"idempotency-key: {_shorten(key)} came before with another body; allowed: the same again")


class StoreUnavailable(Sd35Error):  # noqa: N818
    """The database or the image store does not answer, or has no room."""

    status = 503


class NotReplayable(Sd35Error):  # noqa: N818
    """A file is not an image of this project's, or does not say what made it."""

    exit_code = 2


class InvalidSetting(Sd35Error):  # noqa: N818
    """A setting, from environment, file or flag, is wrong."""

    exit_code = 2


class CheckpointError(Sd35Error):
    """A checkpoint is missing or not usable."""


class NotCompiled(CheckpointError):  # noqa: N818
    """A backend computes from graphs or engines that are not built yet.

    `arguments` of `sd35` build them, in `cache_dir` where that is given too.
    """

    def __init__(self, what: str, arguments: Sequence[str], cache_dir: Path | None = None) -> None:
        there = f" --cache-dir {cache_dir}" if cache_dir else ""
        super().__init__(f"{what} not built yet; build with: sd35 {' '.join(arguments)}{there}")
        self.arguments = tuple(arguments)


class BuildFailed(Sd35Error):  # noqa: N818
    """A graph or an engine cannot be built, or is not as good as it has to be."""


class DownloadFailed(Sd35Error):  # noqa: N818
    """A checkpoint could not be fetched, or the hub not be asked; what has arrived is kept."""


class DoesNotFit(Sd35Error):  # noqa: N818
    """The memory there is holds the checkpoints in no placement; the words end with the plan's table."""


class BackendUnavailable(Sd35Error):  # noqa: N818
    """A backend cannot run here."""

    def __init__(self, backend: str, reason: str, remedy: str) -> None:
        super().__init__(f"backend {backend!r} cannot run: {reason}. {remedy}")
        self.reason = reason


class MeasuringFailed(Sd35Error):  # noqa: N818
    """A server that is to be measured does not start, is not reached, or makes no image."""


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _raised(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sd35Error:
    kind: type[Sd35Error] = globals()[name]
    return kind(*args, **kwargs)

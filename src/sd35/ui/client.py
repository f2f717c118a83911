"""A client of the service's HTTP API. Its errors have messages for the user."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from pydantic import BaseModel, ValidationError

_CONNECT_S, _RESPONSE_S, _EVENT_S = 5.0, 60.0, 60.0  # timeouts; an event stream has a line at least every 15 s
_CLOSING_S = 3.0  # time for the last cancellations to reach the service
_LABELS = {"guidance_scale": "Guidance", "negative_prompt": "Negative prompt"}


class ServiceError(Exception):
    """An error with a message for the user of the page. `is_key_error`: whether the API key is missing or invalid."""

    def __init__(self, message: str, *, is_key_error: bool = False) -> None:
        super().__init__(message)
        self.message, self.is_key_error = message, is_key_error


@dataclass(frozen=True)
class Visitor:
    """A user of the page: the API key that they typed, and the address of their browser."""

    key: str = field(default="", repr=False)
    address: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of API calls: the key, and the visitor's address for rate limits.

        The service uses the address only if `trusted_proxies` lists the machine of this user interface.
        """
        headers = {}
        if self.address:
            headers["X-Forwarded-For"] = self.address
        if key := self.key.strip():
            headers["Authorization"] = f"Bearer {key}"
        return headers


class Defaults(BaseModel):
    """The values of a model for parameters that a request leaves out."""

    width: int
    height: int
    steps: int
    guidance_scale: float


class Ranges(BaseModel):
    """The values that a model allows. Tuples are (minimum, maximum)."""

    side_px: tuple[int, int]
    size_multiple_px: int
    max_pixels: int
    steps: tuple[int, int]
    guidance_scale: tuple[float, float]


class Model(BaseModel):
    """A model, as `/v1/models` describes it.

    `enlarges` says whether the model also accepts sizes above its range: it generates a smaller image and enlarges it.
    `substitute_reason` says why the model is served instead of SD3.5, or is None.
    """

    id: str
    defaults: Defaults
    ranges: Ranges
    enlarges: bool
    substitute_reason: str | None


class Client:
    """A client of one service, shared by all visitors. All its errors are ServiceError."""

    def __init__(self, server: str, *, uses_proxies: bool) -> None:
        timeout = httpx2.Timeout(_RESPONSE_S, connect=_CONNECT_S)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=16)
        self._http = httpx2.AsyncClient(
            base_url=server.rstrip("/"),
            timeout=timeout,
            limits=limits,
            follow_redirects=True,  # an image may be in an object store; the key is not sent to another host
            trust_env=uses_proxies,
        )
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()  # cancellations under way
        self._followed: dict[str, Visitor] = {}  # the visitor of each job with an open event stream, by job ID

    async def close(self) -> None:
        """Cancel the jobs with open event streams, and close all connections. Waits for at most a few seconds."""
        for job_id, visitor in self._followed.items():
            self.cancel_later([job_id], visitor)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_S)
        await self._http.aclose()

    async def models(self, visitor: Visitor) -> list[Model]:
        """Return the models. The default model comes first."""
        content = await self._request_json("GET", "/v1/models", visitor)
        try:
            return [Model.model_validate(model) for model in content["data"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise self._not_the_service() from error

    async def create_job(self, body: Mapping[str, Any], visitor: Visitor) -> dict[str, Any]:
        """Create a job, and return it as the API describes it."""
        job: dict[str, Any] = await self._request_json("POST", "/v1/jobs", visitor, body)
        return job

    async def events(self, job_id: str, visitor: Visitor) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a job, with previews. The last event is the ended job.

        If the service closes before the job has ended, the last event is an earlier one.
        """
        timeout = httpx2.Timeout(_EVENT_S, connect=_CONNECT_S)
        path, parameters = f"/v1/jobs/{job_id}/events", {"preview": "true"}
        self._followed[job_id] = visitor
        try:
            with self._service_errors():
                async with self._http.stream(
                    "GET", path, params=parameters, headers=self._headers(visitor), timeout=timeout
                ) as response:
                    await check(response, visitor)
                    async for event in httpx2.EventSource(response):
                        yield json.loads(event.data)
        finally:
            del self._followed[job_id]

    async def image(self, digest: str, visitor: Visitor) -> bytes:
        """Return the stored PNG file of an image."""
        headers = self._headers(visitor) | {"Accept": "image/png"}
        with self._service_errors():
            response = await self._http.get(f"/v1/artifacts/{digest}", headers=headers)
            await check(response, visitor)
        return response.content

    async def cancel(self, job_ids: Iterable[str], visitor: Visitor) -> None:
        """Cancel jobs."""
        await asyncio.gather(*(self._request_json("DELETE", f"/v1/jobs/{job_id}", visitor) for job_id in job_ids))

    def cancel_later(self, job_ids: Iterable[str], visitor: Visitor) -> None:
        """Cancel jobs in the background, for a caller that is being cancelled itself. After `close`, does nothing."""
        if self._http.is_closed:
            return
        task = asyncio.get_running_loop().create_task(self._cancel_quietly(list(job_ids), visitor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_quietly(self, job_ids: Iterable[str], visitor: Visitor) -> None:
        """Cancel jobs, and ignore errors."""
        try:
            await self.cancel(job_ids, visitor)
        except ServiceError:  # no user is left to see the error, and the jobs end by themselves
            return

    async def _request_json(
        self, method: str, path: str, visitor: Visitor, body: Mapping[str, Any] | None = None
    ) -> Any:  # noqa: ANN401  any JSON value
        """Send a request, with `body` as JSON, and return the JSON of the response."""
        with self._service_errors():
            response = await self._http.request(method, path, json=body, headers=self._headers(visitor))
            await check(response, visitor)
            return response.json()

    def _headers(self, visitor: Visitor) -> dict[str, str]:
        """Return the headers of API calls. Raises ServiceError if the typed key cannot be sent in a header."""
        if not (visitor.key.isascii() and visitor.key.strip().isprintable()):
            raise ServiceError(
                "This is not an API key: a key begins with sd35_ and has only letters, digits, - and _. Copy it again.",
                is_key_error=True,
            )
        return visitor.headers

    @contextmanager
    def _service_errors(self) -> Iterator[None]:
        """Raise ServiceError for network errors and malformed responses in the block."""
        try:
            yield
        except httpx2.SSEError as error:  # a kind of TransportError, but the service has answered
            raise self._not_the_service() from error
        except httpx2.TransportError as error:
            raise ServiceError(f"The service at {self._server} does not answer. Try again in a few minutes.") from error
        except (ValueError, httpx2.HTTPError) as error:
            raise self._not_the_service() from error

    def _not_the_service(self) -> ServiceError:
        """Return the error for a response that an sd35 service does not give."""
        return ServiceError(
            f"The server at {self._server} is not an sd35 service of the same version as this page. The operator of"
            " this page can correct the server's address, or update sd35."
        )


async def check(response: httpx2.Response, visitor: Visitor) -> None:
    """Check that a response is a success. Otherwise, raises ServiceError with the message of the service."""
    if response.is_success:
        return
    await response.aread()
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    problem = problem if isinstance(problem, dict) else {}
    if response.status_code == httpx2.codes.UNAUTHORIZED:
        reason = "This API key is not valid." if visitor.key.strip() else "This service needs an API key."
        raise ServiceError(f"{reason} The operator of the service can give you a key.", is_key_error=True)
    message = problem_message(problem) or f"The service answered {response.status_code} {response.reason_phrase}."
    retry_after = response.headers.get("retry-after")
    if retry_after and "try again" not in message:
        message += f" Try again in {retry_after} s."
    raise ServiceError(message)


def problem_message(problem: Mapping[str, Any]) -> str:
    """Return the message of an error response in JSON: a sentence for each invalid field, or else its `detail`.

    The message is empty if the response has neither.
    """
    errors = [error for error in problem.get("errors") or () if isinstance(error, dict)]
    if errors:
        sentences = [
            _field_message(str(error.get("field")), error.get("got"), error.get("allowed")) for error in errors
        ]
        return " ".join(sentences)
    detail = str(problem.get("detail") or "").strip()
    if not detail:
        return ""
    return detail[0].upper() + detail[1:] + ("" if detail[-1] in ".!?" else ".")


def _field_message(name: str, got: object, allowed: object) -> str:
    """Describe an invalid field by the label of its control. Leaves out the text of a prompt, which may be long."""
    label = _LABELS.get(name, name.capitalize())
    if name in {"prompt", "negative_prompt"}:
        return f"{label}: this text is not allowed. Allowed: {allowed}."
    if name in {"width", "height"}:
        return f"{label}: {got} is not allowed. See the allowed sizes below the fields."
    return f"{label}: {got} is not allowed. Allowed: {allowed}."

"""A client of the service's HTTP API. Its errors have messages for the user."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from pydantic import BaseModel, ValidationError

_CONNECT_S, _RESPONSE_S, _EVENT_S = 5.0, 60.0, 60.0  # timeouts; the service sends something at least every 15 s
_CLOSING_S = 3.0  # time for the last cancellations to reach the service
_LABELS = {"guidance_scale": "Guidance", "negative_prompt": "Negative prompt"}


class ServiceError(Exception):
    """An error with a message for the user. `is_key_error` means that the API key is missing or invalid."""

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
        """Headers of API calls. The service uses the address only if it trusts the machine of this user interface."""
        forwarded = {"X-Forwarded-For": self.address} if self.address else {}
        return forwarded | ({"Authorization": f"Bearer {self.key.strip()}"} if self.key.strip() else {})


class Defaults(BaseModel):
    """The defaults of a model."""

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
    """A model, as `/v1/models` describes it."""

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
        self._tasks: set[asyncio.Task[None]] = set()
        self._followed: dict[str, Visitor] = {}

    async def close(self) -> None:
        """Cancel the jobs with open event streams, and close the connections after at most a few seconds."""
        for job_id, visitor in self._followed.items():
            self.cancel_later([job_id], visitor)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_S)
        await self._http.aclose()

    async def models(self, visitor: Visitor) -> list[Model]:
        """Return the models. The default model comes first."""
        content = await self._json("GET", "/v1/models", visitor)
        try:
            return [Model.model_validate(each) for each in content["data"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise self._not_the_service() from error

    async def create_job(self, body: Mapping[str, Any], visitor: Visitor) -> dict[str, Any]:
        """Create a job, and return it."""
        job: dict[str, Any] = await self._json("POST", "/v1/jobs", visitor, body)
        return job

    async def events(self, job_id: str, visitor: Visitor) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a job, with previews. The last one is the ended job, unless the service closes first."""
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
        await asyncio.gather(*(self._json("DELETE", f"/v1/jobs/{job_id}", visitor) for job_id in job_ids))

    def cancel_later(self, job_ids: Iterable[str], visitor: Visitor) -> None:
        """Cancel jobs in the background. For callers that are themselves being cancelled. No effect after `close`."""
        if self._http.is_closed:
            return
        task = asyncio.get_running_loop().create_task(self._cancel_quietly(list(job_ids), visitor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_quietly(self, job_ids: Iterable[str], visitor: Visitor) -> None:
        try:
            await self.cancel(job_ids, visitor)
        except ServiceError:  # no user is left to see the error, and the jobs end by themselves
            return

    async def _json(self, method: str, path: str, visitor: Visitor, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        with self._service_errors():
            response = await self._http.request(method, path, json=body, headers=self._headers(visitor))
            await check(response, visitor)
            return response.json()

    def _headers(self, visitor: Visitor) -> dict[str, str]:
        if not (visitor.key.isascii() and visitor.key.strip().isprintable()):
            raise ServiceError(
                "This is not an API key: a key begins with sd35_ and has only letters, digits, - and _. Copy it again.",
                is_key_error=True,
            )
        return visitor.headers

    @contextmanager
    def _service_errors(self) -> Iterator[None]:
        """Translate network errors and malformed responses in the block to ServiceError."""
        try:
            yield
        except httpx2.SSEError as error:
            raise self._not_the_service() from error
        except httpx2.TransportError as error:
            raise ServiceError(f"The service at {self._server} does not answer. Is it running?") from error
        except (ValueError, httpx2.HTTPError) as error:
            raise self._not_the_service() from error

    def _not_the_service(self) -> ServiceError:
        return ServiceError(f"The server at {self._server} is not an sd35 service.")


async def check(response: httpx2.Response, visitor: Visitor) -> None:
    """Check that a response is a success. Raises ServiceError."""
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
        raise ServiceError(f"{reason} The operator of the service can create one.", is_key_error=True)
    message = problem_message(problem) or f"The service answered {response.status_code} {response.reason_phrase}."
    retry_after = response.headers.get("retry-after")
    if retry_after and "try again" not in message:
        message += f" Try again in {retry_after} s."
    raise ServiceError(message)


def problem_message(problem: Mapping[str, Any]) -> str:
    """Return a message for a problem document: its invalid fields if it has any, otherwise its detail."""
    errors = [each for each in problem.get("errors") or () if isinstance(each, dict)]
    if errors:
        return " ".join(_field_message(str(each.get("field")), each.get("got"), each.get("allowed")) for each in errors)
    detail = str(problem.get("detail") or "").strip()
    return detail and detail[0].upper() + detail[1:] + ("" if detail[-1] in ".!?" else ".")


def _field_message(name: str, got: object, allowed: object) -> str:
    label = _LABELS.get(name, name.capitalize())
    if name in {"prompt", "negative_prompt"}:
        return f"{label} is not allowed. Allowed: {allowed}."
    if name in {"width", "height"}:
        return f"{label}: {got} is not allowed. See the allowed sizes below the fields."
    return f"{label}: {got} is not allowed. Allowed: {allowed}."

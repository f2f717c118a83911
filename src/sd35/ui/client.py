"""The service as the page sees it: its public HTTP interface, and its refusals in plain words."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from pydantic import BaseModel, ValidationError

_CONNECT_S, _ANSWER_S, _EVENT_S = 5.0, 60.0, 60.0  # an event stream is never silent for longer than 15 s
_CLOSING_S = 3.0  # for the service to hear that nobody waits any more
_LABELS = {"model": "Checkpoint", "guidance_scale": "Guidance", "negative_prompt": "Negative prompt"}


class Refusal(Exception):  # noqa: N818
    """What the service would not do, in plain words. `is_of_key`: for want of a key that is valid."""

    def __init__(self, words: str, *, is_of_key: bool = False) -> None:
        super().__init__(words)
        self.words, self.is_of_key = words, is_of_key


@dataclass(frozen=True)
class Visitor:
    """Who uses the page: the key that was typed in, and the address that the browser's request came from."""

    key: str = field(default="", repr=False)
    address: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """As the service is told. The address counts only where the service is set to trust this page's machine."""
        forwarded = {"X-Forwarded-For": self.address} if self.address else {}
        return forwarded | ({"Authorization": f"Bearer {self.key.strip()}"} if self.key.strip() else {})


class Defaults(BaseModel):
    """What a checkpoint takes where nothing is said."""

    width: int
    height: int
    steps: int
    guidance_scale: float


class Ranges(BaseModel):
    """What a checkpoint allows; each is (least, most)."""

    side_px: tuple[int, int]
    size_multiple_px: int
    max_pixels: int
    steps: tuple[int, int]
    guidance_scale: tuple[float, float]
    seed: tuple[int, int]


class Model(BaseModel):
    """A checkpoint, as `/v1/models` describes it."""

    id: str
    defaults: Defaults
    ranges: Ranges
    enlarges: bool
    standing_in: str | None


class Client:
    """Speaks to one service, for all visitors. Whatever goes wrong is a Refusal."""

    def __init__(self, server: str, *, uses_proxies: bool) -> None:
        timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=16)
        self._http = httpx2.AsyncClient(
            base_url=server.rstrip("/"),
            timeout=timeout,
            limits=limits,
            follow_redirects=True,  # an image may lie in an object store; the key is not sent along to another host
            trust_env=uses_proxies,
        )
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self._followed: dict[str, Visitor] = {}

    async def close(self) -> None:
        """Cancel what is being followed, as far as the service hears it soon, and close the connections."""
        for job_id, visitor in self._followed.items():
            self.cancel_later([job_id], visitor)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_S)
        await self._http.aclose()

    async def models(self, visitor: Visitor) -> list[Model]:
        """The checkpoints, the default first."""
        content = await self._json("GET", "/v1/models", visitor)
        try:
            return [Model.model_validate(each) for each in content["data"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise Refusal(f"What answers at {self._server} is not this page's service.") from error

    async def order(self, body: Mapping[str, Any], visitor: Visitor) -> dict[str, Any]:
        """Ask for an image: the job."""
        job: dict[str, Any] = await self._json("POST", "/v1/jobs", visitor, body)
        return job

    async def events(self, job_id: str, visitor: Visitor) -> AsyncIterator[dict[str, Any]]:
        """What happens to a job, with previews; the last one is the job as it ended, if the service told."""
        timeout = httpx2.Timeout(_EVENT_S, connect=_CONNECT_S)
        path, asked = f"/v1/jobs/{job_id}/events", {"preview": "true"}
        self._followed[job_id] = visitor
        try:
            with self._plain():
                async with self._http.stream(
                    "GET", path, params=asked, headers=self._headers(visitor), timeout=timeout
                ) as response:
                    await check(response, visitor)
                    async for line in response.aiter_lines():
                        if line.startswith("data:"):
                            yield json.loads(line[5:])
        finally:
            del self._followed[job_id]

    async def image(self, digest: str, visitor: Visitor) -> bytes:
        """An image's file, as it is kept."""
        headers = self._headers(visitor) | {"Accept": "image/png"}
        with self._plain():
            response = await self._http.get(f"/v1/artifacts/{digest}", headers=headers)
            await check(response, visitor)
        return response.content

    async def cancel(self, job_ids: Iterable[str], visitor: Visitor) -> None:
        """Nobody waits for these any more."""
        await asyncio.gather(*(self._json("DELETE", f"/v1/jobs/{job_id}", visitor) for job_id in job_ids))

    def cancel_later(self, job_ids: Iterable[str], visitor: Visitor) -> None:
        """The same, for one who is being cancelled and cannot wait for it; nothing after `close`, which did it."""
        if self._http.is_closed:
            return
        task = asyncio.get_running_loop().create_task(self._cancel_quietly(list(job_ids), visitor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel_quietly(self, job_ids: Iterable[str], visitor: Visitor) -> None:
        try:
            await self.cancel(job_ids, visitor)
        except Refusal:  # nobody is left to be told; the images are made, and kept for a while
            return

    async def _json(self, method: str, path: str, visitor: Visitor, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        with self._plain():
            response = await self._http.request(method, path, json=body, headers=self._headers(visitor))
            await check(response, visitor)
            return response.json()

    def _headers(self, visitor: Visitor) -> dict[str, str]:
        if not (visitor.key.isascii() and visitor.key.strip().isprintable()):
            raise Refusal("This is not an API key: keys begin with sd35_.", is_of_key=True)
        return visitor.headers

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """A block in which what the network does becomes a Refusal."""
        try:
            yield
        except httpx2.TransportError as error:
            raise Refusal(f"The service at {self._server} does not answer. Is it running?") from error
        except (ValueError, httpx2.HTTPError) as error:
            raise Refusal(f"What answers at {self._server} is not this page's service.") from error


async def check(response: httpx2.Response, visitor: Visitor) -> None:
    """Raises Refusal where the answer is one."""
    if response.is_success:
        return
    await response.aread()
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    problem = problem if isinstance(problem, dict) else {}
    if response.status_code == httpx2.codes.UNAUTHORIZED:
        asked = "This API key is not valid." if visitor.key.strip() else "This service needs an API key."
        raise Refusal(f"{asked} Whoever runs the service can make one.", is_of_key=True)
    words = words_of(problem) or f"The service answered {response.status_code} {response.reason_phrase}."
    later = response.headers.get("retry-after")
    if later and "try again" not in words:
        words += f" Try again in {later} s."
    raise Refusal(words)


def words_of(problem: Mapping[str, Any]) -> str:
    """A problem document as a person would say it."""
    wrong = [each for each in problem.get("errors") or () if isinstance(each, dict)]
    if wrong:
        return " ".join(_field_words(str(each.get("field")), each.get("got"), each.get("allowed")) for each in wrong)
    return sentence(str(problem.get("detail") or ""))


def sentence(words: str) -> str:
    """With a capital and a full stop."""
    words = words.strip()
    return words and words[0].upper() + words[1:] + ("" if words[-1] in ".!?" else ".")


def _field_words(name: str, got: object, allowed: object) -> str:
    label = _LABELS.get(name, name.capitalize())
    if name in {"prompt", "negative_prompt"}:
        return f"{label}: allowed is {allowed}."
    if name in {"width", "height"}:
        return f"{label}: {got} is not possible. What is possible stands below the fields."
    return f"{label}: {got} is not possible. Allowed: {allowed}."

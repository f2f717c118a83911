"""Generate and store the image of a complete request. Callers with the same request share one generation.

Synchronous calls and jobs both use this. An image is cancelled when its last caller is cancelled.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import structlog

from sd35.content_filter import ContentFilter, Decision, image_decision, prompt_decision, shown_preview
from sd35.engine.base import CLOSING_RETRY_S, GeneratedImage, Handle, Pixels, Progress, Stage
from sd35.errors import NotReady, NotReplayable, StoreUnavailable
from sd35.generation.model_pool import ModelPool
from sd35.images.png import write_png
from sd35.images.record import Maker
from sd35.images.resize import blurred
from sd35.images.texts import read_record
from sd35.request import Request
from sd35.storage.images import ImageStore
from sd35.storage.integrity import DamagedFile
from sd35.storage.names import name_of
from sd35.telemetry.telemetry import Telemetry
from sd35.threads import ThreadPool

_THREADS = 32  # they mostly wait for the content filter or the image store


class Requester(NamedTuple):
    """A caller: the API key that will own the image, the client for fair queueing, and the priority of its image.

    `owner` is "" without API keys.
    """

    owner: str = ""
    client: Hashable = None
    priority: int = 0


@dataclass(frozen=True)
class GenerationResult:
    """An image's PNG file, and how it was generated.

    Attributes:
        request: The request that generated the image. Its profile differs from the caller's after a retry.
        maker: The versions that generated the image. None if the image is blurred, because its file has no record.
        stages: The times of queueing, encoding and so on. Empty for an image from the store.
        was_cached: Whether the image was in the store.
        was_shared: Whether the image was already being generated for another caller.
        unstored: The error if the image could not be stored, else None.
    """

    request: Request
    png: bytes
    maker: Maker | None
    stages: tuple[Stage, ...] = ()
    was_cached: bool = False
    was_shared: bool = False
    unstored: StoreUnavailable | None = None

    @property
    def is_blurred(self) -> bool:
        """Whether the content filter blurred the image."""
        return self.maker is None

    @property
    def cache(self) -> Literal["hit", "shared", "miss"]:
        """The source of the image: the store ("hit"), another caller's generation ("shared"), or a new one ("miss")."""
        if self.was_cached:
            return "hit"
        return "shared" if self.was_shared else "miss"

    @property
    def name(self) -> str:
        """The name of the file in the store."""
        return name_of(self.request.digest, is_blurred=self.is_blurred)


class ImageProgress(NamedTuple):
    """The progress of an image: `step` of `steps` evaluations are done.

    `preview` computes the image so far, one pixel for each latent position, and blurs it if the content filter says so.
    Call it on a thread, because the filter may block.
    """

    step: int
    steps: int
    preview: Callable[[], Pixels] | None = None


OnProgress: TypeAlias = Callable[[ImageProgress], None]


@dataclass(eq=False)
class _InFlight:
    """An image that is being generated, and its callers."""

    callers: int = 0  # how many wait for the image
    previews: bool = False  # whether a caller requested previews
    listeners: list[OnProgress] = field(default_factory=list)
    task: asyncio.Task[GenerationResult] | None = None  # generates and stores the image
    handle: Handle | None = None  # the image in the engine, once it is submitted

    def report(self, progress: ImageProgress) -> None:
        """Call the listeners. Runs on the event loop."""
        for listener in tuple(self.listeners):
            listener(progress)


def stored_result(request: Request, png: bytes, *, is_blurred: bool) -> GenerationResult | None:
    """Return a stored file as the result of a request. The result has the request and versions in the file's record.

    A blurred file has no record, so its result has the given `request`. Returns None if the record cannot be read, for
    example because another version of this project wrote it.
    """
    if is_blurred:
        return GenerationResult(request, png, None, was_cached=True)
    try:
        record = read_record(png)
    except NotReplayable as error:
        log = structlog.get_logger()
        log.warning("a stored image cannot be read; it is generated again", digest=request.digest, reason=str(error))
        return None
    return GenerationResult(record.request, png, record.maker, was_cached=True)


class GenerationService:
    """Generates and stores images, on an event loop. Blocking calls run on its own threads.

    Queries of the database, such as for API keys, run on other threads, because a slow content filter or image store
    must not delay them.
    """

    def __init__(
        self, pool: ModelPool, images: ImageStore, content_filter: ContentFilter, telemetry: Telemetry | None = None
    ) -> None:
        self.pool, self.images = pool, images
        self.threads = ThreadPool("images", _THREADS)
        self.telemetry = telemetry or Telemetry()
        self._filter = content_filter
        self._in_flight: dict[str, _InFlight] = {}  # by digest

    async def generate(
        self, request: Request, requester: Requester, on_progress: OnProgress | None = None, *, previews: bool = False
    ) -> GenerationResult:
        """Return the image of a request: from the store, from a generation in flight, or newly generated.

        `on_progress` is called on the event loop after each step. With `previews`, the progress includes previews, for
        all callers of the same request. The image is cancelled when all callers that wait for it are cancelled.

        Raises ContentRefused if the content filter refuses the prompt or the image, GenerationFailed if the generation
        fails, and the errors of `Engine.submit`.
        """
        in_flight = self._in_flight.get(request.digest)
        is_first = in_flight is None
        if in_flight is None:
            in_flight = self._in_flight[request.digest] = _InFlight()
            in_flight.task = asyncio.get_running_loop().create_task(self._obtain(in_flight, request, requester))
            in_flight.task.add_done_callback(lambda _: self._forget(request.digest, in_flight))
        assert in_flight.task
        in_flight.callers += 1
        if on_progress:
            in_flight.listeners.append(on_progress)
        if previews:
            self.send_previews(request.digest)
        try:
            result = await asyncio.shield(in_flight.task)  # one cancelled caller must not cancel the task for others
        finally:
            in_flight.callers -= 1
            if on_progress:
                in_flight.listeners.remove(on_progress)
            if not in_flight.callers and not in_flight.task.done():
                self._forget(request.digest, in_flight)  # so that no new caller joins a cancelled image
                in_flight.task.cancel()
        if not is_first:  # each caller becomes an owner of the stored image
            unstored = result.unstored or await self.threads.run(self._store, result, requester.owner, was_stored=True)
            result = replace(result, was_shared=True, unstored=unstored)
        self.telemetry.image_returned(result.request, result.cache)
        return result

    def send_previews(self, digest: str) -> None:
        """Send previews from now on to all callers of the request with this digest, if it is in flight."""
        if in_flight := self._in_flight.get(digest):
            in_flight.previews = True
            if in_flight.handle:
                self.pool.engine.send_previews(in_flight.handle)

    async def store(self, result: GenerationResult, owner: str) -> GenerationResult:
        """Try again to store a result that could not be stored. Return it with the new value of `unstored`."""
        return replace(result, unstored=await self.threads.run(self._store, result, owner))

    async def wait_for_running(self, timeout_s: float) -> None:
        """Wait until the images in flight have ended, for at most `timeout_s`."""
        if tasks := [in_flight.task for in_flight in self._in_flight.values() if in_flight.task]:
            await asyncio.wait(tasks, timeout=max(0.0, timeout_s))

    def _forget(self, digest: str, in_flight: _InFlight) -> None:
        """Remove an image that has ended or is cancelled, unless a newer one with the digest has taken its place."""
        if self._in_flight.get(digest) is in_flight:
            del self._in_flight[digest]
        if in_flight.task and in_flight.task.done() and not in_flight.task.cancelled():
            in_flight.task.exception()  # asyncio warns about exceptions that are never retrieved

    async def _obtain(self, in_flight: _InFlight, request: Request, requester: Requester) -> GenerationResult:
        """Check the prompt, and return the image from the store. If missing, generate, encode and store the image."""
        decision, stored = await self.threads.run(self._check_prompt_and_find, request, requester.owner)
        if stored:
            return stored
        with self.telemetry.generating():
            generated = await self._generate(in_flight, request, requester, decision)
            return await self.threads.run(self._encode_and_store, generated, requester.owner, decision)

    def _check_prompt_and_find(self, request: Request, owner: str) -> tuple[Decision, GenerationResult | None]:
        """Return the filter's decision on the prompt, and the stored image or None. Raises ContentRefused."""
        decision = self._decide("prompt", lambda: prompt_decision(self._filter, request))
        return decision, self._find_stored(request, owner, decision)

    def _find_stored(self, request: Request, owner: str, decision: Decision) -> GenerationResult | None:
        """Return the stored image, after adding `owner` to its owners. Return None if it is missing or unreadable."""
        blurred_or_not = [True] if decision is Decision.BLUR else [False, True]  # the filter may have blurred the image
        try:
            for is_blurred in blurred_or_not:
                png = self.images.get(name_of(request.digest, is_blurred=is_blurred))
                if png is not None:
                    result = stored_result(request, png, is_blurred=is_blurred)
                    return result and replace(result, unstored=self._store(result, owner, was_stored=True))
        except StoreUnavailable as error:
            log = structlog.get_logger()
            log.warning("the image store does not answer; the image is generated again", reason=str(error))
        except DamagedFile:  # `ImageStore.get` has logged it; the new file will replace it
            return None
        return None

    async def _generate(
        self, in_flight: _InFlight, request: Request, requester: Requester, decision: Decision
    ) -> GeneratedImage:
        """Submit a request to the engine, and report its progress. Cancelling this coroutine cancels the image."""
        loop = asyncio.get_running_loop()

        def report_progress(progress: Progress) -> None:
            """Send a step to the listeners, from a thread of the engine to the event loop."""
            if in_flight.listeners:
                preview = None
                if progress.preview is not None:
                    preview = partial(shown_preview, self._filter, request, decision, progress.preview)
                shown = ImageProgress(progress.step, progress.steps, preview)
                loop.call_soon_threadsafe(in_flight.report, shown)

        handle = in_flight.handle = self.pool.submit(
            request, report_progress, client=requester.client, priority=requester.priority, previews=in_flight.previews
        )
        try:
            return await asyncio.wrap_future(handle.future)
        except asyncio.CancelledError:
            if in_flight.callers:  # callers still wait, so the engine has cancelled the image: it is closing
                raise NotReady("closing", CLOSING_RETRY_S) from None
            raise
        finally:
            self.pool.engine.cancel(handle)  # no effect on a finished image

    def _encode_and_store(self, generated: GeneratedImage, owner: str, decision: Decision) -> GenerationResult:
        """Encode and store an image. It is blurred if the filter decides to blur for the prompt or for the image."""
        began_s = time.monotonic()
        encoded = self.pool.encode(generated)
        on_image = self._decide("image", lambda: image_decision(self._filter, encoded.pixels, generated.request))
        is_blurred = Decision.BLUR in {decision, on_image}
        png = write_png(blurred(encoded.pixels), {}) if is_blurred else encoded.png
        encoded_s = time.monotonic()
        result = GenerationResult(encoded.record.request, png, None if is_blurred else encoded.record.maker)
        unstored = self._store(result, owner)
        ended_s = time.monotonic()
        stages = (*generated.stages, Stage("png", began_s, encoded_s), Stage("store", encoded_s, ended_s))
        self.telemetry.image_generated(result.request, stages)
        return replace(result, stages=stages, unstored=unstored)

    def _decide(self, subject: Literal["prompt", "image"], ask_filter: Callable[[], Decision]) -> Decision:
        """Return the filter's decision, and count it in the metrics. If the filter raises, count a refusal."""
        decision = Decision.REFUSE
        try:
            decision = ask_filter()
        finally:
            self.telemetry.metrics.filter_decided(subject, decision)
        return decision

    def _store(self, result: GenerationResult, owner: str, *, was_stored: bool = False) -> StoreUnavailable | None:
        """Store the file with its owner, or only the owner if the file `was_stored`. Return the error, or None."""
        try:
            self.images.add(result.name, result.request.digest, owner, result.png, was_stored=was_stored)
        except StoreUnavailable as error:
            structlog.get_logger().error("an image cannot be stored", reason=str(error))
            self.telemetry.metrics.image_not_stored()
            return error
        return None

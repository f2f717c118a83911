"""Generate and store the image of a resolved request. A request that several callers send is generated once.

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

_THREADS = 32


class Requester(NamedTuple):
    """A caller: the `owner` of the image, and the `client` for fair queueing."""

    owner: str = ""
    client: Hashable = None
    priority: int = 0


@dataclass(frozen=True)
class GenerationResult:
    """An image's PNG file, and how it was generated.

    Attributes:
        request: The request that generated it.
        maker: The versions that generated it. None if it is blurred, because such a file has no record.
        stages: Empty for an image from the store.
        was_cached: Whether it was in the store.
        was_shared: Whether another caller's request, in flight at the same time, generated it.
        unstored: The error if it could not be stored.
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
        """Whether the content filter blurred it."""
        return self.maker is None

    @property
    def cache(self) -> Literal["hit", "shared", "miss"]:
        """Whether it was in the store ("hit"), generated for another caller meanwhile ("shared"), or new ("miss")."""
        return "hit" if self.was_cached else "shared" if self.was_shared else "miss"

    @property
    def name(self) -> str:
        """Its name in the store."""
        return name_of(self.request.digest, is_blurred=self.is_blurred)


class ImageProgress(NamedTuple):
    """The progress of an image: `step` of `steps` evaluations are done.

    `preview` returns the image so far, one pixel for each latent position, blurred if the content filter does not allow
    it. It calls the filter, which may block, so call it on a thread.
    """

    step: int
    steps: int
    preview: Callable[[], Pixels] | None = None


OnProgress: TypeAlias = Callable[[ImageProgress], None]


@dataclass(eq=False)
class _InFlight:
    """An image that is being generated, and its callers."""

    callers: int = 0
    previews: bool = False
    listeners: list[OnProgress] = field(default_factory=list)
    task: asyncio.Task[GenerationResult] | None = None
    handle: Handle | None = None

    def report(self, progress: ImageProgress) -> None:
        for listener in tuple(self.listeners):
            listener(progress)


def stored_result(request: Request, png: bytes, *, is_blurred: bool) -> GenerationResult | None:
    """Return the stored file of a request as a result. Its request is that of the file's record, if the file has one.

    None if another version of this project wrote the record and this one cannot read it.
    """
    if is_blurred:
        return GenerationResult(request, png, None, was_cached=True)
    try:
        record = read_record(png)
    except NotReplayable as error:
        structlog.get_logger().warning("a stored image cannot be read", digest=request.digest, reason=str(error))
        return None
    return GenerationResult(record.request, png, record.maker, was_cached=True)


class GenerationService:
    """Generates images, on an event loop. Blocking calls run on threads.

    Queries of the database, such as for API keys, have other threads, so that a slow content filter or image store does
    not delay them.
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

        If the last caller is cancelled, so is the image.

        Raises ContentRefused, InvalidRequest, Overloaded, NotReady, GenerationFailed.
        """
        in_flight = self._in_flight.get(request.digest)
        is_first = in_flight is None
        if in_flight is None:
            in_flight = self._in_flight[request.digest] = _InFlight()
            in_flight.task = asyncio.get_running_loop().create_task(self._run(in_flight, request, requester))
            in_flight.task.add_done_callback(lambda _: self._forget(request.digest, in_flight))
        assert in_flight.task
        in_flight.callers += 1
        if on_progress:
            in_flight.listeners.append(on_progress)
        if previews:
            self.send_previews(request.digest)
        try:
            result = await asyncio.shield(in_flight.task)
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
        """Send previews to all listeners of a request in flight from now on."""
        in_flight = self._in_flight.get(digest)
        if in_flight:
            in_flight.previews = True
            if in_flight.handle:
                self.pool.engine.send_previews(in_flight.handle)

    async def store(self, result: GenerationResult, owner: str) -> GenerationResult:
        """Try again to store a result that could not be stored."""
        return replace(result, unstored=await self.threads.run(self._store, result, owner))

    async def wait_for_running(self, timeout_s: float) -> None:
        """Wait until the images in flight have ended, for at most `timeout_s`."""
        tasks = [in_flight.task for in_flight in self._in_flight.values() if in_flight.task]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, timeout_s))

    def _forget(self, digest: str, in_flight: _InFlight) -> None:
        if self._in_flight.get(digest) is in_flight:
            del self._in_flight[digest]
        if in_flight.task and in_flight.task.done() and not in_flight.task.cancelled():
            in_flight.task.exception()  # asyncio warns about exceptions that are never retrieved

    async def _run(self, in_flight: _InFlight, request: Request, requester: Requester) -> GenerationResult:
        """Check the prompt, find the image in the store, generate it, encode it, and store it."""
        decision, stored = await self.threads.run(self._check_prompt_and_find, request, requester.owner)
        if stored:
            return stored
        with self.telemetry.generating():
            generated = await self._generate(in_flight, request, requester, decision)
            return await self.threads.run(self._encode_and_store, generated, requester.owner, decision)

    def _check_prompt_and_find(self, request: Request, owner: str) -> tuple[Decision, GenerationResult | None]:
        decision = self._decided("prompt", lambda: prompt_decision(self._filter, request))
        return decision, self._find(request, owner, decision)

    def _find(self, request: Request, owner: str, decision: Decision) -> GenerationResult | None:
        """Return the stored image, or None. An unavailable store counts as empty, and a damaged file as missing."""
        blurred_or_not = [True] if decision is Decision.BLUR else [False, True]
        try:
            for is_blurred in blurred_or_not:
                png = self.images.get(name_of(request.digest, is_blurred=is_blurred))
                if png is not None:
                    found = stored_result(request, png, is_blurred=is_blurred)
                    return found and replace(found, unstored=self._store(found, owner, was_stored=True))
        except StoreUnavailable as error:
            structlog.get_logger().warning("the image store does not answer", reason=str(error))
        except DamagedFile:  # `ImageStore.get` has logged it; the new file will replace it
            return None
        return None

    async def _generate(
        self, in_flight: _InFlight, request: Request, requester: Requester, decision: Decision
    ) -> GeneratedImage:
        loop = asyncio.get_running_loop()

        def report(progress: Progress) -> None:
            if in_flight.listeners:
                preview = None
                if progress.preview is not None:
                    preview = partial(shown_preview, self._filter, request, decision, progress.preview)
                shown = ImageProgress(progress.step, progress.steps, preview)
                loop.call_soon_threadsafe(in_flight.report, shown)

        handle = in_flight.handle = self.pool.submit(
            request, report, client=requester.client, priority=requester.priority, previews=in_flight.previews
        )
        try:
            return await asyncio.wrap_future(handle.future)
        except asyncio.CancelledError:
            if in_flight.callers:  # callers still wait, so it was the engine that cancelled: it is closing
                raise NotReady("closing", CLOSING_RETRY_S) from None
            raise
        finally:
            self.pool.engine.cancel(handle)  # no effect on a finished image

    def _encode_and_store(self, generated: GeneratedImage, owner: str, decision: Decision) -> GenerationResult:
        """Encode and store the image, blurred if the filter's decision on the prompt or on the image is to blur."""
        began_s = time.monotonic()
        encoded = self.pool.encode(generated)
        on_image = self._decided("image", lambda: image_decision(self._filter, encoded.pixels, generated.request))
        is_blurred = Decision.BLUR in {decision, on_image}
        png = write_png(blurred(encoded.pixels), {}) if is_blurred else encoded.png
        encoded_s = time.monotonic()
        result = GenerationResult(encoded.record.request, png, None if is_blurred else encoded.record.maker)
        unstored = self._store(result, owner)
        last = (Stage("png", began_s, encoded_s), Stage("store", encoded_s, time.monotonic()))
        stages = (*generated.stages, *last)
        self.telemetry.image_generated(result.request, stages)
        return replace(result, stages=stages, unstored=unstored)

    def _decided(self, subject: Literal["prompt", "image"], decide: Callable[[], Decision]) -> Decision:
        """Return the filter's decision, and count it. An exception counts as a refusal."""
        decision = Decision.REFUSE
        try:
            decision = decide()
        finally:
            self.telemetry.metrics.filter_decided(subject, decision)
        return decision

    def _store(self, result: GenerationResult, owner: str, *, was_stored: bool = False) -> StoreUnavailable | None:
        """Store the file with its owner. Return the error if that fails."""
        try:
            self.images.add(result.name, result.request.digest, owner, result.png, was_stored=was_stored)
        except StoreUnavailable as error:
            structlog.get_logger().error("an image cannot be stored", reason=str(error))
            self.telemetry.metrics.image_not_stored()
            return error
        return None

"""The one path of an image, from a resolved request to a file in the store, once however many wait for it.

The filter's word on the prompt, the result cache, the engine, the PNG file, the filter's word on the image, the
store. Synchronous calls and jobs both come here; an image stops being made when the last who waits for it has left.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import structlog

from sd35.content_filter import ContentFilter, Decision, image_decision, prompt_decision, shown_preview
from sd35.engine.generation import GeneratedImage, Progress
from sd35.engine.observer import Stage
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
from sd35.telemetry.report import Telemetry
from sd35.threads import Threads

OnProgress = Callable[[Progress], None]
_CLOSING_RETRY_S = 5.0
_THREADS = 32


class Requester(NamedTuple):
    """Who asks: `owner` is who the image is for, `client` whom the queue is fair to."""

    owner: str = ""
    client: Hashable = None
    priority: int = 0


@dataclass(frozen=True)
class GenerationResult:
    """An image's file, and what is known of it.

    `request` is the one that made it. `maker` is None where it is blurred: such a file does not say how to make it
    again. `stages`: none of one that was there. `unstored`: why it is not in the store, though it was made.
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
        """Whether the filter blurred it."""
        return self.maker is None

    @property
    def cache(self) -> Literal["hit", "shared", "miss"]:
        """Whether it was made before, or for another who asked at the same time."""
        return "hit" if self.was_cached else "shared" if self.was_shared else "miss"

    @property
    def name(self) -> str:
        """What the store calls it."""
        return name_of(self.request.digest, is_blurred=self.is_blurred)


@dataclass(eq=False)
class _Flight:
    """An image on its way, and those who wait for it."""

    waiting: int = 0
    listeners: list[OnProgress] = field(default_factory=list)
    task: asyncio.Task[GenerationResult] | None = None

    def tell(self, progress: Progress) -> None:
        for listener in tuple(self.listeners):
            listener(progress)


def stored_outcome(request: Request, png: bytes, *, is_blurred: bool) -> GenerationResult | None:
    """What the store holds of a request; which request made it is in the file, but for a blurred one.

    None where another version of this project wrote a record that this one cannot read.
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
    """Makes images, on an event loop; threads do what blocks.

    These are its own: an operator's filter or an image store that takes long holds up images, and no question to
    the database, such as whose a key is.
    """

    def __init__(
        self,
        pool: ModelPool,
        images: ImageStore,
        content_filter: ContentFilter,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.pool, self.images = pool, images
        self.threads = Threads("images", _THREADS)
        self.telemetry = telemetry or Telemetry()
        self._filter = content_filter
        self._flights: dict[str, _Flight] = {}

    async def make(
        self, request: Request, source: Requester, on_progress: OnProgress | None = None
    ) -> GenerationResult:
        """An image: from the store, from one that is being made, or made now. Cancelled, it is not waited for.

        Raises ContentRefused, InvalidRequest, Overloaded, NotReady, GenerationFailed.
        """
        flight = self._flights.get(request.digest)
        is_first = flight is None
        if flight is None:
            flight = self._flights[request.digest] = _Flight()
            flight.task = asyncio.get_running_loop().create_task(self._run_flight(flight, request, source))
            flight.task.add_done_callback(lambda _: self._finish_flight(request.digest, flight))
        assert flight.task
        flight.waiting += 1
        if on_progress:
            flight.listeners.append(on_progress)
        try:
            outcome = await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if on_progress:
                flight.listeners.remove(on_progress)
            if not flight.waiting and not flight.task.done():
                self._finish_flight(request.digest, flight)  # who comes now does not join what ends
                flight.task.cancel()
        if not is_first:  # each who waited owns it, though it was written once
            unstored = outcome.unstored or await self.threads.run(self._keep, outcome, source.owner, was_there=True)
            outcome = replace(outcome, was_shared=True, unstored=unstored)
        self.telemetry.given(outcome.request, outcome.cache)
        return outcome

    async def keep(self, outcome: GenerationResult, owner: str) -> GenerationResult:
        """Try again to write what could not be written."""
        return replace(outcome, unstored=await self.threads.run(self._keep, outcome, owner))

    async def wait_for_running(self, within_s: float) -> None:
        """Wait until what is being made is made, or for so long."""
        tasks = [flight.task for flight in self._flights.values() if flight.task]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, within_s))

    def _finish_flight(self, digest: str, flight: _Flight) -> None:
        if self._flights.get(digest) is flight:
            del self._flights[digest]
        if flight.task and flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # seen, also where nobody waits any more

    async def _run_flight(self, flight: _Flight, request: Request, source: Requester) -> GenerationResult:
        decision, found = await self.threads.run(self._begin, request, source.owner)
        if found:
            return found
        with self.telemetry.making():
            generated = await self._generate(flight, request, source, decision)
            return await self.threads.run(self._finish, generated, source.owner, decision)

    async def _generate(
        self, flight: _Flight, request: Request, source: Requester, decision: Decision
    ) -> GeneratedImage:
        loop = asyncio.get_running_loop()

        def tell(progress: Progress) -> None:
            if flight.listeners:
                preview = partial(shown_preview, self._filter, request, decision, progress.preview)
                loop.call_soon_threadsafe(flight.tell, progress._replace(preview=preview))

        engine = self.pool.engine
        handle = self.pool.submit(request, tell, client=source.client, priority=source.priority)
        try:
            return await asyncio.wrap_future(handle.future)
        except asyncio.CancelledError:
            if flight.waiting:  # not by them: the engine closed
                raise NotReady("closing", _CLOSING_RETRY_S) from None
            raise
        finally:
            engine.cancel(handle)  # of no effect on an image that is done

    def _begin(self, request: Request, owner: str) -> tuple[Decision, GenerationResult | None]:
        decision = self._decided("prompt", lambda: prompt_decision(self._filter, request))
        return decision, self._find(request, owner, decision)

    def _find(self, request: Request, owner: str, decision: Decision) -> GenerationResult | None:
        """The image where it was made before.

        A store that does not answer is as good as an empty one, and a damaged file is as good as none.
        """
        wanted = [True] if decision is Decision.BLUR else [False, True]
        try:
            for is_blurred in wanted:
                png = self.images.get(name_of(request.digest, is_blurred=is_blurred))
                if png is not None:
                    found = stored_outcome(request, png, is_blurred=is_blurred)
                    return found and replace(found, unstored=self._keep(found, owner, was_there=True))
        except StoreUnavailable as error:
            structlog.get_logger().warning("the image store does not answer", reason=str(error))
        except DamagedFile:  # which is logged; the new file replaces it
            return None
        return None

    def _finish(self, generated: GeneratedImage, owner: str, decision: Decision) -> GenerationResult:
        began_s = time.monotonic()
        finished = self.pool.finish(generated)
        pixels = finished.pixels
        shown = self._decided("image", lambda: image_decision(self._filter, pixels, generated.request))
        if shown is Decision.BLUR:
            decision = Decision.BLUR
        is_blurred = decision is Decision.BLUR
        png = write_png(blurred(pixels), {}) if is_blurred else finished.png
        written_s = time.monotonic()
        outcome = GenerationResult(finished.record.request, png, None if is_blurred else finished.record.maker)
        unstored = self._keep(outcome, owner)
        last = (Stage("png", began_s, written_s), Stage("store", written_s, time.monotonic()))
        stages = (*generated.stages, *last)
        self.telemetry.made(outcome.request, stages)
        return replace(outcome, stages=stages, unstored=unstored)

    def _decided(self, subject: Literal["prompt", "image"], decide: Callable[[], Decision]) -> Decision:
        decision = Decision.REFUSE
        try:
            decision = decide()
        finally:
            self.telemetry.metrics.decided(subject, decision)
        return decision

    def _keep(self, outcome: GenerationResult, owner: str, *, was_there: bool = False) -> StoreUnavailable | None:
        """Make it its owner's, and its file be there; why that cannot be."""
        try:
            self.images.own(outcome.name, outcome.request.digest, owner, outcome.png, was_there=was_there)
        except StoreUnavailable as error:
            structlog.get_logger().error("an image cannot be kept", reason=str(error))
            self.telemetry.metrics.not_stored()
            return error
        return None

"""The one path of a picture, from a resolved request to a file in the store, once however many wait for it.

The filter's word on the prompt, the result cache, the engine, the PNG file, the filter's word on the picture, the
store. Synchronous calls and jobs both come here; a picture stops being made when the last who waits for it has left.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import structlog

from sd35.content_filter import ContentFilter, Decision, picture_decision, prompt_decision, shown_preview
from sd35.engine.generation import Painted, Progress
from sd35.engine.observer import Stage
from sd35.errors import NotReady, NotReplayable, StoreUnavailable
from sd35.generation.model_pool import Studio
from sd35.images.png import blurred, write_png
from sd35.images.record import Maker
from sd35.images.texts import read_record
from sd35.request import Request
from sd35.storage.images import Holdings
from sd35.storage.integrity import DamagedFile
from sd35.storage.names import name_of
from sd35.telemetry.report import Telemetry
from sd35.threads import Threads

OnProgress = Callable[[Progress], None]
_CLOSING_RETRY_S = 5.0
_THREADS = 32


class Source(NamedTuple):
    """Who asks: `owner` is who the picture is for, `client` whom the queue is fair to."""

    owner: str = ""
    client: Hashable = None
    priority: int = 0


@dataclass(frozen=True)
class Outcome:
    """A picture's file, and what is known of it.

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
    """A picture on its way, and those who wait for it."""

    waiting: int = 0
    listeners: list[OnProgress] = field(default_factory=list)
    task: asyncio.Task[Outcome] | None = None

    def tell(self, progress: Progress) -> None:
        for listener in tuple(self.listeners):
            listener(progress)


def stored_outcome(request: Request, png: bytes, *, is_blurred: bool) -> Outcome | None:
    """What the store holds of a request; which request made it is in the file, but for a blurred one.

    None where another version of this project wrote a record that this one cannot read.
    """
    if is_blurred:
        return Outcome(request, png, None, was_cached=True)
    try:
        record = read_record(png)
    except NotReplayable as error:
        structlog.get_logger().warning("a stored picture cannot be read", digest=request.digest, reason=str(error))
        return None
    return Outcome(record.request, png, record.maker, was_cached=True)


class Desk:
    """Makes pictures, on an event loop; threads do what blocks.

    These are its own: an operator's filter or a picture store that takes long holds up pictures, and no question to
    the database, such as whose a key is.
    """

    def __init__(
        self,
        studio: Studio,
        pictures: Holdings,
        content_filter: ContentFilter,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.studio, self.pictures = studio, pictures
        self.threads = Threads("pictures", _THREADS)
        self.telemetry = telemetry or Telemetry()
        self._filter = content_filter
        self._flights: dict[str, _Flight] = {}

    async def make(self, request: Request, source: Source, on_progress: OnProgress | None = None) -> Outcome:
        """A picture: from the store, from one that is being made, or made now. Cancelled, it is not waited for.

        Raises ContentRefused, InvalidRequest, Overloaded, NotReady, PictureFailed.
        """
        flight = self._flights.get(request.digest)
        is_first = flight is None
        if flight is None:
            flight = self._flights[request.digest] = _Flight()
            flight.task = asyncio.get_running_loop().create_task(self._fly(flight, request, source))
            flight.task.add_done_callback(lambda _: self._land(request.digest, flight))
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
                self._land(request.digest, flight)  # who comes now does not join what ends
                flight.task.cancel()
        if not is_first:  # each who waited owns it, though it was written once
            unstored = outcome.unstored or await self.threads.run(self._keep, outcome, source.owner, was_there=True)
            outcome = replace(outcome, was_shared=True, unstored=unstored)
        self.telemetry.given(outcome.request, outcome.cache)
        return outcome

    async def keep(self, outcome: Outcome, owner: str) -> Outcome:
        """Try again to write what could not be written."""
        return replace(outcome, unstored=await self.threads.run(self._keep, outcome, owner))

    async def landed(self, within_s: float) -> None:
        """Wait until what is being made is made, or for so long."""
        tasks = [flight.task for flight in self._flights.values() if flight.task]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, within_s))

    def _land(self, digest: str, flight: _Flight) -> None:
        if self._flights.get(digest) is flight:
            del self._flights[digest]
        if flight.task and flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # seen, also where nobody waits any more

    async def _fly(self, flight: _Flight, request: Request, source: Source) -> Outcome:
        decision, found = await self.threads.run(self._begin, request, source.owner)
        if found:
            return found
        with self.telemetry.making():
            painted = await self._paint(flight, request, source, decision)
            return await self.threads.run(self._finish, painted, source.owner, decision)

    async def _paint(self, flight: _Flight, request: Request, source: Source, decision: Decision) -> Painted:
        loop = asyncio.get_running_loop()

        def tell(progress: Progress) -> None:
            if flight.listeners:
                preview = partial(shown_preview, self._filter, request, decision, progress.preview)
                loop.call_soon_threadsafe(flight.tell, progress._replace(preview=preview))

        engine = self.studio.engine
        ticket = self.studio.submit(request, tell, client=source.client, priority=source.priority)
        try:
            return await asyncio.wrap_future(ticket.future)
        except asyncio.CancelledError:
            if flight.waiting:  # not by them: the engine closed
                raise NotReady("closing", _CLOSING_RETRY_S) from None
            raise
        finally:
            engine.cancel(ticket)  # of no effect on a picture that is done

    def _begin(self, request: Request, owner: str) -> tuple[Decision, Outcome | None]:
        decision = self._decided("prompt", lambda: prompt_decision(self._filter, request))
        return decision, self._find(request, owner, decision)

    def _find(self, request: Request, owner: str, decision: Decision) -> Outcome | None:
        """The picture where it was made before.

        A store that does not answer is as good as an empty one, and a damaged file is as good as none.
        """
        wanted = [True] if decision is Decision.BLUR else [False, True]
        try:
            for is_blurred in wanted:
                png = self.pictures.get(name_of(request.digest, is_blurred=is_blurred))
                if png is not None:
                    found = stored_outcome(request, png, is_blurred=is_blurred)
                    return found and replace(found, unstored=self._keep(found, owner, was_there=True))
        except StoreUnavailable as error:
            structlog.get_logger().warning("the picture store does not answer", reason=str(error))
        except DamagedFile:  # which is logged; the new file replaces it
            return None
        return None

    def _finish(self, painted: Painted, owner: str, decision: Decision) -> Outcome:
        began_s = time.monotonic()
        finished = self.studio.finish(painted)
        pixels = finished.pixels
        shown = self._decided("picture", lambda: picture_decision(self._filter, pixels, painted.request))
        if shown is Decision.BLUR:
            decision = Decision.BLUR
        is_blurred = decision is Decision.BLUR
        png = write_png(blurred(pixels), {}) if is_blurred else finished.png
        written_s = time.monotonic()
        outcome = Outcome(finished.record.request, png, None if is_blurred else finished.record.maker)
        unstored = self._keep(outcome, owner)
        last = (Stage("png", began_s, written_s), Stage("store", written_s, time.monotonic()))
        stages = (*painted.stages, *last)
        self.telemetry.made(outcome.request, stages)
        return replace(outcome, stages=stages, unstored=unstored)

    def _decided(self, subject: Literal["prompt", "picture"], decide: Callable[[], Decision]) -> Decision:
        decision = Decision.REFUSE
        try:
            decision = decide()
        finally:
            self.telemetry.metering.decided(subject, decision)
        return decision

    def _keep(self, outcome: Outcome, owner: str, *, was_there: bool = False) -> StoreUnavailable | None:
        """Make it its owner's, and its file be there; why that cannot be."""
        try:
            self.pictures.own(outcome.name, outcome.request.digest, owner, outcome.png, was_there=was_there)
        except StoreUnavailable as error:
            structlog.get_logger().error("a picture cannot be kept", reason=str(error))
            self.telemetry.metering.not_stored()
            return error
        return None

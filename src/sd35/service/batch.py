"""Images of one call that are made side by side, each of which can be left out while the others go on."""

import asyncio
from collections.abc import Callable, Hashable, Sequence

from sd35.errors import Overloaded
from sd35.generation.service import GenerationResult, ImageProgress, OnProgress
from sd35.service.service import Service
from sd35.storage.jobs import JobSpec

OnStep = Callable[[int, ImageProgress], None]


class Batch:
    """Images in the making, `at_once` of them at most side by side. For an event loop.

    The first is refused as any image is. When it is on its way the call is accepted, and the others wait for their
    turn where there is no room now. `on_step` hears of each image's steps by its place among the orders.
    """

    def __init__(  # noqa: PLR0913  see the class
        self,
        service: Service,
        job_specs: Sequence[JobSpec],
        client: Hashable,
        at_once: int = 1,
        on_step: OnStep | None = None,
        *,
        previews: bool = False,
    ) -> None:
        self.job_specs = tuple(job_specs)
        self.progress: list[ImageProgress | None] = [None] * len(job_specs)
        self.was_interrupted = False
        self._service, self._client, self._on_step, self._previews = service, client, on_step, previews
        self._room = asyncio.Semaphore(max(1, min(at_once, service.policy.most_running)))
        self._is_accepted = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self._make(place, job_spec)) for place, job_spec in enumerate(job_specs)]
        self.tasks[0].add_done_callback(self._first_ended)

    async def outcomes(self) -> list[GenerationResult | None]:
        """Each image when all are made; None for what was left out.

        Raises what the first that fails raises. Then, and when this is cancelled, the others are not made either.
        """
        try:
            done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_EXCEPTION)
            failures = [task.exception() for task in self.tasks if task in done and not task.cancelled()]
            for failure in filter(None, failures):
                raise failure
            return [None if task.cancelled() else task.result() for task in self.tasks]
        finally:
            self._stop()

    def skip(self) -> None:
        """Leave out the image whose turn it is: the first that is not made yet."""
        for task in self.tasks:
            if not task.done():
                task.cancel()
                return

    def interrupt(self) -> None:
        """Leave out all that are not made yet."""
        self.was_interrupted = True
        self._stop()

    @property
    def current(self) -> int:
        """The place of the image whose turn it is; the number of images where all have ended."""
        return next((place for place, task in enumerate(self.tasks) if not task.done()), len(self.tasks))

    def _stop(self) -> None:
        for task in self.tasks:
            task.cancel()

    async def _make(self, place: int, job_spec: JobSpec) -> GenerationResult:
        def tell(progress: ImageProgress) -> None:
            self._is_accepted.set()
            before = self.progress[place]
            if before and not progress.preview:
                progress = progress._replace(preview=before.preview)
            self.progress[place] = progress
            if self._on_step:
                self._on_step(place, progress)

        if place:
            await self._is_accepted.wait()
        async with self._room:
            return await self._made(place, job_spec, tell)

    def _first_ended(self, first: "asyncio.Task[GenerationResult]") -> None:
        """Made, or left out, perhaps before it began: the others go on. Refused or failed, they do not."""
        if first.cancelled() or first.exception() is None:
            self._is_accepted.set()

    async def _made(self, place: int, job_spec: JobSpec, tell: OnProgress) -> GenerationResult:
        while True:
            try:
                return await self._service.generate(job_spec, self._client, tell, previews=self._previews)
            except Overloaded as error:
                if not place:
                    raise
                await asyncio.sleep(error.retry_after_s)

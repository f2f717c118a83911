"""The images of one API call, generated side by side. Each can be cancelled while the others go on."""

import asyncio
from collections.abc import Callable, Hashable, Sequence

from sd35.errors import Overloaded
from sd35.generation.service import GenerationResult, ImageProgress
from sd35.service.service import Service
from sd35.storage.jobs import JobSpec

OnStep = Callable[[int, ImageProgress], None]


class Batch:
    """Generates the images of `job_specs` on an event loop, at most `at_once` at the same time.

    If the first is refused, so is the call. Once the first has made a step, the call counts as accepted: the others
    then wait while the service is overloaded. `on_step` is called with an image's index and progress.
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
        self.tasks = [loop.create_task(self._generate(place, job_spec)) for place, job_spec in enumerate(job_specs)]
        self.tasks[0].add_done_callback(self._first_ended)

    async def outcomes(self) -> list[GenerationResult | None]:
        """Return all images once they are generated; None for those that were cancelled.

        Raises the error of the first that fails. The others are then cancelled, and so they are if this is cancelled.
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
        """Cancel the current image: the first that has not ended."""
        for task in self.tasks:
            if not task.done():
                task.cancel()
                return

    def interrupt(self) -> None:
        """Cancel all images that have not ended."""
        self.was_interrupted = True
        self._stop()

    @property
    def current(self) -> int:
        """The index of the current image; the number of images if all have ended."""
        return next((place for place, task in enumerate(self.tasks) if not task.done()), len(self.tasks))

    def _stop(self) -> None:
        for task in self.tasks:
            task.cancel()

    async def _generate(self, place: int, job_spec: JobSpec) -> GenerationResult:
        def report(progress: ImageProgress) -> None:
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
            while True:
                try:
                    return await self._service.generate(job_spec, self._client, report, previews=self._previews)
                except Overloaded as error:
                    if not place:
                        raise
                    await asyncio.sleep(error.retry_after_s)

    def _first_ended(self, first: "asyncio.Task[GenerationResult]") -> None:
        """Let the others begin, unless the first was refused or failed."""
        if first.cancelled() or first.exception() is None:
            self._is_accepted.set()

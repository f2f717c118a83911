"""The images of one API call, generated concurrently. Each can be cancelled while the others go on."""

import asyncio
from collections.abc import Callable, Hashable, Sequence

from sd35.errors import Overloaded
from sd35.generation.service import GenerationResult, ImageProgress
from sd35.service.service import Service
from sd35.storage.jobs import JobSpec

OnStep = Callable[[int, ImageProgress], None]


class Batch:
    """Generates the images of `job_specs` on an event loop, at most `at_once` at the same time.

    If the service refuses the first image, the call fails. Once the first has made a step, the call counts as accepted,
    and while the service is overloaded, the other images wait. `on_step` is called with an image's index and progress.
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
        self._slots = asyncio.Semaphore(max(1, min(at_once, service.policy.max_running)))
        self._is_accepted = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self._generate(index, job_spec)) for index, job_spec in enumerate(job_specs)]
        self.tasks[0].add_done_callback(self._first_ended)

    async def results(self) -> list[GenerationResult | None]:
        """Return all images once they are generated. Cancelled images are None.

        If one fails, cancels the others and raises its error. Cancels all images if this call is cancelled.
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
        """Cancel the current image: the first one that has not ended."""
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
        """The index of the current image, or the number of images if all have ended."""
        return next((index for index, task in enumerate(self.tasks) if not task.done()), len(self.tasks))

    def _stop(self) -> None:
        for task in self.tasks:
            task.cancel()

    async def _generate(self, index: int, job_spec: JobSpec) -> GenerationResult:
        def report(progress: ImageProgress) -> None:
            self._is_accepted.set()
            before = self.progress[index]
            if before and not progress.preview:
                progress = progress._replace(preview=before.preview)
            self.progress[index] = progress
            if self._on_step:
                self._on_step(index, progress)

        if index:
            await self._is_accepted.wait()
        async with self._slots:
            while True:
                try:
                    return await self._service.generate(job_spec, self._client, report, previews=self._previews)
                except Overloaded as error:
                    if index == 0:
                        raise
                    await asyncio.sleep(error.retry_after_s)

    def _first_ended(self, first: "asyncio.Task[GenerationResult]") -> None:
        """Let the others begin, unless the first was refused or failed."""
        if first.cancelled() or first.exception() is None:
            self._is_accepted.set()

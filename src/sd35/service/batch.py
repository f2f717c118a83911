"""The images of one API call, generated concurrently. Each can be cancelled while the others go on."""

import asyncio
from collections.abc import Callable, Hashable, Sequence

from sd35.errors import Overloaded
from sd35.generation.service import GenerationResult, ImageProgress
from sd35.service.service import Service
from sd35.storage.jobs import JobSpec

OnStep = Callable[[int, ImageProgress], None]  # called with the index of an image and its progress


class Batch:
    """Generates the images of `job_specs` on an event loop, at most `at_once` at the same time.

    The first image starts alone. If the service refuses it, the whole batch fails. The other images start when the
    first image has made a step or is ready. If the service is overloaded then, they try again until it accepts them.

    Args:
        service: Generates the images.
        job_specs: The images.
        client: The unit of fair scheduling, as in `Caller.client`.
        at_once: The maximum number of images at the same time. If it exceeds the `max_running` of the service's
            policy, `max_running` is the maximum.
        on_step: Called on the event loop after each step of an image.
        previews: Whether the progress includes previews.

    Attributes:
        progress: The last progress of each image, or None before its first step.
        was_interrupted: Whether `interrupt` was called.
        tasks: The task of each image, in the order of `job_specs`.
    """

    def __init__(  # noqa: PLR0913  the options of a call
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
        self.tasks[0].add_done_callback(self._on_first_ended)

    async def results(self) -> list[GenerationResult | None]:
        """Wait until all images have ended, and return them in order. Cancelled images are None.

        If an image fails, this method cancels all others and raises the error of the failed image. If this method is
        cancelled, it cancels all images.
        """
        try:
            done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_EXCEPTION)
            failures = [task.exception() for task in self.tasks if task in done and not task.cancelled()]
            for failure in filter(None, failures):  # several may have failed at once; the first in order is raised
                raise failure
            return [None if task.cancelled() else task.result() for task in self.tasks]
        finally:
            self._cancel_all()

    def skip(self) -> None:
        """Cancel the current image: the first one that has not ended."""
        for task in self.tasks:
            if not task.done():
                task.cancel()
                return

    def interrupt(self) -> None:
        """Cancel all images that have not ended, and set `was_interrupted`."""
        self.was_interrupted = True
        self._cancel_all()

    @property
    def current(self) -> int:
        """The index of the current image, or the number of images if all have ended."""
        return next((index for index, task in enumerate(self.tasks) if not task.done()), len(self.tasks))

    def _cancel_all(self) -> None:
        """Cancel all images that have not ended."""
        for task in self.tasks:
            task.cancel()

    async def _generate(self, index: int, job_spec: JobSpec) -> GenerationResult:
        """Generate the image at `index`. Later images wait until the first has begun, and while the service is full."""

        def report(progress: ImageProgress) -> None:
            """Store the progress of this image and pass it to `on_step`. Called on the event loop after each step."""
            self._is_accepted.set()
            last = self.progress[index]
            if last and not progress.preview:  # not every step has a preview; the last one stays visible
                progress = progress._replace(preview=last.preview)
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

    def _on_first_ended(self, first: "asyncio.Task[GenerationResult]") -> None:
        """Start the other images if the first one was generated or cancelled. If it failed, `results` cancels them."""
        if first.cancelled() or first.exception() is None:
            self._is_accepted.set()

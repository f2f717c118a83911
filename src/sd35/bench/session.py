"""A session of `sd35 bench`: start the server if needed, measure it, and compare its images with reference images."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from sd35.bench.load.dialects import dialect_of
from sd35.bench.load.workload import BenchRequest, Workload
from sd35.bench.monitoring.monitor import Monitor, background_cores
from sd35.bench.quality.comparison import Quality, compare_images, decode_image, example_pairs
from sd35.bench.quality.correctness import correct_share
from sd35.bench.results import Plan, Result
from sd35.bench.run import OnProgress, Target, duration_s, generate_images, measure
from sd35.bench.scenes import evaluation_scenes
from sd35.bench.server import Server, check_reachable, pid_at, reported_settings, settings_command, start_server
from sd35.checkpoints.registry import EMBEDDED
from sd35.errors import MeasuringFailed
from sd35.settings import Settings

_BEFORE_S = 1.0  # other processes are observed for this time before the measurement
_FIRST_SEED = 20_000  # of the images to compare; the seeds of the other images follow it
CONCURRENCY = 4  # simultaneous requests for the images to compare, so that they share batches, as under load


@dataclass(frozen=True)
class Session:
    """The server to measure, the load, and the reference for its images.

    `url` is the address of a running server. If it is None, a server is started with `settings`. `key` is the API key.
    `reference` is the backend that generates the reference images, or "none".
    """

    settings: Settings
    workload: Workload
    plan: Plan
    url: str | None = None
    dialect: str = "sd35"
    key: str | None = None
    reference: str = "onnx"


class ImageSet(NamedTuple):
    """Image files, and the SHA-256 of the checkpoint that generated them. `revision` is None if it is unknown."""

    files: list[bytes]
    revision: str | None


class Reference:
    """Generates the reference images with a server of this project: the same checkpoint, in reproducible float32.

    The server is started when the images are first needed. They are kept for later comparisons.
    """

    def __init__(self, session: Session) -> None:
        update = {"backend": session.reference, "precision": "float32", "reproducible": True, "fallback": None}
        self.name = f"{session.reference}/float32"
        self._settings = session.settings.model_copy(update=update)
        self._count = session.plan.quality_images

    @cached_property
    def images(self) -> ImageSet:
        """The reference images. Raises MeasuringFailed if the server does not start or does not generate them."""
        with start_server(settings_command(self._settings)) as starting:
            server = starting.wait_until_ready()
            return _generate_images_to_compare(Target(server, dialect_of("sd35")), self._count)

    def skipped(self, reason: str) -> Quality:
        """Return the result of a comparison that was skipped, with the reason."""
        return Quality(reference=self.name, images=self._count, skip_reason=reason)

    def compare(self, images: ImageSet) -> Quality:
        """Compare a server's images with the reference images. If this is impossible, the result has a reason."""
        try:
            expected = self.images
        except MeasuringFailed as error:
            return self.skipped(str(error))
        if None not in (images.revision, expected.revision) and images.revision != expected.revision:
            return self.skipped("the reference has another checkpoint; name the server's checkpoint with --checkpoint")
        server_images = [decode_image(file) for file in images.files]
        reference_images = [decode_image(file) for file in expected.files]
        quality = compare_images(self.name, server_images, reference_images)
        scenes = evaluation_scenes(self._count)
        prompts = [scene.prompt for scene in scenes]
        update: dict[str, object] = {"examples": example_pairs(prompts, server_images, reference_images)}
        if self._settings.checkpoints == (EMBEDDED,):  # only for this model can a judge say what an image shows
            update["correct_share"] = correct_share(server_images, scenes)
            update["reference_correct_share"] = correct_share(reference_images, scenes)
        return quality.model_copy(update=update)


def run_session(session: Session, on_progress: OnProgress, reference: Reference | None = None) -> Result:
    """Measure a server, then compare its images with the reference images.

    Sessions can share a `reference`, so that it generates its images only once.

    Raises:
        MeasuringFailed: The server does not start, ends, or completes no image.
        InvalidSetting: The dialect cannot send a field of the workload.
    """
    dialect_of(session.dialect).check(session.workload)
    total_s = duration_s(session.plan)
    with _monitored_target(session, on_progress) as (target, monitor):
        result = measure(target, session.workload, session.plan, monitor, on_progress)
        if not session.plan.quality_images:
            return result
        on_progress("images to compare", total_s)
        reference = reference or Reference(session)
        try:
            images = _generate_images_to_compare(target, session.plan.quality_images)
        except MeasuringFailed as error:  # the loads were measured, so keep their result
            return result.model_copy(update={"quality": reference.skipped(str(error))})
    on_progress(f"the same images by the reference, {session.reference}", total_s)
    return result.model_copy(update={"quality": reference.compare(images)})


@contextmanager
def _monitored_target(session: Session, on_progress: OnProgress) -> Iterator[tuple[Target, Monitor]]:
    """Yield a ready server and its running monitor. If the server is started here, the monitor covers its start.

    Raises MeasuringFailed if the server cannot be reached, does not start, or ends during the block.
    """
    dialect = dialect_of(session.dialect)
    if session.url:
        check_reachable(session.url)
        target = Target(Server(session.url, pid_at(session.url)), dialect, session.key)
        with _create_monitor(target, background_cores(_BEFORE_S, target.server.pid)) as monitor:
            yield target, monitor
        return
    before_cores = background_cores(_BEFORE_S)
    on_progress("starting the server", 0)
    with start_server(settings_command(session.settings)) as starting:
        target = Target(
            Server(starting.url, starting.process.pid), dialect, settings=reported_settings(session.settings)
        )
        with _create_monitor(target, before_cores) as monitor:
            server = starting.wait_until_ready()
            try:
                yield target._replace(server=server), monitor
            finally:
                starting.check_running()  # if the server has ended, its own error says more than that of a request


def _create_monitor(target: Target, before_cores: float) -> Monitor:
    """Create a monitor for a server. `before_cores` is the load of other processes before the measurement."""
    headers = target.headers if target.dialect.has_metrics else None
    return Monitor(target.server.url, target.server.pid, headers, before_cores)


def _generate_images_to_compare(target: Target, count: int) -> ImageSet:
    """Generate an image of each of `count` evaluation scenes, with the server's default size, steps and guidance."""
    scenes = evaluation_scenes(count)
    requests = [BenchRequest("quality", scene.prompt, _FIRST_SEED + index) for index, scene in enumerate(scenes)]
    files = asyncio.run(generate_images(target, requests, CONCURRENCY))
    models = target.models() or [{}]
    return ImageSet(files, models[0].get("revision"))  # the first one is the default model

"""`sd35 bench` from its beginning to its result: starts what has to be started, measures, compares images."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from sd35.bench.dialects import dialect_of
from sd35.bench.judging import right_share
from sd35.bench.monitor import Watch, others_before
from sd35.bench.quality import Quality, compared, opened, shown
from sd35.bench.results import Plan, Result
from sd35.bench.run import Measured, OnProgress, duration_s, images, measure
from sd35.bench.scenes import judged_scenes
from sd35.bench.server import Server, arguments_of, check_reachable, pid_at, started, told_of
from sd35.bench.workload import BenchRequest, Workload
from sd35.checkpoints.registry import EMBEDDED
from sd35.errors import MeasuringFailed
from sd35.settings import Settings

_LOOK_BEFORE_S = 1.0
_SEED = 20_000
AT_ONCE = 4  # images that are compared are made under load: seeds must not change with the batch


@dataclass(frozen=True)
class Session:
    """What is measured and how. `url`: of a server that runs; else one is started with the settings.

    `reference`: the backend whose images are the measure of quality, or "none".
    """

    settings: Settings
    workload: Workload
    plan: Plan
    url: str | None = None
    dialect: str = "sd35"
    key: str | None = None
    reference: str = "onnx"


class Drawn(NamedTuple):
    """Images' files, and the digest of the checkpoint that made them, where it is known."""

    files: list[bytes]
    revision: str | None


class Reference:
    """This project's server in float32 and reproducible, with the same checkpoint: it draws once, when it is asked."""

    def __init__(self, session: Session) -> None:
        update = {"backend": session.reference, "precision": "float32", "reproducible": True, "fallback": None}
        self.name = f"{session.reference}/float32"
        self._settings = session.settings.model_copy(update=update)
        self._count = session.plan.judged

    @cached_property
    def drawn(self) -> Drawn:
        """Raises MeasuringFailed."""
        with started(arguments_of(self._settings)) as starting:
            return _draw(Measured(starting.until_ready(), dialect_of("sd35")), self._count)

    def failed(self, why_not: str) -> Quality:
        """No comparison."""
        return Quality(reference=self.name, images=self._count, why_not=why_not)

    def compared(self, drawn: Drawn) -> Quality:
        """Another server's images against its own."""
        try:
            expected = self.drawn
        except MeasuringFailed as error:
            return self.failed(str(error))
        if None not in (drawn.revision, expected.revision) and drawn.revision != expected.revision:
            return self.failed("the server has another checkpoint; name its own by --checkpoint")
        ours, theirs = ([opened(file) for file in each.files] for each in (drawn, expected))
        quality = compared(self.name, ours, theirs)
        scenes = judged_scenes(self._count)
        pairs = shown([scene.prompt for scene in scenes], ours, theirs)
        quality = quality.model_copy(update={"shown": pairs})
        if self._settings.checkpoints != (EMBEDDED,):
            return quality
        shares = {"right": right_share(ours, scenes), "reference_right": right_share(theirs, scenes)}
        return quality.model_copy(update=shares)


def run_session(session: Session, progress: OnProgress, reference: Reference | None = None) -> Result:
    """Measure, then compare images, with a reference that may have drawn before.

    Raises MeasuringFailed, and InvalidSetting where the dialect has no words for the workload.
    """
    dialect_of(session.dialect).check(session.workload)
    total_s = duration_s(session.plan)
    with _measured(session, progress) as (measured, watch):
        result = measure(measured, session.workload, session.plan, watch, progress)
        if not session.plan.judged:
            return result
        progress("images to compare", total_s)
        reference = reference or Reference(session)
        try:
            drawn = _draw(measured, session.plan.judged)
        except MeasuringFailed as error:  # what was measured until then is worth keeping
            return result.model_copy(update={"quality": reference.failed(str(error))})
    progress(f"the same by the reference, {session.reference}", total_s)
    return result.model_copy(update={"quality": reference.compared(drawn)})


@contextmanager
def _measured(session: Session, progress: OnProgress) -> Iterator[tuple[Measured, Watch]]:
    """The server, ready, and a watch on it that began before it was started, where it is started here."""
    dialect = dialect_of(session.dialect)
    if session.url:
        check_reachable(session.url)
        measured = Measured(Server(session.url, pid_at(session.url)), dialect, session.key)
        with _watching(measured, others_before(_LOOK_BEFORE_S, measured.server.pid)) as watch:
            yield measured, watch
        return
    before_cores = others_before(_LOOK_BEFORE_S)
    progress("starting the server", 0)
    with started(arguments_of(session.settings)) as starting:
        loading = Measured(Server(starting.url, starting.process.pid), dialect, settings=told_of(session.settings))
        with _watching(loading, before_cores) as watch:
            server = starting.until_ready()
            try:
                yield loading._replace(server=server), watch
            finally:
                starting.check_runs()


@contextmanager
def _watching(measured: Measured, before_cores: float) -> Iterator[Watch]:
    server, headers = measured.server, measured.headers
    watch = Watch(server.url, server.pid, headers if measured.dialect.has_metrics else None, before_cores)
    watch.start()
    try:
        yield watch
    finally:
        watch.finish()


def _draw(measured: Measured, count: int) -> Drawn:
    """The judged scenes as the server draws them where nothing but the seed is said, several at once."""
    wanted = [BenchRequest("judged", scene.prompt, _SEED + index) for index, scene in enumerate(judged_scenes(count))]
    files = asyncio.run(images(measured, wanted, AT_ONCE))
    models = measured.models() or [{}]
    return Drawn(files, models[0].get("revision"))

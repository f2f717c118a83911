"""The contract of every engine, tested on the local engine and on one in a child process."""

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd35.backends.base import DenoiseRow
from sd35.engine.base import PREVIEWS_PER_S, DeviceLimits, Engine, Handle, Progress, Work
from sd35.engine.local.engine import LocalEngine
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.errors import GenerationFailed, InvalidRequest, NotReady, NumericalFailure, Overloaded
from sd35.generation.params import GenerationParams, resolve
from sd35.tensors import Array
from tests.support.direct_generation import generate_directly
from tests.support.fake_backend import WAIT_S, FakeBackend, fake_pipeline
from tests.support.process_engine import ProcessEngine

LIMITS = DeviceLimits(max_rows=8, max_in_flight=3, max_wait_s=600, memory_bytes=10**9)


class SteeredBackend(FakeBackend):
    """Waits in a first step for `may_go_on`. Fails for the prompt "fail", and computes NaN for "overflow"."""

    def __init__(self, is_computing: Event, may_go_on: Event) -> None:
        super().__init__()
        self._is_computing, self._may_go_on = is_computing, may_go_on

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Array]:
        """Return the velocity of each row."""
        if any(row.sigma == 1 for row in rows):
            self._is_computing.set()
            assert self._may_go_on.wait(3 * WAIT_S)
        velocities = super().predict_velocity(rows)
        for row, velocity in zip(rows, velocities, strict=True):
            prompt = "".join(chr(int(point)) for point in row.positive.tokens)
            if prompt == "fail":
                raise RuntimeError("out of luck")
            if prompt == "overflow":
                velocity[:] = np.nan
        return velocities


def open_engine(directory: Path, is_computing: Event, may_go_on: Event, previews_per_s: float) -> LocalEngine:
    """Open an engine of one model. Also called in the child process."""
    pipeline = fake_pipeline(directory / "mini", backend=SteeredBackend(is_computing, may_go_on))
    return LocalEngine([pipeline], LIMITS, EmbeddingCache(10**6), previews_per_s=previews_per_s)


@dataclass
class OpenedEngine:
    """An engine, and the events to observe and steer its backend."""

    engine: Engine
    is_computing: Event
    may_go_on: Event

    def work(self, prompt: str = "a cat", seed: int = 1, **params: Any) -> Work:
        """Return work for the engine's model."""
        (model,) = self.engine.models
        request = resolve(GenerationParams(prompt, seed=seed, **params), {model.name: model})
        return Work(request, request.width, request.height)

    def submit_and_wait(self, work: Work, **given: Any) -> Handle:
        """Submit work, and return once the backend waits in its first step."""
        handle = self.engine.submit(work, **given)
        assert self.is_computing.wait(WAIT_S)
        return handle


@pytest.fixture(params=[LocalEngine, ProcessEngine])
def open_engine_under_test(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., OpenedEngine]]:
    """A function that opens an engine of each kind. The engines are closed at the end."""
    context = get_context("spawn")
    is_computing, may_go_on = context.Event(), context.Event()
    engines: list[Engine] = []

    def opened(previews_per_s: float = math.inf) -> OpenedEngine:
        args = tmp_path, is_computing, may_go_on, previews_per_s
        engine: Engine = ProcessEngine(open_engine, *args) if request.param is ProcessEngine else open_engine(*args)
        engines.append(engine)
        return OpenedEngine(engine, is_computing, may_go_on)

    yield opened
    may_go_on.set()
    for engine in engines:
        engine.close()


@pytest.fixture
def idle(open_engine_under_test: Callable[..., OpenedEngine]) -> OpenedEngine:
    """An engine with a backend that does not wait."""
    opened = open_engine_under_test()
    opened.may_go_on.set()
    return opened


@pytest.fixture
def held(open_engine_under_test: Callable[..., OpenedEngine]) -> OpenedEngine:
    """An engine with a backend that waits in its first step."""
    return open_engine_under_test()


def test_an_image_equals_that_of_its_pipeline_without_an_engine(idle: OpenedEngine, tmp_path: Path) -> None:
    """It comes with its request and its stages."""
    work = idle.work(steps=5)
    generated = idle.engine.submit(work).future.result(WAIT_S)
    pipeline = fake_pipeline(tmp_path / "mini")
    assert np.array_equal(generated.pixels, generate_directly(FakeBackend(), pipeline.checkpoint, work.request))
    assert generated.request == work.request
    assert [stage.name for stage in generated.stages] == ["queue", "encode", "denoise", "decode"]
    assert generated.took_s > 0


def test_progress_counts_evaluations_and_has_no_preview_by_default(idle: OpenedEngine) -> None:
    received: list[Progress] = []
    idle.engine.submit(idle.work(steps=3), received.append).future.result(WAIT_S)
    assert received == [Progress(1, 3), Progress(2, 3), Progress(3, 3)]


def test_previews_are_sent_only_to_the_callers_that_request_them(held: OpenedEngine) -> None:
    """Two callers wait for one image."""
    with_previews: list[Progress] = []
    without_previews: list[Progress] = []
    work = held.work(steps=3)
    handles = [
        held.submit_and_wait(work, on_progress=with_previews.append, previews=True),
        held.engine.submit(work, without_previews.append),
    ]
    held.may_go_on.set()
    for handle in handles:
        handle.future.result(WAIT_S)
    assert [progress.preview for progress in without_previews] == [None] * 3
    for progress in with_previews:
        assert progress.preview is not None
        assert progress.preview.shape == (16, 16, 3)
        assert progress.preview.dtype == np.uint8


def test_previews_can_be_requested_later(held: OpenedEngine) -> None:
    received: list[Progress] = []
    handle = held.submit_and_wait(held.work(steps=3), on_progress=received.append)
    held.engine.send_previews(handle)
    held.may_go_on.set()
    handle.future.result(WAIT_S)
    held.engine.send_previews(handle)  # no effect after the end
    assert all(progress.preview is not None for progress in received)
    assert len(received) == 3


def test_the_rate_of_previews_is_limited(open_engine_under_test: Callable[..., OpenedEngine]) -> None:
    """At one an hour, an image has one preview. The default is four a second."""
    opened = open_engine_under_test(previews_per_s=1 / 3600)
    opened.may_go_on.set()
    received: list[Progress] = []
    opened.engine.submit(opened.work(steps=20), received.append, previews=True).future.result(WAIT_S)
    assert [progress.preview is not None for progress in received] == [True] + [False] * 19
    assert PREVIEWS_PER_S == 4


def test_a_request_of_several_callers_is_generated_once(held: OpenedEngine) -> None:
    """A caller that cancels does not stop it."""
    work = held.work()
    leaving = held.submit_and_wait(work)
    staying, joining = held.engine.submit(work), held.engine.submit(work)
    held.engine.cancel(leaving)
    held.may_go_on.set()
    assert np.array_equal(staying.future.result(WAIT_S).pixels, joining.future.result(WAIT_S).pixels)
    with pytest.raises(CancelledError):
        leaving.future.result(WAIT_S)


def test_a_cancelled_image_is_not_generated(held: OpenedEngine) -> None:
    """It no longer counts as in flight. Cancelling it again does nothing."""
    running, waiting = held.submit_and_wait(held.work(steps=150)), held.engine.submit(held.work(seed=2))
    for handle in (running, waiting, waiting):
        held.engine.cancel(handle)
        with pytest.raises(CancelledError):
            handle.future.result(WAIT_S)
    status = held.engine.status()
    assert (status.waiting, status.running) == (0, 0)
    held.may_go_on.set()
    assert held.engine.submit(held.work(seed=3)).future.result(WAIT_S)


def test_errors_of_the_backend_end_the_image_as_generation_failed(idle: OpenedEngine) -> None:
    """A numerical failure has its kind."""
    with pytest.raises(GenerationFailed, match="RuntimeError: out of luck"):
        idle.engine.submit(idle.work("fail")).future.result(WAIT_S)
    with pytest.raises(NumericalFailure, match="values are no longer finite in float32 at step 1 of 4") as failed:
        idle.engine.submit(idle.work("overflow")).future.result(WAIT_S)
    assert failed.value.kind == "not_finite"
    assert idle.engine.status().numerical_failures == {"not_finite": 1, "uniform": 0}


def test_a_size_that_the_model_cannot_generate_is_refused(idle: OpenedEngine) -> None:
    """The error has the field and the value."""
    work = idle.work()
    with pytest.raises(InvalidRequest, match="width: got 40; allowed: multiples of 16 from 64 to 256") as refused:
        idle.engine.submit(Work(work.request, 40, 64))
    assert (refused.value.field, refused.value.got) == ("width", 40)


def test_a_model_that_the_engine_does_not_have_is_refused(idle: OpenedEngine) -> None:
    """A caller of a remote engine may know models that are no longer loaded."""
    work = idle.work()
    gone = replace(work.request, model="gone")
    with pytest.raises(
        InvalidRequest,
        match="model: got 'gone with the profile double/float32'; allowed: mini with the profile double/float32",
    ):
        idle.engine.submit(replace(work, request=gone))


def test_a_full_engine_refuses_with_a_retry_time(held: OpenedEngine) -> None:
    """Accepted images are still generated."""
    handles = [held.submit_and_wait(held.work()), *(held.engine.submit(held.work(seed=seed)) for seed in (2, 3))]
    with pytest.raises(Overloaded) as refused:
        held.engine.submit(held.work(seed=4))
    assert refused.value.retry_after_s >= 1
    held.may_go_on.set()
    assert all(handle.future.result(WAIT_S) for handle in handles)


def test_status_has_the_load_and_the_limits(held: OpenedEngine) -> None:
    handles = [held.submit_and_wait(held.work()), held.engine.submit(held.work(seed=2))]
    status = held.engine.status()
    assert (status.running, status.waiting, status.limits) == (1, 1, LIMITS)
    assert status.backlog_s > 0
    assert status.free_bytes > 0
    held.may_go_on.set()
    for handle in handles:
        handle.future.result(WAIT_S)
    held.engine.drain()
    status = held.engine.status()
    assert (status.running, status.waiting, status.backlog_s, status.used_bytes) == (0, 0, 0, 0)
    assert (status.prompt_cache_misses, status.prompt_cache_hits) == (2, 2)


def test_an_observer_receives_the_events(idle: OpenedEngine) -> None:
    """Encoded prompts, steps with their transformer rows, and failures with the runtime's message."""

    class Recorder:
        def __init__(self) -> None:
            self.prompts, self.rows, self.failures = 0, 0, list[str]()

        def encoded(self, prompts: int, took_s: float) -> None:
            assert took_s >= 0
            self.prompts += prompts

        def on_step_done(self, images: int, rows: int, took_s: float) -> None:
            assert took_s >= 0
            self.rows += rows * images

        def failed(self, error: str, *, was_split: bool) -> None:
            assert not was_split
            self.failures.append(error)

    recorder = Recorder()
    idle.engine.observe(recorder)
    idle.engine.submit(idle.work(steps=3)).future.result(WAIT_S)
    with pytest.raises(GenerationFailed):
        idle.engine.submit(idle.work("fail")).future.result(WAIT_S)
    idle.engine.drain()
    assert (recorder.prompts, recorder.rows) == (3, 6 + 2)
    assert recorder.failures == ["RuntimeError: out of luck"]


def test_a_drained_engine_has_finished_accepted_images_and_refuses_new_ones(held: OpenedEngine) -> None:
    handles = [held.submit_and_wait(held.work()), held.engine.submit(held.work(seed=2))]
    held.may_go_on.set()
    held.engine.drain()
    assert all(handle.future.result(WAIT_S) for handle in handles)
    assert not held.engine.is_running
    with pytest.raises(NotReady, match="closing"):
        held.engine.submit(held.work(seed=3))


def test_everything_that_crosses_the_interface_can_be_pickled(idle: OpenedEngine) -> None:
    """Work, models, status, progress and images."""
    received: list[Progress] = []
    work = idle.work()
    generated = idle.engine.submit(work, received.append, previews=True).future.result(WAIT_S)
    for each in (work, idle.engine.models, idle.engine.status()):
        assert pickle.loads(pickle.dumps(each)) == each  # noqa: S301  pickled here
    restored = pickle.loads(pickle.dumps((received, generated)))  # noqa: S301  pickled here
    assert np.array_equal(restored[1].pixels, generated.pixels)
    assert restored[0][0].step == 1

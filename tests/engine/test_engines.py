"""What every engine does: the same suite over the engine of this process and over one in a child process."""

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
    """Waits in a first step for `may_go_on`; fails for the prompt "fail", and computes NaN for "overflow"."""

    def __init__(self, is_computing: Event, may_go_on: Event) -> None:
        super().__init__()
        self._is_computing, self._may_go_on = is_computing, may_go_on

    def predict_velocity(self, rows: Sequence[DenoiseRow]) -> list[Array]:
        """The velocity of each row."""
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
    """An engine of one model; also called in the child process."""
    pipeline = fake_pipeline(directory / "mini", backend=SteeredBackend(is_computing, may_go_on))
    return LocalEngine([pipeline], LIMITS, EmbeddingCache(10**6), previews_per_s=previews_per_s)


@dataclass
class Opened:
    """An engine, and the events by which a test sees and lets go on what its backend does."""

    engine: Engine
    is_computing: Event
    may_go_on: Event

    def work(self, prompt: str = "a cat", seed: int = 1, **params: Any) -> Work:
        """Work on the engine's model."""
        (model,) = self.engine.models
        request = resolve(GenerationParams(prompt, seed=seed, **params), {model.name: model})
        return Work(request, request.width, request.height)

    def begun(self, work: Work, **given: Any) -> Handle:
        """The work, once the backend computes its first step, and waits there."""
        handle = self.engine.submit(work, **given)
        assert self.is_computing.wait(WAIT_S)
        return handle


@pytest.fixture(params=[LocalEngine, ProcessEngine])
def open_one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Opens an engine of either kind, and closes it at the end."""
    context = get_context("spawn")
    is_computing, may_go_on = context.Event(), context.Event()
    engines: list[Engine] = []

    def opened(previews_per_s: float = math.inf) -> Opened:
        args = tmp_path, is_computing, may_go_on, previews_per_s
        engine: Engine = ProcessEngine(open_engine, *args) if request.param is ProcessEngine else open_engine(*args)
        engines.append(engine)
        return Opened(engine, is_computing, may_go_on)

    yield opened
    may_go_on.set()
    for engine in engines:
        engine.close()


@pytest.fixture
def one(open_one: Callable[..., Opened]) -> Opened:
    """An engine whose backend does not wait."""
    opened = open_one()
    opened.may_go_on.set()
    return opened


@pytest.fixture
def held(open_one: Callable[..., Opened]) -> Opened:
    """An engine whose backend waits in its first step."""
    return open_one()


def test_an_image_is_that_of_its_pipeline(one: Opened, tmp_path: Path) -> None:
    """Its pixels are those of the solver and the backend without an engine; its request and stages come with it."""
    work = one.work(steps=5)
    generated = one.engine.submit(work).future.result(WAIT_S)
    pipeline = fake_pipeline(tmp_path / "mini")
    assert np.array_equal(generated.pixels, generate_directly(FakeBackend(), pipeline.checkpoint, work.request))
    assert generated.request == work.request
    assert [stage.name for stage in generated.stages] == ["queue", "encode", "denoise", "decode"]
    assert generated.took_s > 0


def test_progress_counts_evaluations_and_has_no_preview_unless_asked(one: Opened) -> None:
    """It comes in order, before the image."""
    heard: list[Progress] = []
    one.engine.submit(one.work(steps=3), heard.append).future.result(WAIT_S)
    assert heard == [Progress(1, 3), Progress(2, 3), Progress(3, 3)]


def test_previews_come_to_those_who_ask_alone(held: Opened) -> None:
    """Two wait for one image, and the one that asked for previews gets them, one pixel for each 8x8 of the image."""
    asked: list[Progress] = []
    not_asked: list[Progress] = []
    work = held.work(steps=3)
    handles = [held.begun(work, on_progress=asked.append, previews=True), held.engine.submit(work, not_asked.append)]
    held.may_go_on.set()
    for handle in handles:
        handle.future.result(WAIT_S)
    assert [progress.preview for progress in not_asked] == [None] * 3
    for progress in asked:
        assert progress.preview is not None
        assert progress.preview.shape == (16, 16, 3)
        assert progress.preview.dtype == np.uint8


def test_previews_can_be_asked_for_later(held: Opened) -> None:
    """From then on progress has them."""
    heard: list[Progress] = []
    handle = held.begun(held.work(steps=3), on_progress=heard.append)
    held.engine.send_previews(handle)
    held.may_go_on.set()
    handle.future.result(WAIT_S)
    held.engine.send_previews(handle)  # of an image that is done: nothing
    assert all(progress.preview is not None for progress in heard)
    assert len(heard) == 3


def test_previews_are_limited_in_time(open_one: Callable[..., Opened]) -> None:
    """At one an hour, an image has one; the default is four a second."""
    opened = open_one(previews_per_s=1 / 3600)
    opened.may_go_on.set()
    heard: list[Progress] = []
    opened.engine.submit(opened.work(steps=20), heard.append, previews=True).future.result(WAIT_S)
    assert [progress.preview is not None for progress in heard] == [True] + [False] * 19
    assert PREVIEWS_PER_S == 4


def test_the_same_request_is_generated_once(held: Opened) -> None:
    """Two who submit it get the same pixels, though one that leaves does not stop it."""
    work = held.work()
    leaving = held.begun(work)
    staying, joining = held.engine.submit(work), held.engine.submit(work)
    held.engine.cancel(leaving)
    held.may_go_on.set()
    assert np.array_equal(staying.future.result(WAIT_S).pixels, joining.future.result(WAIT_S).pixels)
    with pytest.raises(CancelledError):
        leaving.future.result(WAIT_S)


def test_a_cancelled_image_is_not_generated(held: Opened) -> None:
    """Its future is cancelled, and its place is free; cancelling it again does nothing."""
    running, waiting = held.begun(held.work(steps=150)), held.engine.submit(held.work(seed=2))
    for handle in (running, waiting, waiting):
        held.engine.cancel(handle)
        with pytest.raises(CancelledError):
            handle.future.result(WAIT_S)
    status = held.engine.status()
    assert (status.waiting, status.running) == (0, 0)
    held.may_go_on.set()
    assert held.engine.submit(held.work(seed=3)).future.result(WAIT_S)


def test_a_failure_arrives_as_itself(one: Opened) -> None:
    """Whatever the backend raised is a GenerationFailed, and a numerical failure says its kind."""
    with pytest.raises(GenerationFailed, match="RuntimeError: out of luck"):
        one.engine.submit(one.work("fail")).future.result(WAIT_S)
    with pytest.raises(NumericalFailure, match="values are no longer finite in float32 at step 1 of 4") as failed:
        one.engine.submit(one.work("overflow")).future.result(WAIT_S)
    assert failed.value.kind == "not_finite"
    assert one.engine.status().numerical_failures == {"not_finite": 1, "uniform": 0}


def test_a_size_that_the_model_cannot_generate_is_refused(one: Opened) -> None:
    """By the engine itself, whoever calls it, with the field, the value and what is allowed."""
    work = one.work()
    with pytest.raises(InvalidRequest, match="width: got 40; allowed: multiples of 16 from 64 to 256") as refused:
        one.engine.submit(Work(work.request, 40, 64))
    assert (refused.value.field, refused.value.got) == ("width", 40)


def test_a_model_that_it_does_not_have_is_refused(one: Opened) -> None:
    """A caller of an engine elsewhere may know models that are gone by now."""
    work = one.work()
    gone = replace(work.request, model="gone")
    with pytest.raises(InvalidRequest, match="model: got 'gone in double/float32'; allowed: mini in double/float32"):
        one.engine.submit(replace(work, request=gone))


def test_a_full_engine_refuses_and_says_when_to_come_back(held: Opened) -> None:
    """What was accepted is generated all the same."""
    handles = [held.begun(held.work()), *(held.engine.submit(held.work(seed=seed)) for seed in (2, 3))]
    with pytest.raises(Overloaded) as refused:
        held.engine.submit(held.work(seed=4))
    assert refused.value.retry_after_s >= 1
    held.may_go_on.set()
    assert all(handle.future.result(WAIT_S) for handle in handles)


def test_status_says_what_waits_and_what_runs(held: Opened) -> None:
    """And the limits, and the work left."""
    handles = [held.begun(held.work()), held.engine.submit(held.work(seed=2))]
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


def test_an_observer_hears_of_the_work(one: Opened) -> None:
    """Prompts, steps with their transformer rows, and failures with the runtime's own words."""

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
    one.engine.observe(recorder)
    one.engine.submit(one.work(steps=3)).future.result(WAIT_S)
    with pytest.raises(GenerationFailed):
        one.engine.submit(one.work("fail")).future.result(WAIT_S)
    one.engine.drain()
    assert (recorder.prompts, recorder.rows) == (3, 6 + 2)
    assert recorder.failures == ["RuntimeError: out of luck"]


def test_a_drained_engine_has_finished_what_it_accepted(held: Opened) -> None:
    """And accepts nothing more."""
    handles = [held.begun(held.work()), held.engine.submit(held.work(seed=2))]
    held.may_go_on.set()
    held.engine.drain()
    assert all(handle.future.result(WAIT_S) for handle in handles)
    assert not held.engine.is_running
    with pytest.raises(NotReady, match="closing"):
        held.engine.submit(held.work(seed=3))


def test_what_crosses_the_interface_can_be_pickled(one: Opened) -> None:
    """Work, models, status, progress and images are plain data."""
    heard: list[Progress] = []
    work = one.work()
    generated = one.engine.submit(work, heard.append, previews=True).future.result(WAIT_S)
    for each in (work, one.engine.models, one.engine.status()):
        assert pickle.loads(pickle.dumps(each)) == each  # noqa: S301  our own
    again = pickle.loads(pickle.dumps((heard, generated)))  # noqa: S301  our own
    assert np.array_equal(again[1].pixels, generated.pixels)
    assert again[0][0].step == 1

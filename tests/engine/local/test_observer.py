"""The events of an engine, and the stages of each image."""

import time
from typing import Any

import pytest

from sd35.engine.base import Handle, Stage
from sd35.errors import GenerationFailed
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault

MESSAGE = "the runtime's own words"


class RecordingObserver:
    """Records the events of an engine."""

    def __init__(self) -> None:
        self.prompts = 0
        self.steps: list[tuple[int, int]] = []
        self.failures: list[tuple[str, bool]] = []

    def encoded(self, prompts: int, took_s: float) -> None:
        """See `Observer.encoded`."""
        assert took_s >= 0
        self.prompts += prompts

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """See `Observer.on_step_done`."""
        assert took_s >= 0
        self.steps.append((images, rows))

    def failed(self, error: str, *, was_split: bool) -> None:
        """See `Observer.failed`."""
        self.failures.append((error, was_split))


@pytest.fixture
def max_in_flight() -> int:
    """The limit of the pool."""
    return 10


@pytest.fixture
def observer(pool: ModelPool) -> RecordingObserver:
    """The observer of the pool's engine."""
    observer = RecordingObserver()
    pool.engine.observe(observer)
    return observer


def submit(pool: ModelPool, prompt: str, **params: Any) -> Handle:
    """Submit a request for an image."""
    return pool.submit(pool.resolve(GenerationParams(prompt, seed=1, **params)))


def test_steps_are_reported_with_images_and_transformer_rows(
    pool: ModelPool, backend: FakeBackend, observer: RecordingObserver
):
    """Three guided steps and two unguided ones: 5 steps of images, 8 of rows, in whatever batches."""
    backend.hold()
    held = submit(pool, "a tree", steps=3)
    assert backend.started.wait(WAIT_S)
    other = submit(pool, "a cat", steps=2, guidance_scale=1)
    backend.release.set()
    for handle in (held, other):
        handle.future.result(WAIT_S)
    assert sum(images for images, _ in observer.steps) == 5
    assert sum(rows for _, rows in observer.steps) == 8
    assert (1, 2) in observer.steps
    assert observer.prompts == 3  # two prompts, and the empty negative prompt


def test_a_failed_batch_is_reported_and_then_the_image_that_caused_it(
    pool: ModelPool, backend: FakeBackend, observer: RecordingObserver
):
    """The batch fails first, then the image alone."""
    backend.faults["a dog"] = Fault.STEP_ERROR
    backend.hold()
    held = submit(pool, "a tree", steps=4)
    assert backend.started.wait(WAIT_S)
    others = [submit(pool, prompt, steps=4) for prompt in ("a dog", "a cat")]
    backend.release.set()
    with pytest.raises(GenerationFailed):
        others[0].future.result(WAIT_S)
    for handle in (held, others[1]):
        handle.future.result(WAIT_S)
    assert observer.failures == [(f"RuntimeError: {MESSAGE}", was_split) for was_split in (True, False)]


@pytest.mark.parametrize("fault", [Fault.ENCODE_ERROR, Fault.DECODE_ERROR])
def test_a_failure_of_encoding_or_decoding_is_reported_once(
    pool: ModelPool, backend: FakeBackend, observer: RecordingObserver, fault: Fault
):
    backend.faults["a dog"] = fault
    with pytest.raises(GenerationFailed):
        submit(pool, "a dog", guidance_scale=1).future.result(WAIT_S)
    assert [was_split for _, was_split in observer.failures] == [False]


def test_the_stages_of_an_image_follow_each_other(pool: ModelPool):
    """Each stage begins at the end of the one before, or later."""
    generated = submit(pool, "a cat").future.result(WAIT_S)
    assert [stage.name for stage in generated.stages] == ["queue", "encode", "denoise", "decode"]
    times_s = [time_s for stage in generated.stages for time_s in (stage.began_s, stage.ended_s)]
    assert times_s == sorted(times_s)
    assert generated.took_s == times_s[-1] - times_s[1]


def test_a_caller_that_joins_a_running_image_has_no_queue_time(pool: ModelPool, backend: FakeBackend):
    """Its stages begin when it joins, and end with those of the first caller."""
    backend.hold()
    first = submit(pool, "a tree")
    assert backend.started.wait(WAIT_S)
    before_s = time.monotonic()
    second = submit(pool, "a tree")
    after_s = time.monotonic()
    backend.release.set()
    one, two = (handle.future.result(WAIT_S).stages for handle in (first, second))
    accepted_s = two[0].began_s
    assert before_s <= accepted_s <= after_s
    assert two[0] == Stage("queue", accepted_s, accepted_s)
    assert two[1].took_s == 0
    assert two[2].began_s == accepted_s > one[2].began_s
    assert two[2].ended_s == one[2].ended_s
    assert two[3] == one[3]


def test_the_status_counts_waiting_and_running_images(pool: ModelPool, backend: FakeBackend):
    backend.hold()
    held = submit(pool, "a tree")
    assert backend.started.wait(WAIT_S)
    other = submit(pool, "a cat")
    busy = pool.engine.status()
    assert (busy.waiting, busy.running) == (1, 1)
    assert busy.backlog_s > 0
    backend.release.set()
    for handle in (held, other):
        handle.future.result(WAIT_S)
    pool.engine.drain()
    status = pool.engine.status()
    assert (status.waiting, status.running, status.backlog_s, status.used_bytes) == (0, 0, 0, 0)

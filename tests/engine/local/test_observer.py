"""What an engine tells of its work, and of each image's stages."""

import time
from typing import Any

import pytest

from sd35.engine.base import Handle, Stage
from sd35.errors import GenerationFailed
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault

WORDS = "the runtime's own words"


class Hearing:
    """Writes down all it is told."""

    def __init__(self) -> None:
        self.prompts = 0
        self.steps: list[tuple[int, int]] = []
        self.failures: list[tuple[str, bool]] = []

    def encoded(self, prompts: int, took_s: float) -> None:
        """See Observer."""
        assert took_s >= 0
        self.prompts += prompts

    def on_step_done(self, images: int, rows: int, took_s: float) -> None:
        """See Observer."""
        assert took_s >= 0
        self.steps.append((images, rows))

    def failed(self, error: str, *, was_split: bool) -> None:
        """See Observer."""
        self.failures.append((error, was_split))


@pytest.fixture
def max_in_flight() -> int:
    """Of the model pool."""
    return 10


@pytest.fixture
def hearing(pool: ModelPool) -> Hearing:
    """Whom the model pool's engine tells."""
    hearing = Hearing()
    pool.engine.observe(hearing)
    return hearing


def submit(pool: ModelPool, prompt: str, **wanted: Any) -> Handle:
    """Ask for an image."""
    return pool.submit(pool.resolve(GenerationParams(prompt, seed=1, **wanted)))


def test_steps_are_reported_with_images_and_transformer_rows(pool: ModelPool, backend: FakeBackend, hearing: Hearing):
    """Three steps with guidance, two without: 5 of images, 8 of rows, whatever batches they were made in."""
    backend.hold()
    held = submit(pool, "a tree", steps=3)
    assert backend.started.wait(WAIT_S)
    other = submit(pool, "a cat", steps=2, guidance_scale=1)
    backend.release.set()
    for handle in (held, other):
        handle.future.result(WAIT_S)
    assert sum(images for images, _ in hearing.steps) == 5
    assert sum(rows for _, rows in hearing.steps) == 8
    assert (1, 2) in hearing.steps
    assert hearing.prompts == 3  # two, and the empty negative one


def test_a_failed_batch_is_reported_and_then_the_image_that_caused_it(
    pool: ModelPool, backend: FakeBackend, hearing: Hearing
):
    """Of two that step together, one crashes: the batch failed, then that one alone."""
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
    assert hearing.failures == [(f"RuntimeError: {WORDS}", was_split) for was_split in (True, False)]


@pytest.mark.parametrize("fault", [Fault.ENCODE_ERROR, Fault.DECODE_ERROR])
def test_failures_of_encoding_and_decoding_are_reported(
    pool: ModelPool, backend: FakeBackend, hearing: Hearing, fault: Fault
):
    """The backend's words, once."""
    backend.faults["a dog"] = fault
    with pytest.raises(GenerationFailed):
        submit(pool, "a dog", guidance_scale=1).future.result(WAIT_S)
    assert [was_split for _, was_split in hearing.failures] == [False]


def test_the_stages_of_an_image_follow_each_other(pool: ModelPool):
    """Each begins where the one before ended, or later; none takes less than no time."""
    generated = submit(pool, "a cat").future.result(WAIT_S)
    assert [stage.name for stage in generated.stages] == ["queue", "encode", "denoise", "decode"]
    times_s = [time_s for stage in generated.stages for time_s in (stage.began_s, stage.ended_s)]
    assert times_s == sorted(times_s)
    assert generated.took_s == times_s[-1] - times_s[1]


def test_a_client_that_joins_a_running_image_has_no_queue_time(pool: ModelPool, backend: FakeBackend):
    """Its stages begin when it came, and end with those of the one it joined."""
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


def test_the_load_counts_waiting_and_running_images(pool: ModelPool, backend: FakeBackend):
    """A held image runs, the next one waits; then nothing does."""
    backend.hold()
    held = submit(pool, "a tree")
    assert backend.started.wait(WAIT_S)
    other = submit(pool, "a cat")
    load = pool.engine.status()
    assert (load.waiting, load.running) == (1, 1)
    assert load.backlog_s > 0
    backend.release.set()
    for handle in (held, other):
        handle.future.result(WAIT_S)
    pool.engine.drain()
    status = pool.engine.status()
    assert (status.waiting, status.running, status.backlog_s, status.used_bytes) == (0, 0, 0, 0)

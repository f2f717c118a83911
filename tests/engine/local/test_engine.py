"""The threads of the local engine: every image ends once, and no image affects another."""

from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from sd35.engine.base import Handle, Progress
from sd35.errors import GenerationFailed, InvalidRequest, NotReady, Overloaded
from sd35.generation.model_pool import ModelPool
from sd35.generation.params import GenerationParams
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault, fake_pool


@pytest.fixture
def max_in_flight() -> int:
    """The limit of the pool."""
    return 10


def submit(pool: ModelPool, prompt: str, on_progress: Any = None, *, previews: bool = False, **params: Any) -> Handle:
    """Submit a request for an image."""
    request = pool.resolve(GenerationParams(prompt, **{"seed": 1, **params}))
    return pool.submit(request, on_progress, previews=previews)


def test_an_image_is_a_function_of_its_request(pool: ModelPool):
    """The same request gives the same pixels. Another prompt, seed, guidance or negative prompt gives other pixels."""
    requests = [
        GenerationParams("a cat", seed=1),
        GenerationParams("a cat", seed=1),
        GenerationParams("a dog", seed=1),
        GenerationParams("a cat", seed=2),
        GenerationParams("a cat", seed=1, guidance_scale=1),
        GenerationParams("a cat", seed=1, negative_prompt="a tree"),
    ]
    images = [pool.submit(pool.resolve(params)).future.result(WAIT_S).pixels for params in requests[:2]]
    assert np.array_equal(images[0], images[1])
    for params in requests[2:]:
        other = pool.submit(pool.resolve(params)).future.result(WAIT_S).pixels
        assert not np.array_equal(images[0], other), params


def test_images_with_different_parameters_share_a_batch(pool: ModelPool, backend: FakeBackend):
    """Images with other steps, guidance and prompts arrive during one image's step, and join the next."""
    backend.hold()
    first = submit(pool, "a tree", steps=3)
    assert backend.started.wait(WAIT_S)
    others = [submit(pool, "a cat", steps=2, guidance_scale=1), submit(pool, "a dog", steps=5)]
    backend.release.set()
    for handle in (first, *others):
        handle.future.result(WAIT_S)
    assert backend.rows == [1, 3, 3, 1, 1, 1]


def test_an_image_that_several_callers_request_is_generated_once(pool: ModelPool, backend: FakeBackend):
    """A caller that cancels does not stop it for the others."""
    backend.hold()
    leaving = submit(pool, "a tree")
    assert backend.started.wait(WAIT_S)
    received: list[Progress] = []
    staying, joining = submit(pool, "a tree"), submit(pool, "a tree", received.append)
    pool.engine.cancel(leaving)
    backend.release.set()
    assert staying.future.result(WAIT_S).pixels is joining.future.result(WAIT_S).pixels
    assert leaving.future.cancelled()
    assert backend.steps == ["a tree"] * 4
    assert [progress.step for progress in received] == [1, 2, 3, 4]


def test_an_image_is_stopped_when_its_last_caller_cancels(pool: ModelPool, backend: FakeBackend):
    """A new caller of the same request starts a new generation."""
    backend.hold()
    handles = [submit(pool, "a tree", steps=50) for _ in range(2)]
    assert backend.started.wait(WAIT_S)
    for handle in handles:
        pool.engine.cancel(handle)
    again = submit(pool, "a tree", steps=2)
    backend.release.set()
    assert again.future.result(WAIT_S)
    assert len(backend.steps) == 3


def test_a_full_engine_refuses_with_a_retry_time(tmp_path: Path, backend: FakeBackend):
    """The accepted images are still generated."""
    backend.hold()
    with fake_pool(tmp_path, backend, max_in_flight=3) as pool:
        handles = [submit(pool, "a tree", seed=seed) for seed in range(3)]
        with pytest.raises(Overloaded) as refused:
            submit(pool, "too many")
        assert refused.value.retry_after_s >= 1
        backend.release.set()
        assert all(handle.future.result(WAIT_S) for handle in handles)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault.STEP_ERROR, "RuntimeError: the runtime's own words"),
        (Fault.STEP_NAN, "finite in float32 at step 2 of 4"),
        (Fault.DECODE_NAN, "finite in float32 in decoding"),
        (Fault.UNIFORM, "one colour in float32 after decoding"),
        (Fault.ENCODE_ERROR, "RuntimeError: no words for that"),
        (Fault.DECODE_ERROR, "RuntimeError: nothing to see"),
    ],
)
def test_a_failing_image_fails_alone(pool: ModelPool, backend: FakeBackend, fault: Fault, message: str):
    """It ends with the reason, and the pixels of the other images in its batch do not change."""
    expected = [submit(pool, "a cat", seed=seed).future.result(WAIT_S).pixels for seed in range(2)]
    backend.faults["a dog"] = fault
    backend.hold()
    first = submit(pool, "a tree")
    assert backend.started.wait(WAIT_S)
    before, failing, after = submit(pool, "a cat", seed=0), submit(pool, "a dog"), submit(pool, "a cat", seed=1)
    backend.release.set()
    with pytest.raises(GenerationFailed, match=message):
        failing.future.result(WAIT_S)
    assert first.future.result(WAIT_S)
    for handle, pixels in zip((before, after), expected, strict=True):
        assert np.array_equal(handle.future.result(WAIT_S).pixels, pixels)
    assert max(backend.rows) > 2  # they shared a call


@pytest.mark.parametrize("method", ["encode_text", "predict_velocity", "decode_latents"])
def test_a_backend_that_returns_too_few_results_fails_the_image(
    pool: ModelPool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, method: str
):
    """The engine goes on: the next image is generated."""
    with monkeypatch.context() as patched:
        patched.setattr(backend, method, lambda _: [])
        with pytest.raises(GenerationFailed):
            submit(pool, "a cat").future.result(WAIT_S)
    assert submit(pool, "a cat").future.result(WAIT_S)


def test_the_failure_of_a_thread_ends_all_images(
    pool: ModelPool, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
):
    """With the reason. The engine refuses later images, and says that it has failed."""
    backend.hold()
    handle = submit(pool, "a tree")
    assert backend.started.wait(WAIT_S)
    waiting = submit(pool, "a cat", width=64)
    monkeypatch.setattr(backend, "encode_text", lambda _: (_ for _ in ()).throw(SystemExit("from a library")))
    backend.release.set()
    with pytest.raises(GenerationFailed, match=r"an engine thread failed \(SystemExit: from a library\); restart"):
        waiting.future.result(WAIT_S)
    assert handle.future.exception(WAIT_S) or handle.future.result()
    with pytest.raises(NotReady, match="broken because its engine has failed; its operator must restart it"):
        submit(pool, "late")


def test_decoding_does_not_stall_the_steps_of_others(pool: ModelPool, backend: FakeBackend):
    """While one image is decoded, another makes all its steps."""
    backend.hold(in_decoding=True)
    last_step = Event()
    slow = submit(pool, "a dog", steps=1)
    other = submit(pool, "a cat", lambda progress: last_step.set() if progress.step == 4 else None)
    assert last_step.wait(WAIT_S)
    assert not slow.future.done()
    backend.release.set()
    assert slow.future.result(WAIT_S)
    assert other.future.result(WAIT_S)


def test_prompts_are_encoded_once(pool: ModelPool, backend: FakeBackend):
    """Recently encoded prompts and negative prompts come from the cache."""
    for seed in range(3):
        submit(pool, "a cat", seed=seed, negative_prompt="a dog").future.result(WAIT_S)
    submit(pool, "a dog", negative_prompt="a cat").future.result(WAIT_S)
    assert sorted(backend.encoded) == ["a cat", "a dog"]


def test_cancelling_takes_effect_before_the_next_step(pool: ModelPool, backend: FakeBackend):
    """A running image stops before its next step, a waiting image never starts, and the next image is generated."""
    backend.hold()
    running = submit(pool, "a tree")
    assert backend.started.wait(WAIT_S)
    waiting, last = submit(pool, "waits"), submit(pool, "a cat")
    pool.engine.cancel(running)
    pool.engine.cancel(waiting)
    backend.release.set()
    assert last.future.result(WAIT_S)
    for handle in (running, waiting):
        with pytest.raises(CancelledError):
            handle.future.result(WAIT_S)
    assert backend.steps == ["a tree"] + ["a cat"] * 4


@pytest.mark.parametrize(("field", "wrong"), [("width", 40), ("height", 4096), ("width", 8)])
def test_the_engine_refuses_a_size_that_the_model_cannot_generate(pool: ModelPool, field: str, wrong: int):
    """The error names the field and the allowed values."""
    from sd35.engine.base import Work

    request = pool.resolve(GenerationParams("a cat", seed=1))
    size = {"width_px": 128, "height_px": 128, f"{field}_px": wrong}
    with pytest.raises(InvalidRequest, match=f"{field}: got {wrong}; allowed: multiples of 16 from 64 to 256"):
        pool.engine.submit(Work(request, **size))


def test_draining_finishes_accepted_images_and_refuses_new_ones(pool: ModelPool):
    handles = [submit(pool, "a cat"), submit(pool, "waits")]
    pool.engine.drain()
    assert all(handle.future.done() and handle.future.result() for handle in handles)
    with pytest.raises(NotReady, match="closing"):
        submit(pool, "late")


def test_closing_cancels_accepted_images(pool: ModelPool, backend: FakeBackend):
    """The running image ends at its next step, and waiting images never start."""
    backend.hold()
    running = submit(pool, "a tree", steps=150)
    assert backend.started.wait(WAIT_S)
    waiting = submit(pool, "waits")
    waiting.future.add_done_callback(lambda _: backend.release.set())
    pool.engine.close()
    for handle in (running, waiting):
        with pytest.raises(CancelledError):
            handle.future.result(WAIT_S)
    assert len(backend.steps) == 1

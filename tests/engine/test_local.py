"""The engine's threads: every picture ends once, and nothing one does harms another."""

from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from sd35.engine.generation import Progress, Ticket
from sd35.errors import InvalidRequest, NotReady, Overloaded, PictureFailed
from sd35.generation.model_pool import Studio
from sd35.generation.params import Wanted
from tests.support.fake_backend import WAIT_S, NumpyBackend, double_studio


@pytest.fixture
def max_pictures() -> int:
    """Of the studio."""
    return 10


def submit(studio: Studio, prompt: str, on_progress: Any = None, **wanted: Any) -> Ticket:
    """Ask for a picture."""
    return studio.submit(studio.resolve(Wanted(prompt, **{"seed": 1, **wanted})), on_progress)


def test_a_picture_is_a_function_of_its_request(studio: Studio):
    """The same request gives the same pixels; another prompt, seed, guidance or negative prompt gives others."""
    requests = [
        Wanted("a cat", seed=1),
        Wanted("a cat", seed=1),
        Wanted("a dog", seed=1),
        Wanted("a cat", seed=2),
        Wanted("a cat", seed=1, guidance_scale=1),
        Wanted("a cat", seed=1, negative_prompt="a tree"),
    ]
    pictures = [studio.submit(studio.resolve(wanted)).future.result(WAIT_S).pixels for wanted in requests[:2]]
    assert np.array_equal(pictures[0], pictures[1])
    for wanted in requests[2:]:
        other = studio.submit(studio.resolve(wanted)).future.result(WAIT_S).pixels
        assert not np.array_equal(pictures[0], other), wanted


def test_pictures_that_have_little_in_common_step_together(studio: Studio, backend: NumpyBackend):
    """While one picture's step is held, others come with other steps, guidance and prompts: all share later calls."""
    first = submit(studio, "held", steps=3)
    assert backend.started.wait(WAIT_S)
    others = [submit(studio, "a cat", steps=2, guidance_scale=1), submit(studio, "a dog", steps=5)]
    backend.release.set()
    for ticket in (first, *others):
        ticket.future.result(WAIT_S)
    assert backend.rows == [1, 3, 3, 1, 1, 1]


def test_progress_counts_each_step(studio: Studio):
    """The callback hears of every step, in order, before the picture is there."""
    heard: list[Progress] = []
    submit(studio, "a cat", heard.append, steps=5).future.result(WAIT_S)
    assert [(progress.done, progress.steps) for progress in heard] == [(done, 5) for done in range(1, 6)]


def test_a_preview_shows_what_the_picture_will_be(studio: Studio):
    """Once a few pictures were made, a preview has one pixel for each 8x8 of the picture, and their colour."""
    for seed in range(4):
        submit(studio, "a cat", seed=seed).future.result(WAIT_S)
    previews: list[Any] = []
    picture = submit(studio, "a dog", lambda progress: previews.append(progress.preview())).future.result(WAIT_S)
    small = picture.pixels[::8, ::8].astype(int)
    assert previews[-1].shape == small.shape == (16, 16, 3)
    inside = (small > 0) & (small < 255)
    assert abs(previews[-1] - small)[inside].mean() < 8


def test_the_same_request_twice_is_one_picture(studio: Studio, backend: NumpyBackend):
    """Who asks for what is being made waits for the same picture; who leaves does not stop it for the others."""
    leaving = submit(studio, "held")
    assert backend.started.wait(WAIT_S)
    heard: list[Progress] = []
    staying, joining = submit(studio, "held"), submit(studio, "held", heard.append)
    studio.engine.cancel(leaving)
    backend.release.set()
    assert staying.future.result(WAIT_S).pixels is joining.future.result(WAIT_S).pixels
    assert leaving.future.cancelled()
    assert backend.steps == ["held"] * 4
    assert [progress.done for progress in heard] == [1, 2, 3, 4]


def test_a_picture_nobody_waits_for_any_more_is_stopped(studio: Studio, backend: NumpyBackend):
    """When the last of several has left, no further step is made; asking again begins anew."""
    tickets = [submit(studio, "held", steps=50) for _ in range(2)]
    assert backend.started.wait(WAIT_S)
    for ticket in tickets:
        studio.engine.cancel(ticket)
    again = submit(studio, "held", steps=2)
    backend.release.set()
    assert again.future.result(WAIT_S)
    assert len(backend.steps) == 3


def test_a_full_house_refuses_with_a_time(tmp_path: Path, backend: NumpyBackend):
    """Three pictures are accepted; the next is refused, and the accepted ones are still made."""
    with double_studio(tmp_path, backend, max_pictures=3) as studio:
        tickets = [submit(studio, "held", seed=seed) for seed in range(3)]
        with pytest.raises(Overloaded) as refused:
            submit(studio, "too many")
        assert refused.value.retry_after_s >= 1
        backend.release.set()
        assert all(ticket.future.result(WAIT_S) for ticket in tickets)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("crash", "RuntimeError: the runtime's own words"),
        ("nan", "finite in float32 at step 2 of 4"),
        ("void", "finite in float32 in decoding"),
        ("flat", "of one colour in float32 after decoding"),
        ("mute", "RuntimeError: no words for that"),
        ("blind", "RuntimeError: nothing to see"),
    ],
)
def test_a_failing_picture_fails_alone(studio: Studio, backend: NumpyBackend, prompt: str, why: str):
    """Wherever a picture fails, it ends with its reason, and its batch's others are what they are without it."""
    backend.release.set()
    expected = [submit(studio, "a cat", seed=seed).future.result(WAIT_S).pixels for seed in range(2)]
    backend.release.clear()
    backend.started.clear()
    first = submit(studio, "held")
    assert backend.started.wait(WAIT_S)
    before, failing, after = submit(studio, "a cat", seed=0), submit(studio, prompt), submit(studio, "a cat", seed=1)
    backend.release.set()
    with pytest.raises(PictureFailed, match=why):
        failing.future.result(WAIT_S)
    assert first.future.result(WAIT_S)
    for ticket, pixels in zip((before, after), expected, strict=True):
        assert np.array_equal(ticket.future.result(WAIT_S).pixels, pixels)
    assert max(backend.rows) > 2  # they did share a call


def test_a_listener_that_raises_harms_nothing(studio: Studio):
    """The picture is made, and the next one too."""

    def raising(progress: Progress) -> None:
        raise RuntimeError(f"a listener's own mistake at {progress.done}")

    assert submit(studio, "a cat", raising).future.result(WAIT_S)
    assert submit(studio, "a dog").future.result(WAIT_S)


@pytest.mark.parametrize("verb", ["encode_text", "denoise_step", "decode_latents"])
def test_a_backend_that_answers_too_little_fails_the_picture(
    studio: Studio, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch, verb: str
):
    """Not the engine: the next picture is made."""
    with monkeypatch.context() as patched:
        patched.setattr(backend, verb, lambda _: [])
        with pytest.raises(PictureFailed):
            submit(studio, "a cat").future.result(WAIT_S)
    assert submit(studio, "a cat").future.result(WAIT_S)


def test_an_engine_that_breaks_keeps_nobody_waiting(
    studio: Studio, backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch
):
    """What no picture can be blamed for ends all of them with the reason, and no more is accepted."""
    ticket = submit(studio, "held")
    assert backend.started.wait(WAIT_S)
    waiting = submit(studio, "a cat", width=64)
    monkeypatch.setattr(backend, "encode_text", lambda _: (_ for _ in ()).throw(SystemExit("from a library")))
    backend.release.set()
    with pytest.raises(PictureFailed, match="the engine broke: SystemExit: from a library"):
        waiting.future.result(WAIT_S)
    assert ticket.future.exception(WAIT_S) or ticket.future.result()
    with pytest.raises(NotReady):
        submit(studio, "late")


def test_decoding_does_not_stall_the_steps_of_others(studio: Studio, backend: NumpyBackend):
    """While one picture is being decoded, another makes all its steps."""
    last_step = Event()
    slow = submit(studio, "heavy", steps=1)
    other = submit(studio, "a cat", lambda progress: last_step.set() if progress.done == 4 else None)
    assert last_step.wait(WAIT_S)
    assert not slow.future.done()
    backend.release.set()
    assert slow.future.result(WAIT_S)
    assert other.future.result(WAIT_S)


def test_prompts_are_encoded_once(studio: Studio, backend: NumpyBackend):
    """Prompts, negative ones too, that were encoded lately are not encoded again."""
    for seed in range(3):
        submit(studio, "a cat", seed=seed, negative_prompt="a dog").future.result(WAIT_S)
    submit(studio, "a dog", negative_prompt="a cat").future.result(WAIT_S)
    assert sorted(backend.encoded) == ["a cat", "a dog"]


def test_cancelling_takes_effect_before_the_next_step(studio: Studio, backend: NumpyBackend):
    """A picture in the making stops between steps, one that waits is never begun, and the next one is made."""
    running = submit(studio, "held")
    assert backend.started.wait(WAIT_S)
    waiting, last = submit(studio, "waits"), submit(studio, "a cat")
    studio.engine.cancel(running)
    studio.engine.cancel(waiting)
    backend.release.set()
    assert last.future.result(WAIT_S)
    for ticket in (running, waiting):
        with pytest.raises(CancelledError):
            ticket.future.result(WAIT_S)
    assert backend.steps == ["held"] + ["a cat"] * 4


@pytest.mark.parametrize(("field", "wrong"), [("width", 40), ("height", 4096), ("width", 8)])
def test_a_size_the_model_cannot_draw_is_refused(studio: Studio, field: str, wrong: int):
    """The engine itself names the limit, whoever calls it."""
    from sd35.engine.generation import Task

    request = studio.resolve(Wanted("a cat", seed=1))
    size = {"width_px": 128, "height_px": 128, f"{field}_px": wrong}
    with pytest.raises(InvalidRequest, match=f"{field}: got {wrong}; allowed: multiples of 16 from 64 to 256"):
        studio.engine.submit(Task(request, **size))


def test_draining_finishes_what_was_accepted(studio: Studio, backend: NumpyBackend):
    """After a drain all accepted pictures are there and new ones are refused."""
    backend.release.set()
    tickets = [submit(studio, "held"), submit(studio, "waits")]
    studio.engine.drain()
    assert all(ticket.future.done() and ticket.future.result() for ticket in tickets)
    with pytest.raises(NotReady, match="closing"):
        submit(studio, "late")


def test_closing_cancels_what_was_accepted(studio: Studio, backend: NumpyBackend):
    """A close ends the running picture at its next step and never begins those that wait."""
    running = submit(studio, "held", steps=150)
    assert backend.started.wait(WAIT_S)
    waiting = submit(studio, "waits")
    waiting.future.add_done_callback(lambda _: backend.release.set())
    studio.engine.close()
    for ticket in (running, waiting):
        with pytest.raises(CancelledError):
            ticket.future.result(WAIT_S)
    assert len(backend.steps) == 1

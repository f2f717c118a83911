"""The device's thread: every picture ends once, alone, and nothing stops the next one."""

from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from sd35.engine.loop import Ticket
from sd35.errors import NotReady, Overloaded, PictureFailed
from sd35.service.resolve import Wanted
from sd35.service.studio import Studio
from tests.double import WAIT_S, NumpyBackend, double_studio


@pytest.fixture
def backend() -> NumpyBackend:
    """A backend whose held pictures wait for `release`."""
    return NumpyBackend()


@pytest.fixture
def studio(tmp_path: Path, backend: NumpyBackend) -> Iterator[Studio]:
    """A studio in which two pictures may wait."""
    with double_studio(tmp_path, backend) as studio:
        yield studio
        backend.release.set()


def submit(studio: Studio, prompt: str, **wanted: float) -> Ticket:
    """Ask for a picture."""
    return studio.submit(studio.resolve(Wanted(prompt, seed=1, **wanted)))  # type: ignore[arg-type]


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


def test_progress_counts_each_step(studio: Studio):
    """The callback hears of every step, in order, before the picture is there."""
    heard: list[int] = []
    request = studio.resolve(Wanted("a cat", steps=5))
    studio.submit(request, heard.append).future.result(WAIT_S)
    assert heard == [1, 2, 3, 4, 5]


def test_pictures_are_made_in_the_order_they_came(studio: Studio, backend: NumpyBackend):
    """First come, first served."""
    tickets = [submit(studio, "held", steps=1)]
    assert backend.started.wait(WAIT_S)
    tickets += [submit(studio, prompt, steps=1) for prompt in ("second", "third")]
    backend.release.set()
    for ticket in tickets:
        ticket.future.result(WAIT_S)
    assert backend.steps == ["held", "second", "third"]


def test_a_full_queue_refuses_with_a_time(studio: Studio, backend: NumpyBackend):
    """Beside the picture in the making two may wait; the next is refused, and the accepted ones are still made."""
    tickets = [submit(studio, "held")]
    assert backend.started.wait(WAIT_S)
    tickets += [submit(studio, "waits") for _ in range(2)]
    with pytest.raises(Overloaded) as refused:
        submit(studio, "too many")
    assert refused.value.retry_after_s >= 1
    backend.release.set()
    assert all(ticket.future.result(WAIT_S) for ticket in tickets)


@pytest.mark.parametrize(
    ("prompt", "why"), [("crash", "RuntimeError: the runtime's own words"), ("nan", "finite in float32 at step 2 of 4")]
)
def test_a_failing_picture_fails_alone(studio: Studio, backend: NumpyBackend, prompt: str, why: str):
    """A runtime's error or a value that is not finite ends one picture, with its reason; its neighbours are made."""
    first = submit(studio, "held")
    assert backend.started.wait(WAIT_S)
    failing, last = submit(studio, prompt), submit(studio, "a cat")
    backend.release.set()
    with pytest.raises(PictureFailed, match=why):
        failing.future.result(WAIT_S)
    assert first.future.result(WAIT_S)
    assert last.future.result(WAIT_S)


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

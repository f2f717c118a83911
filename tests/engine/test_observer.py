"""What an engine tells of its work, and of each picture's stages."""

from typing import Any

import pytest

from sd35.engine.generation import Ticket
from sd35.engine.observer import Stage
from sd35.errors import PictureFailed
from sd35.generation.model_pool import Studio
from sd35.generation.params import Wanted
from tests.support.fake_backend import WAIT_S, NumpyBackend


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

    def stepped(self, pictures: int, rows: int, took_s: float) -> None:
        """See Observer."""
        assert took_s >= 0
        self.steps.append((pictures, rows))

    def failed(self, error: Exception, *, was_split: bool) -> None:
        """See Observer."""
        self.failures.append((str(error), was_split))


@pytest.fixture
def max_pictures() -> int:
    """Of the studio."""
    return 10


@pytest.fixture
def hearing(studio: Studio) -> Hearing:
    """Whom the studio's engine tells."""
    hearing = Hearing()
    studio.engine.observe(hearing)
    return hearing


def submit(studio: Studio, prompt: str, **wanted: Any) -> Ticket:
    """Ask for a picture."""
    return studio.submit(studio.resolve(Wanted(prompt, seed=1, **wanted)))


def test_steps_are_told_by_pictures_and_transformer_rows(studio: Studio, backend: NumpyBackend, hearing: Hearing):
    """Three steps with guidance, two without: 5 of pictures, 8 of rows, whatever batches they were made in."""
    held = submit(studio, "held", steps=3)
    assert backend.started.wait(WAIT_S)
    other = submit(studio, "a cat", steps=2, guidance_scale=1)
    backend.release.set()
    for ticket in (held, other):
        ticket.future.result(WAIT_S)
    assert sum(pictures for pictures, _ in hearing.steps) == 5
    assert sum(rows for _, rows in hearing.steps) == 8
    assert (1, 2) in hearing.steps
    assert hearing.prompts == 3  # two, and the empty negative one


def test_a_call_that_fails_is_told_and_then_the_call_of_the_one_that_made_it_fail(
    studio: Studio, backend: NumpyBackend, hearing: Hearing
):
    """Of two that step together, one crashes: the batch failed, then that one alone."""
    held = submit(studio, "held", steps=4)
    assert backend.started.wait(WAIT_S)
    others = [submit(studio, prompt, steps=4) for prompt in ("crash", "a cat")]
    backend.release.set()
    with pytest.raises(PictureFailed):
        others[0].future.result(WAIT_S)
    for ticket in (held, others[1]):
        ticket.future.result(WAIT_S)
    assert hearing.failures == [("the runtime's own words", True), ("the runtime's own words", False)]


@pytest.mark.parametrize("prompt", ["mute", "blind"])
def test_text_and_decoding_that_fail_are_told_too(studio: Studio, backend: NumpyBackend, hearing: Hearing, prompt: str):
    """The backend's words, once."""
    backend.release.set()
    with pytest.raises(PictureFailed):
        submit(studio, prompt, guidance_scale=1).future.result(WAIT_S)
    assert [was_split for _, was_split in hearing.failures] == [False]


def test_the_stages_of_a_picture_follow_each_other(studio: Studio):
    """Each begins where the one before ended, or later; none takes less than no time."""
    painted = submit(studio, "a cat").future.result(WAIT_S)
    assert [stage.name for stage in painted.stages] == ["queue", "encode", "denoise", "decode"]
    times_s = [time_s for stage in painted.stages for time_s in (stage.began_s, stage.ended_s)]
    assert times_s == sorted(times_s)
    assert painted.took_s == times_s[-1] - times_s[1]


def test_who_joins_a_picture_that_is_being_made_did_not_wait_in_the_queue(studio: Studio, backend: NumpyBackend):
    """Its stages begin when it came, and end with those of the one it joined."""
    first = submit(studio, "held")
    assert backend.started.wait(WAIT_S)
    second = submit(studio, "held")
    backend.release.set()
    one, two = (ticket.future.result(WAIT_S).stages for ticket in (first, second))
    assert two[0] == Stage("queue", second.accepted_s, second.accepted_s)
    assert two[1].took_s == 0
    assert two[2].began_s == second.accepted_s > one[2].began_s
    assert two[2].ended_s == one[2].ended_s
    assert two[3] == one[3]


def test_the_load_is_what_waits_and_what_runs(studio: Studio, backend: NumpyBackend):
    """A held picture runs, the next one waits; then nothing does."""
    held = submit(studio, "held")
    assert backend.started.wait(WAIT_S)
    other = submit(studio, "a cat")
    load = studio.engine.load
    assert (load.waiting, load.running) == (1, 1)
    assert load.backlog_s > 0
    backend.release.set()
    for ticket in (held, other):
        ticket.future.result(WAIT_S)
    studio.engine.drain()
    assert studio.engine.load == (0, 0, 0, 0)

"""The queue's policy: order, bound, and what a refusal says."""

import pytest

from sd35.engine.fifo import Fifo
from sd35.errors import Overloaded


def test_first_come_first_served():
    """Items leave in the order they came; none waits twice."""
    fifo: Fifo[str] = Fifo(3)
    for item in "abc":
        fifo.add(item)
    assert [fifo.next(), fifo.next(), fifo.next(), fifo.next()] == ["a", "b", "c", None]


def test_a_full_queue_refuses_and_takes_again_once_there_is_room():
    """The bound holds, and a cancelled item frees its place."""
    fifo: Fifo[str] = Fifo(1)
    fifo.add("a")
    with pytest.raises(Overloaded, match="1 pictures are waiting and at most 1 may"):
        fifo.add("b")
    assert fifo.cancel("a")
    assert not fifo.cancel("a")
    fifo.add("b")
    assert fifo.next() == "b"


def test_a_refusal_says_when_to_come_back_from_what_pictures_took():
    """The estimate follows the pictures' times, newer ones more, and is a second at least."""
    fifo: Fifo[str] = Fifo(1)
    fifo.finish(10)
    assert fifo.retry_after_s == 10
    fifo.finish(20)
    assert fifo.retry_after_s == pytest.approx(13)
    for _ in range(100):
        fifo.finish(0.01)
    assert fifo.retry_after_s == 1

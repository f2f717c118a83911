"""Invariants of the scheduling policy under any order of events."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sd35.engine.scheduling.backlog import WorkItem
from sd35.engine.scheduling.cost_model import Shape
from sd35.engine.scheduling.scheduler import Batch
from sd35.errors import InvalidRequest, Overloaded
from tests.support.scheduling import LARGE, LIMITS, SMALL, make_scheduler, work_item

Action = tuple[str, int, int, int, bool, int]
ACTIONS: st.SearchStrategy[list[Action]] = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "next", "finish", "decode", "decoded", "cancel", "restart"]),
        st.integers(0, 3),
        st.integers(1, 6),
        st.integers(1, 2),
        st.booleans(),
        st.integers(-9, 9),
    ),
    max_size=200,
)


class Driver:
    """Applies events in any order, and tracks the expected state independently."""

    def __init__(self, memory_bytes: int) -> None:
        self.scheduler = make_scheduler(replace(LIMITS, max_rows=5, max_in_flight=12, memory_bytes=memory_bytes))
        self.left: dict[int, int] = {}
        self.steps: dict[int, int] = {}
        self.ended: Counter[int] = Counter()
        self.batch: Batch[object] | None = None
        self.decoding: object = None
        self.keys = iter(range(10**6))

    def apply(self, action: Action) -> None:
        """Apply one event if it is possible now."""
        verb, client, steps, rows, is_large, priority = action
        if verb == "add":
            self.add(work_item(f"client {client}", steps, rows, LARGE if is_large else SMALL, priority))
        elif verb == "cancel" and self.left:
            key = list(self.left)[client % len(self.left)]
            self.scheduler.cancel(key)
            del self.left[key]
            self.ended[key] += 1
        elif verb == "restart" and self.left:
            self.restart(list(self.left)[client % len(self.left)], LARGE if is_large else SMALL)
        elif verb == "next" and not self.batch:
            self.batch = batch = self.scheduler.next_batch()
            assert not batch or batch.memory_bytes == batch.rows * (100 if batch.shape == SMALL else 400)
        elif verb == "finish" and self.batch:
            self.finish(self.batch)
        elif verb == "decode" and self.decoding is None:
            self.decoding = self.scheduler.next_decode()
        elif verb == "decoded" and self.decoding is not None:
            self.decoded()
        assert 0 <= self.scheduler.used_bytes <= self.scheduler.limits.memory_bytes
        assert len(self.scheduler) == len(self.left)

    def add(self, item: WorkItem) -> None:
        """Add an image. A refused one must not change the scheduler."""
        key = next(self.keys)
        try:
            self.scheduler.add(key, item, float(key))
        except (Overloaded, InvalidRequest):
            assert key not in self.scheduler
        else:
            self.steps[key] = self.left[key] = item.evaluations

    def restart(self, key: int, shape: Shape) -> None:
        """Restart an image under a new key."""
        new_key = next(self.keys)
        self.scheduler.restart(key, new_key, float(key), shape)
        self.steps[new_key] = self.left[new_key] = self.steps[key]
        del self.left[key]
        self.ended[key] += 1

    def finish(self, batch: Batch[object]) -> None:
        """End the step of the batch. Images that were cancelled during it must not be returned."""
        remaining = [key for key in batch.keys if key in self.left]
        finished = self.scheduler.finish()
        for key in remaining:
            assert isinstance(key, int)
            self.left[key] -= 1
        assert finished == [key for key in remaining if self.left[key] == 0]
        self.batch = None

    def decoded(self) -> None:
        """End the decoding and its image, unless it was cancelled meanwhile."""
        self.scheduler.decoded()
        if self.decoding in self.left:
            assert isinstance(self.decoding, int)
            assert self.left.pop(self.decoding) == 0
            self.ended[self.decoding] += 1
        self.decoding = None


@given(actions=ACTIONS, memory_bytes=st.sampled_from([1000, 2000, 2600, 10_000]))
def test_every_accepted_image_ends_exactly_once(actions: Sequence[Action], memory_bytes: int):
    """Every step counts once, and memory is never exceeded."""
    driver = Driver(memory_bytes)
    accepted = set[int]()
    for action in actions:
        driver.apply(action)
        accepted |= driver.left.keys()
    for _ in range(1000):
        if not driver.left and not driver.batch and driver.decoding is None:
            break
        for verb in ("finish", "decoded", "decode", "next"):
            driver.apply((verb, 0, 1, 1, False, 0))
    assert not driver.left
    assert set(driver.ended) == accepted
    assert set(driver.ended.values()) <= {1}
    assert driver.scheduler.used_bytes == 0
    assert driver.scheduler.backlog_s == 0

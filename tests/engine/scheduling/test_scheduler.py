"""The scheduling policy, step by step, without threads, a clock or tensors."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from sd35.engine.scheduling.backlog import WorkItem
from sd35.engine.scheduling.scheduler import SLOWDOWN_TARGET, Batch, Scheduler
from sd35.errors import InvalidRequest, Overloaded
from tests.support.scheduling import HUGE, LARGE, LIMITS, ROW_S, SMALL, make_scheduler, work_item


def step(scheduler: Scheduler[object]) -> Batch[object] | None:
    """Run one step, and all decodings that are possible after it. Return the batch."""
    batch = scheduler.next_batch()
    if batch:
        scheduler.finish()
    while scheduler.next_decode() is not None:
        scheduler.decoded()
    return batch


def batches(scheduler: Scheduler[object]) -> Iterator[Batch[object]]:
    """Yield the batches of all steps until no image is left."""
    while batch := step(scheduler):
        yield batch
    assert not len(scheduler)


def ends(scheduler: Scheduler[object]) -> list[object]:
    """Return the keys, ordered by last step."""
    last_steps = {key: index for index, batch in enumerate(batches(scheduler)) for key in batch.keys}
    return sorted(last_steps, key=lambda key: last_steps[key])


def test_rows_share_a_batch_whatever_their_steps_guidance_and_progress():
    """An image that arrives later, has another number of steps, or needs two rows joins the batch."""
    scheduler = make_scheduler()
    scheduler.add(1, work_item(steps=4), 0)
    assert step(scheduler) == Batch(SMALL, [1], 1, 100)
    scheduler.add(2, work_item(steps=7, rows=2), 1)
    batch = step(scheduler)
    assert batch
    assert (sorted(batch.keys, key=str), batch.rows) == ([1, 2], 3)


def test_images_of_different_shapes_do_not_share_a_batch():
    scheduler = make_scheduler()
    scheduler.add("small", work_item("a", shape=SMALL), 0)
    scheduler.add("large", work_item("b", shape=LARGE), 0)
    assert all(len(batch.keys) == 1 for batch in batches(scheduler))


def test_a_batch_has_at_most_max_rows():
    """An image with more rows than that is processed alone."""
    scheduler = make_scheduler()
    for key in range(20):
        scheduler.add(key, work_item(rows=1 + key % 2), 0)
    assert max(batch.rows for batch in batches(scheduler)) == 8
    scheduler = make_scheduler(replace(LIMITS, max_rows=1))
    scheduler.add("guided", work_item(rows=2), 0)
    assert [batch.rows for batch in batches(scheduler)] == [2, 2, 2, 2]


def test_a_short_image_overtakes_a_long_one_of_the_same_client():
    scheduler = make_scheduler(replace(LIMITS, max_rows=2))
    scheduler.add("long", work_item(steps=100, rows=2), 0)
    step(scheduler)
    scheduler.add("short", work_item(steps=4, rows=2), 0.02)
    assert ends(scheduler) == ["short", "long"]


def test_a_long_image_is_not_starved_by_short_ones():
    """It ends after about `SLOWDOWN_TARGET` times its own duration, although short images keep coming."""
    scheduler = make_scheduler(replace(LIMITS, max_rows=1))
    scheduler.add("long", work_item(steps=10), 0)
    now_s, key = 0.0, 0
    while "long" in scheduler:
        scheduler.add(key, work_item(steps=1), now_s)
        key += 1
        step(scheduler)
        now_s += ROW_S
    assert SLOWDOWN_TARGET * 0.1 * 0.5 < now_s < SLOWDOWN_TARGET * 0.1 * 1.5


def test_priority_orders_the_images_of_one_client_only():
    """A high priority gains nothing over other clients."""
    scheduler = make_scheduler(replace(LIMITS, max_rows=1))
    for key, priority in (("low", -1), ("usual", 0), ("high", 1)):
        scheduler.add(key, work_item("a", priority=priority), 0)
    scheduler.add("other", work_item("b"), 0)
    assert ends(scheduler) == ["high", "other", "usual", "low"]


def test_clients_get_equal_shares_whatever_they_request():
    """A client with a hundred long guided images gets no more of the device than one with a single row at a time."""
    scheduler = make_scheduler(replace(LIMITS, max_rows=4))
    for key in range(100):
        scheduler.add(f"greedy {key}", work_item("greedy", steps=50, rows=2), 0)
    scheduler.add("modest", work_item("modest", steps=100), 0)
    rows = Counter[str]()
    while "modest" in scheduler:
        batch = step(scheduler)
        assert batch
        rows["modest"] += batch.keys.count("modest")
        rows["all"] += batch.rows
    assert rows["modest"] == 100
    assert rows["all"] <= 4 * 100 + 4  # the modest client is in every batch from the first on


def test_a_new_client_does_not_wait_for_the_backlog_of_others():
    """Its image is in the next batch, although another client has a hundred images waiting."""
    scheduler = make_scheduler(replace(LIMITS, max_rows=1))
    for key in range(100):
        scheduler.add(key, work_item("greedy", steps=1), 0)
    for _ in range(10):
        step(scheduler)
    scheduler.add("new", work_item("modest", steps=2), 1)
    following = [step(scheduler) for _ in range(4)]
    assert [batch.keys for batch in following if batch].count(["new"]) == 2


def test_a_batch_and_a_decoding_share_the_memory():
    """The memory is enough for one decoding or five rows, so no step runs during a decoding."""
    scheduler = make_scheduler(replace(LIMITS, memory_bytes=500))
    for key in range(10):
        scheduler.add(key, work_item(steps=1), 0)
    first = scheduler.next_batch()
    assert first
    assert first.rows == 5
    assert scheduler.next_decode() is None
    scheduler.finish()
    assert scheduler.next_decode() in first.keys
    assert scheduler.used_bytes == 500
    assert scheduler.next_batch() is None
    scheduler.decoded()


def test_a_shape_without_measurements_runs_one_image_at_a_time():
    """Its memory is unknown until the first step."""
    scheduler = make_scheduler(replace(LIMITS, memory_bytes=3000))
    for key in range(3):
        scheduler.add(
            key, work_item(shape=HUGE), 0
        )  # estimated by area to need more than the limit, and tried all the same
    batch = step(scheduler)
    assert batch
    assert len(batch.keys) == 1
    scheduler.costs.learn_step_bytes(batch.shape, 1, 900)
    batch = step(scheduler)
    assert batch
    assert len(batch.keys) == 3


def test_a_long_image_ends_though_new_clients_keep_coming():
    scheduler = make_scheduler(replace(LIMITS, max_rows=8))
    scheduler.add("long", work_item("long", steps=20), 0)
    key = 0
    for _ in range(200):
        while len(scheduler) < 64:
            scheduler.add(key, work_item(f"client {key}", steps=1), 1)
            key += 1
        step(scheduler)
    assert "long" not in scheduler


def test_a_client_gathers_no_credit_while_it_requests_little():
    """A client with a light load for a long time does not displace others when it then sends a heavy one."""
    scheduler = make_scheduler(replace(LIMITS, max_rows=4))
    keys = iter(range(10**6))
    for _ in range(300):
        while len(scheduler) < 20:
            scheduler.add(("greedy", next(keys)), work_item("greedy", steps=5), 0)
        if ("modest", 0) not in scheduler:
            scheduler.add(("modest", 0), work_item("modest", steps=100), 0)
        step(scheduler)
    for _ in range(50):
        scheduler.add(("modest", next(keys)), work_item("modest", steps=100), 0)
    rows = Counter(str(key[0]) for _ in range(50) for key in (step(scheduler) or pytest.fail("idle")).keys)  # type: ignore[index]
    assert rows["greedy"] >= 0.4 * rows.total()


def test_the_shape_of_the_least_served_client_is_next():
    """A client gets its share of steps although another client floods the device with images of another shape."""
    scheduler = make_scheduler(replace(LIMITS, max_rows=4))
    for key in range(50):
        scheduler.add(key, work_item("flood", steps=50, priority=9, shape=SMALL), 0)
    scheduler.add("other", work_item("modest", steps=5, shape=LARGE), 1)
    first = [step(scheduler) for _ in range(60)]
    assert [batch.shape for batch in first if batch].count(LARGE) == 5


def test_cancelled_images_do_not_pile_up_in_the_queue():
    """A client adds and cancels thousands of images behind an urgent one."""
    scheduler = make_scheduler()
    scheduler.add("urgent", work_item(steps=150, priority=9), 0)
    for key in range(5000):
        scheduler.add(key, work_item(priority=-9), key)
        scheduler.cancel(key)
    (queue,) = scheduler._queues.values()  # noqa: SLF001
    assert sum(map(len, queue._entries.values())) < 300  # noqa: SLF001


@pytest.mark.parametrize("state", ["ready", "running", "reserved", "decoding"])
def test_a_cancelled_image_frees_its_memory_at_the_latest_after_its_step(state: str):
    """And it is in no later batch."""
    scheduler = make_scheduler()
    scheduler.add("image", work_item(steps=1 if state in {"reserved", "decoding"} else 2), 0)
    if state != "ready":
        assert scheduler.next_batch()
    if state == "reserved":
        assert scheduler.finish() == ["image"]
        assert scheduler.next_batch() is None
        assert scheduler.used_bytes == 500
    if state == "decoding":
        scheduler.finish()
        assert scheduler.next_decode() == "image"
    scheduler.cancel("image")
    assert "image" not in scheduler
    if state == "running":
        assert scheduler.finish() == []
    if state == "decoding":
        scheduler.decoded()
    assert scheduler.used_bytes == 0
    assert scheduler.backlog_s == 0
    assert scheduler.next_batch() is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (work_item(priority=10), "priority: got 10; allowed: -9 to 9"),
        (work_item(shape=HUGE), "width x height: got '256x256'; allowed: sizes that fit in 0.0 MB of working memory"),
    ],
)
def test_a_request_that_can_never_run_is_refused(wrong: WorkItem, message: str):
    """The error names the limit, and the scheduler is unchanged."""
    scheduler = make_scheduler()
    scheduler.costs.learn_decode_bytes(HUGE, 10_001)
    with pytest.raises(InvalidRequest) as refused:
        scheduler.add("wrong", wrong, 0)
    assert str(refused.value).startswith(message)
    assert not len(scheduler)


def test_a_full_queue_refuses_with_a_retry_time_and_keeps_places_for_other_clients():
    """One client alone cannot fill the queue."""
    scheduler = make_scheduler(replace(LIMITS, max_in_flight=10))
    for key in range(9):
        scheduler.add(key, work_item("greedy", steps=150, rows=2), 0)
    with pytest.raises(Overloaded, match="9 of at most 10 images are waiting or running, including 9 of this client"):
        scheduler.add("one more", work_item("greedy"), 0)
    scheduler.add("other", work_item("modest"), 0)
    with pytest.raises(Overloaded, match="10 of at most 10 images are waiting or running; try again in") as refused:
        scheduler.add("another", work_item("third"), 0)
    assert refused.value.retry_after_s == pytest.approx((9 * 300 + 4) * ROW_S / 10)


class Flood:
    """A client that sends images of two rows and one to four steps until one is refused, again and again."""

    def __init__(self, scheduler: Scheduler[object]) -> None:
        self._scheduler = scheduler
        self._keys = count()

    def send(self) -> str:
        """Add images until one is refused. Return the error."""
        try:
            while True:
                key = next(self._keys)
                self._scheduler.add(key, work_item("flood", steps=1 + key % 4, rows=2), 0)
        except Overloaded as refused:
            return str(refused)

    def overload(self) -> None:
        """Fill the queue before every step, until four times `max_in_flight` images were sent."""
        while next(self._keys) < 4 * self._scheduler.limits.max_in_flight:
            self.send()
            step(self._scheduler)


def test_a_burst_may_fill_the_queue_but_lasting_overload_only_a_batch():
    """Overload is lasting after `max_in_flight` images without a half-empty batch, and over after one."""
    scheduler = make_scheduler(replace(LIMITS, max_in_flight=10, max_slowdown=6))
    flood = Flood(scheduler)
    assert flood.send().startswith("9 of at most 10 images are waiting or running")
    flood.overload()
    assert re.match(
        "the service is overloaded, and images take (8|10) times as long as they would alone; try again", flood.send()
    )
    assert len(scheduler) <= 5
    while len(scheduler) > 2:
        step(scheduler)
    assert flood.send().startswith("9 of at most 10 images are waiting or running")


def test_lasting_overload_accepts_clients_without_images():
    """All of them up to `max_in_flight`, although the flood's next image is refused."""
    scheduler = make_scheduler(replace(LIMITS, max_in_flight=10, max_slowdown=6))
    flood = Flood(scheduler)
    flood.overload()
    assert flood.send().startswith("the service is overloaded")
    for client in range(scheduler.limits.max_in_flight - len(scheduler)):
        scheduler.add(f"of client {client}", work_item(f"client {client}", rows=2), 0)
    assert flood.send().startswith("the service is overloaded")


def test_lasting_overload_refuses_nothing_if_batching_saves_much():
    """The limit is on the slowdown relative to an image alone."""
    scheduler = make_scheduler(replace(LIMITS, max_in_flight=10, max_slowdown=6))
    for _ in range(100):
        scheduler.costs.learn_step_time(SMALL, 8, 8 * ROW_S / 4)
    assert scheduler.costs.batching(SMALL) == pytest.approx(0.25)
    flood = Flood(scheduler)
    flood.overload()
    assert flood.send().startswith("9 of at most 10 images are waiting or running")


def test_a_restart_skips_admission_and_goes_before_later_images():
    """The queue is full, and the restarted image runs before images that arrived after it."""
    scheduler = make_scheduler(replace(LIMITS, max_wait_s=5, max_rows=1))
    scheduler.add("failed", work_item("greedy"), 0)
    for key in range(2):
        scheduler.add(key, work_item("greedy", steps=150, rows=2), 0)
    with pytest.raises(Overloaded):
        scheduler.add("another", work_item("greedy"), 0)
    assert scheduler.next_batch() == Batch(SMALL, ["failed"], 1, 100)
    scheduler.restart("failed", "retry", 0, LARGE)
    assert scheduler.finish() == []
    assert "failed" not in scheduler
    processed = []
    while "retry" not in processed:
        batch = scheduler.next_batch()
        assert batch
        processed += batch.keys
        scheduler.finish()
    assert len(processed) <= 2


def test_a_long_estimated_wait_is_refused_only_for_clients_that_cause_it():
    """A client without images is accepted, because fair queueing puts its image first."""
    scheduler = make_scheduler(replace(LIMITS, max_wait_s=5))
    for key in range(3):
        scheduler.add(key, work_item("greedy", steps=100, rows=2), 0)
    with pytest.raises(Overloaded, match="the estimated wait of 6 s exceeds the limit of 5 s"):
        scheduler.add("one more", work_item("greedy"), 0)
    scheduler.add("new", work_item("modest"), 0)

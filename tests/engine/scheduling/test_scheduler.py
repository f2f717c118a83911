"""The policy, driven step by step: no thread, no clock, no tensor."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from sd35.engine.scheduling.scheduler import SLOWDOWN_TARGET, Batch, Scheduler, WorkItem
from sd35.errors import InvalidRequest, Overloaded
from tests.support.scheduling import HUGE, LARGE, LIMITS, ROW_S, SMALL, job, make


def step(scheduler: Scheduler[object]) -> Batch[object] | None:
    """One batch that takes what it should, and all decodings that are due."""
    batch = scheduler.next_batch()
    if batch:
        scheduler.finish()
    while scheduler.next_decode() is not None:
        scheduler.decoded()
    return batch


def batches(scheduler: Scheduler[object]) -> Iterator[Batch[object]]:
    """All batches until nothing is left."""
    while batch := step(scheduler):
        yield batch
    assert not len(scheduler)


def ends(scheduler: Scheduler[object]) -> list[object]:
    """The keys in the order of their last steps."""
    last = {key: index for index, batch in enumerate(batches(scheduler)) for key in batch.keys}
    return sorted(last, key=lambda key: last[key])


def test_rows_share_a_batch_whatever_their_steps_guidance_and_progress():
    """Images of one shape step together, also one that comes later, has other steps, or takes two rows."""
    scheduler = make()
    scheduler.add(1, job(steps=4), 0)
    assert step(scheduler) == Batch(SMALL, [1], 1, 100)
    scheduler.add(2, job(steps=7, rows=2), 1)
    batch = step(scheduler)
    assert batch
    assert (sorted(batch.keys, key=str), batch.rows) == ([1, 2], 3)


def test_shapes_do_not_share_a_batch():
    """A batch has one latent shape; both shapes get their turns."""
    scheduler = make()
    scheduler.add("small", job("a", shape=SMALL), 0)
    scheduler.add("large", job("b", shape=LARGE), 0)
    assert all(len(batch.keys) == 1 for batch in batches(scheduler))


def test_a_batch_has_no_more_rows_than_allowed():
    """Eight rows at most; an image that alone takes more is stepped by itself."""
    scheduler = make()
    for key in range(20):
        scheduler.add(key, job(rows=1 + key % 2), 0)
    assert max(batch.rows for batch in batches(scheduler)) == 8
    scheduler = make(replace(LIMITS, max_rows=1))
    scheduler.add("guided", job(rows=2), 0)
    assert [batch.rows for batch in batches(scheduler)] == [2, 2, 2, 2]


def test_short_images_overtake_long_ones():
    """Of one client's images the short one that comes later ends first."""
    scheduler = make(replace(LIMITS, max_rows=2))
    scheduler.add("long", job(steps=100, rows=2), 0)
    step(scheduler)
    scheduler.add("short", job(steps=4, rows=2), 0.02)
    assert ends(scheduler) == ["short", "long"]


def test_a_long_image_is_not_starved_by_short_ones():
    """However many short ones keep coming, a long one ends once it waited `SLOWDOWN_TARGET` times its own length."""
    scheduler = make(replace(LIMITS, max_rows=1))
    scheduler.add("long", job(steps=10), 0)
    now_s, key = 0.0, 0
    while "long" in scheduler:
        scheduler.add(key, job(steps=1), now_s)
        key += 1
        step(scheduler)
        now_s += ROW_S
    assert SLOWDOWN_TARGET * 0.1 * 0.5 < now_s < SLOWDOWN_TARGET * 0.1 * 1.5


def test_a_priority_moves_an_image_before_its_clients_others():
    """A higher priority goes first among a client's own images, and gains nothing over other clients."""
    scheduler = make(replace(LIMITS, max_rows=1))
    for key, priority in (("low", -1), ("usual", 0), ("high", 1)):
        scheduler.add(key, job("a", priority=priority), 0)
    scheduler.add("other", job("b"), 0)
    assert ends(scheduler) == ["high", "other", "usual", "low"]


def test_clients_get_equal_shares_whatever_they_ask_for():
    """A client with a hundred long guided images takes no more of the device than one with a single row at a time."""
    scheduler = make(replace(LIMITS, max_rows=4))
    for key in range(100):
        scheduler.add(f"greedy {key}", job("greedy", steps=50, rows=2), 0)
    scheduler.add("modest", job("modest", steps=100), 0)
    rows = Counter[str]()
    while "modest" in scheduler:
        batch = step(scheduler)
        assert batch
        rows["modest"] += batch.keys.count("modest")
        rows["all"] += batch.rows
    assert rows["modest"] == 100
    assert rows["all"] <= 4 * 100 + 4  # in every batch from the first on: nobody could be served more often


def test_a_new_client_does_not_wait_for_the_backlog_of_others():
    """Who comes when another client has a hundred images waiting is in the very next batch."""
    scheduler = make(replace(LIMITS, max_rows=1))
    for key in range(100):
        scheduler.add(key, job("greedy", steps=1), 0)
    for _ in range(10):
        step(scheduler)
    scheduler.add("new", job("modest", steps=2), 1)
    following = [step(scheduler) for _ in range(4)]
    assert [batch.keys for batch in following if batch].count(["new"]) == 2


def test_a_batch_and_a_decoding_share_the_memory():
    """With memory for a decoding or five rows, no step runs beside a decoding that takes it all."""
    scheduler = make(replace(LIMITS, memory_bytes=500))
    for key in range(10):
        scheduler.add(key, job(steps=1), 0)
    first = scheduler.next_batch()
    assert first
    assert first.rows == 5
    assert scheduler.next_decode() is None
    scheduler.finish()
    assert scheduler.next_decode() in first.keys
    assert scheduler.used_bytes == 500
    assert scheduler.next_batch() is None
    scheduler.decoded()


def test_a_shape_never_measured_steps_one_image_alone():
    """Until its memory is known, a shape's batch holds a single image."""
    scheduler = make(replace(LIMITS, memory_bytes=3000))
    for key in range(3):
        scheduler.add(key, job(shape=HUGE), 0)  # guessed by area to take more than there is, and tried all the same
    batch = step(scheduler)
    assert batch
    assert len(batch.keys) == 1
    scheduler.costs.learn_step_bytes(batch.shape, 1, 900)
    batch = step(scheduler)
    assert batch
    assert len(batch.keys) == 3


def test_a_long_image_ends_though_new_clients_keep_coming():
    """Clients that come anew with one step each do not hold up one that was there before."""
    scheduler = make(replace(LIMITS, max_rows=8))
    scheduler.add("long", job("long", steps=20), 0)
    key = 0
    for _ in range(200):
        while len(scheduler) < 64:
            scheduler.add(key, job(f"client {key}", steps=1), 1)
            key += 1
        step(scheduler)
    assert "long" not in scheduler


def test_a_client_gathers_no_credit_while_it_had_all_it_wanted():
    """One that was in every batch for long, with little to do, does not shut out others when it comes with much."""
    scheduler = make(replace(LIMITS, max_rows=4))
    keys = iter(range(10**6))
    for _ in range(300):
        while len(scheduler) < 20:
            scheduler.add(("greedy", next(keys)), job("greedy", steps=5), 0)
        if ("modest", 0) not in scheduler:
            scheduler.add(("modest", 0), job("modest", steps=100), 0)
        step(scheduler)
    for _ in range(50):
        scheduler.add(("modest", next(keys)), job("modest", steps=100), 0)
    rows = Counter(str(key[0]) for _ in range(50) for key in (step(scheduler) or pytest.fail("idle")).keys)  # type: ignore[index]
    assert rows["greedy"] >= 0.4 * rows.total()


def test_the_shape_of_the_least_served_client_is_next():
    """A client with the one size waits no longer than its share, though another floods the device with the other."""
    scheduler = make(replace(LIMITS, max_rows=4))
    for key in range(50):
        scheduler.add(key, job("flood", steps=50, priority=9, shape=SMALL), 0)
    scheduler.add("other", job("modest", steps=5, shape=LARGE), 1)
    first = [step(scheduler) for _ in range(60)]
    assert [batch.shape for batch in first if batch].count(LARGE) == 5


def test_cancelled_images_do_not_pile_up():
    """A client that adds and cancels thousands behind an urgent one leaves no trail of them."""
    scheduler = make()
    scheduler.add("urgent", job(steps=150, priority=9), 0)
    for key in range(5000):
        scheduler.add(key, job(priority=-9), key)
        scheduler.cancel(key)
    (queue,) = scheduler._queues.values()  # noqa: SLF001
    assert sum(map(len, queue._entries.values())) < 300  # noqa: SLF001


@pytest.mark.parametrize("moment", ["ready", "running", "set aside", "decoding"])
def test_cancelling_frees_at_once_or_within_the_step(moment: str):
    """Whatever an image is doing, once cancelled it is in no later batch, and its memory is free after the step."""
    scheduler = make()
    scheduler.add("image", job(steps=1 if moment in ("set aside", "decoding") else 2), 0)
    if moment != "ready":
        assert scheduler.next_batch()
    if moment == "set aside":
        assert scheduler.finish() == ["image"]
        assert scheduler.next_batch() is None
        assert scheduler.used_bytes == 500
    if moment == "decoding":
        scheduler.finish()
        assert scheduler.next_decode() == "image"
    scheduler.cancel("image")
    assert "image" not in scheduler
    if moment == "running":
        assert scheduler.finish() == []
    if moment == "decoding":
        scheduler.decoded()
    assert scheduler.used_bytes == 0
    assert scheduler.backlog_s == 0
    assert scheduler.next_batch() is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (job(priority=10), "priority: got 10; allowed: -9 to 9"),
        (job(shape=HUGE), "width x height: got '256x256'; allowed: what 0.0 MB can hold; this size takes 0.0 MB"),
    ],
)
def test_a_request_that_can_never_run_is_refused(wrong: WorkItem, why: str):
    """Bad input is refused at the door, naming the limit, and leaves nothing behind."""
    scheduler = make()
    scheduler.costs.learn_decode_bytes(HUGE, 10_001)
    with pytest.raises(InvalidRequest) as refused:
        scheduler.add("wrong", wrong, 0)
    assert str(refused.value).startswith(why)
    assert not len(scheduler)


def test_a_full_queue_refuses_with_an_estimate_and_keeps_a_place_for_others():
    """One client cannot take every place; when all are taken, the refusal says when one is likely to be free."""
    scheduler = make(replace(LIMITS, max_in_flight=10))
    for key in range(9):
        scheduler.add(key, job("greedy", steps=150, rows=2), 0)
    with pytest.raises(Overloaded, match="9 of at most 10 images are accepted and 9 of them are this client's"):
        scheduler.add("one more", job("greedy"), 0)
    scheduler.add("other", job("modest"), 0)
    with pytest.raises(Overloaded, match="10 of at most 10 images are accepted; try again in") as refused:
        scheduler.add("another", job("third"), 0)
    assert refused.value.retry_after_s == pytest.approx((9 * 300 + 4) * ROW_S / 10)


class Flood:
    """A client that asks for images of two rows and of one step to four until it is refused, again and again."""

    def __init__(self, scheduler: Scheduler[object]) -> None:
        self._scheduler = scheduler
        self._keys = count()

    def ask(self) -> str:
        """Add images until one is refused; the reason."""
        try:
            while True:
                key = next(self._keys)
                self._scheduler.add(key, job("flood", steps=1 + key % 4, rows=2), 0)
        except Overloaded as refused:
            return str(refused)

    def last(self) -> None:
        """Ask at every step until four times as many images have come as there are places."""
        while next(self._keys) < 4 * self._scheduler.limits.max_in_flight:
            self.ask()
            step(self._scheduler)


def test_a_burst_may_take_every_place_and_lasting_overload_only_a_full_batch():
    """After a whole turnover of its images without rest, a device takes one batch, and all once it was half empty."""
    scheduler = make(replace(LIMITS, max_in_flight=10, max_slowdown=6))
    flood = Flood(scheduler)
    assert flood.ask().startswith("9 of at most 10 images are accepted")
    flood.last()
    assert re.match("the service is overloaded: images take (8|10) times as long as alone; try again", flood.ask())
    assert len(scheduler) <= 5
    while len(scheduler) > 2:
        step(scheduler)
    assert flood.ask().startswith("9 of at most 10 images are accepted")


def test_lasting_overload_takes_no_client_its_share():
    """Clients that have nothing are accepted up to the last place, although the flood's next image is refused."""
    scheduler = make(replace(LIMITS, max_in_flight=10, max_slowdown=6))
    flood = Flood(scheduler)
    flood.last()
    assert flood.ask().startswith("the service is overloaded")
    for client in range(scheduler.limits.max_in_flight - len(scheduler)):
        scheduler.add(f"of client {client}", job(f"client {client}", rows=2), 0)
    assert flood.ask().startswith("the service is overloaded")


def test_where_batching_saves_much_lasting_overload_takes_no_place():
    """Images that cost each other little all stay: what counts is how much longer one takes than alone."""
    scheduler = make(replace(LIMITS, max_in_flight=10, max_slowdown=6))
    for _ in range(100):
        scheduler.costs.learn_step_time(SMALL, 8, 8 * ROW_S / 4)
    assert scheduler.costs.batching(SMALL) == pytest.approx(0.25)
    flood = Flood(scheduler)
    flood.last()
    assert flood.ask().startswith("9 of at most 10 images are accepted")


def test_a_restart_skips_admission_and_goes_before_later_images():
    """A wait that is too long for another is not asked about; who begins anew goes before who came later."""
    scheduler = make(replace(LIMITS, max_wait_s=5, max_rows=1))
    scheduler.add("spoiled", job("greedy"), 0)
    for key in range(2):
        scheduler.add(key, job("greedy", steps=150, rows=2), 0)
    with pytest.raises(Overloaded):
        scheduler.add("another", job("greedy"), 0)
    assert scheduler.next_batch() == Batch(SMALL, ["spoiled"], 1, 100)
    scheduler.restart("spoiled", "again", 0, LARGE)
    assert scheduler.finish() == []
    assert "spoiled" not in scheduler
    turns = []
    while "again" not in turns:
        batch = scheduler.next_batch()
        assert batch
        turns += batch.keys
        scheduler.finish()
    assert len(turns) <= 2


def test_a_wait_that_is_too_long_is_refused_but_not_for_a_client_with_nothing_in_it():
    """The estimate is of the client's own wait: a newcomer is accepted where the queue's owner is refused."""
    scheduler = make(replace(LIMITS, max_wait_s=5))
    for key in range(3):
        scheduler.add(key, job("greedy", steps=100, rows=2), 0)
    with pytest.raises(Overloaded, match="an image would wait for 6 s and may for 5"):
        scheduler.add("one more", job("greedy"), 0)
    scheduler.add("new", job("modest"), 0)

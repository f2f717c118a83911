"""The limits on webhooks in flight, and the choice of the next ones."""

from collections import Counter
from collections.abc import Mapping, Sequence

import hypothesis.strategies as st
from hypothesis import given

from sd35.jobs.webhooks.concurrency import (
    MAX_IN_FLIGHT,
    MAX_SLOW,
    PER_HOST,
    PER_OWNER,
    PER_SLOW_HOST,
    SLOW_PER_OWNER,
    InFlight,
)
from sd35.storage.jobs import DueWebhooks, Receiver

OWNERS, HOSTS = [f"owner {number}" for number in range(8)], [f"{number}.example" for number in range(24)]
RECEIVERS = st.builds(Receiver, st.sampled_from(OWNERS), st.sampled_from(HOSTS))
BACKLOG = 10_000


def due_of(counts: Mapping[Receiver, int]) -> list[DueWebhooks]:
    """Return the given number of due webhooks for each receiver, in the order in which they became due."""
    return [DueWebhooks(receiver, count, float(index)) for index, (receiver, count) in enumerate(counts.items())]


DUE = st.dictionaries(RECEIVERS, st.integers(1, BACKLOG), max_size=40).map(due_of)
STARTED = st.lists(RECEIVERS, max_size=60)
SLOW_HOSTS = st.sets(st.sampled_from(HOSTS))


class SimpleInFlight:
    """The rules of `InFlight` in their simplest form: one webhook at a time, checking all receivers each time."""

    def __init__(self, started: Sequence[Receiver], slow: set[str]) -> None:
        self.started, self.slow = list(started), slow
        self.last: dict[Receiver | str, int] = {}
        for number, receiver in enumerate(started, 1):
            self.last |= {receiver.owner: number, receiver: number}

    def count(self, owner: str | None = None, host: str | None = None, *, slow: bool = False) -> int:
        """Return the number in flight of an owner, to a host, or to slow hosts."""
        return sum(
            (owner is None or one.owner == owner)
            and (host is None or one.host == host)
            and (not slow or one.host in self.slow)
            for one in self.started
        )

    def has_slot(self, receiver: Receiver) -> bool:
        """Return whether one more webhook to a receiver is allowed."""
        owner, host = receiver
        has_slot = self.count() < MAX_IN_FLIGHT and self.count(owner) < PER_OWNER
        if host not in self.slow:
            return has_slot and self.count(host=host) < PER_HOST
        has_slow_slot = self.count(slow=True) < MAX_SLOW and self.count(owner, slow=True) < SLOW_PER_OWNER
        return has_slot and has_slow_slot and self.count(host=host) < PER_SLOW_HOST

    def choose(self, due: Sequence[DueWebhooks]) -> Counter[Receiver]:
        """Choose one webhook after the other."""
        chosen: Counter[Receiver] = Counter()
        oldest = {one.receiver.owner: one.oldest_s for one in sorted(due, key=lambda one: -one.oldest_s)}
        while free := [one for one in due if chosen[one.receiver] < one.count and self.has_slot(one.receiver)]:
            one = min(
                free,
                key=lambda one: (
                    self.count(one.receiver.owner),
                    self.last.get(one.receiver.owner, 0),
                    oldest[one.receiver.owner],
                    one.receiver.owner,
                    self.count(host=one.receiver.host),
                    self.last.get(one.receiver, 0),
                    one.oldest_s,
                ),
            )
            chosen[one.receiver] += 1
            self.started.append(one.receiver)
        return +chosen


def in_flight_with(started: Sequence[Receiver], slow: set[str]) -> InFlight:
    """Return an `InFlight` with started webhooks, whatever the limits, and slow hosts."""
    in_flight = InFlight()
    for receiver in started:
        in_flight.start(receiver)
    for host in slow:
        in_flight.note_speed(host, is_slow=True)
    return in_flight


@given(DUE, STARTED, SLOW_HOSTS)
def test_the_fast_choice_equals_the_simple_one(due: list[DueWebhooks], started: list[Receiver], slow: set[str]):
    """So no limit is exceeded, and no slot is left free needlessly."""
    assert in_flight_with(started, slow).copy().choose(due) == SimpleInFlight(started, slow).choose(due)


def test_a_webhook_of_another_owner_is_chosen_despite_any_backlog():
    """Whether slots are free or one becomes free, and however long the backlog is due."""
    in_flight, other = InFlight(), Receiver("you", "you.example")
    backlog = {Receiver("me", host): BACKLOG for host in HOSTS}
    chosen = in_flight.choose(due_of(backlog))
    assert (chosen.total(), max(chosen.values())) == (PER_OWNER, 1)
    for receiver in chosen.elements():
        in_flight.start(receiver)
    assert in_flight.choose(due_of(backlog | {other: 1})) == {other: 1}
    in_flight.end(next(iter(chosen)))
    assert in_flight.choose(due_of(backlog | {other: 1}))[other] == 1


def test_one_host_takes_few_of_its_owners_slots():
    """The rest is left to the owner's other hosts."""
    in_flight, receivers = InFlight(), [Receiver("me", "stuck.example"), Receiver("me", "good.example")]
    for receiver in in_flight.choose(due_of({receivers[0]: BACKLOG})).elements():
        in_flight.start(receiver)
    assert in_flight.choose(due_of(dict.fromkeys(receivers, BACKLOG))) == {receivers[1]: PER_HOST}


def test_slow_hosts_share_some_of_the_slots():
    """One slot each, and few per owner and in total, until a host answers quickly again."""
    receivers = [Receiver(owner, f"{owner} {host}") for owner in OWNERS for host in HOSTS]
    in_flight = in_flight_with([], {receiver.host for receiver in receivers})
    chosen = in_flight.choose(due_of(dict.fromkeys(receivers, BACKLOG)))
    assert (chosen.total(), max(chosen.values())) == (MAX_SLOW, 1)
    assert max(Counter(receiver.owner for receiver in chosen.elements()).values()) <= SLOW_PER_OWNER
    in_flight.note_speed(receivers[0].host, is_slow=False)
    assert in_flight.choose(due_of({receivers[0]: BACKLOG})) == {receivers[0]: PER_HOST}


@given(st.dictionaries(RECEIVERS, st.just(BACKLOG), min_size=1))
def test_each_receiver_gets_its_turn(counts: dict[Receiver, int]):
    """If webhooks are sent one at a time, owners take turns, and so do the receivers of each owner."""
    in_flight, due = InFlight(), due_of(counts)
    owners = {receiver.owner for receiver in counts}
    turns: list[Receiver] = []
    for _ in range(len(owners) * max(Counter(receiver.owner for receiver in counts).values())):
        (receiver, *_) = in_flight.choose(due)
        in_flight.start(receiver)
        in_flight.end(receiver)
        turns.append(receiver)
    for start in range(0, len(turns), len(owners)):
        assert {receiver.owner for receiver in turns[start : start + len(owners)]} == owners
    assert set(turns) == set(counts)


def test_the_number_of_remembered_hosts_is_bounded():
    in_flight = InFlight()
    for number in range(3 * BACKLOG):
        receiver = Receiver(str(number), str(number))
        in_flight.start(receiver)
        in_flight.end(receiver)
        in_flight.note_speed(receiver.host, is_slow=True)
    remembered = [value for value in vars(in_flight).values() if isinstance(value, dict)]
    assert remembered
    assert all(len(each) <= BACKLOG for each in remembered)

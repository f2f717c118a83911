"""Limits on simultaneous webhooks, and the choice of the next webhooks to send.

Each webhook that is being sent occupies a slot. If a host accepts the connection but never answers, it occupies the
slot until the attempt times out. Therefore, the slots of each owner and of each host are limited. If the last attempt
to reach a host was slow, the host gets only one slot, and few slots are for slow hosts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

from sd35.storage.jobs import DueWebhooks, Receiver

MAX_IN_FLIGHT, PER_OWNER, PER_HOST = 64, 16, 4  # maximum slots: in total, of an owner, of a host
MAX_SLOW, SLOW_PER_OWNER, PER_SLOW_HOST = 16, 4, 1  # the same for slow hosts; these slots are among those above
_MAX_REMEMBERED = 10_000  # entries of each dict; the least recently used are removed first


class _Candidate(NamedTuple):
    """A receiver with due webhooks. The smallest candidate of an owner goes first.

    Attributes:
        in_flight: Number of webhooks in flight to the host.
        last_start: Serial number of the last webhook started to this receiver; 0 if it is not remembered.
        oldest_s: When the oldest of its due webhooks became due, in seconds since 1970.
        receiver: Owner and host of the webhooks.
        due_count: Number of its due webhooks that are not chosen yet.
    """

    in_flight: int
    last_start: int
    oldest_s: float
    receiver: Receiver
    due_count: int


@dataclass
class _Load:
    """Numbers of webhooks in flight: in total, by owner, by host, and to slow hosts."""

    owners: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    slow_by_owner: Counter[str] = field(default_factory=Counter)
    total: int = 0
    slow: int = 0

    def add(self, receiver: Receiver, *, is_slow: bool) -> None:
        """Count a webhook. `is_slow` is whether its host is slow."""
        self.total += 1
        self.owners[receiver.owner] += 1
        self.hosts[receiver.host] += 1
        if is_slow:
            self.slow += 1
            self.slow_by_owner[receiver.owner] += 1

    def has_slot(self, receiver: Receiver, *, is_slow: bool) -> bool:
        """Return whether another webhook may be sent to a receiver. `is_slow` is whether its host is slow."""
        has_slot = self.total < MAX_IN_FLIGHT and self.owners[receiver.owner] < PER_OWNER
        if not is_slow:
            return has_slot and self.hosts[receiver.host] < PER_HOST
        has_slow_slot = self.slow < MAX_SLOW and self.slow_by_owner[receiver.owner] < SLOW_PER_OWNER
        return has_slot and has_slow_slot and self.hosts[receiver.host] < PER_SLOW_HOST


class InFlight:
    """The webhooks that this process is sending now. Not thread-safe: pass a copy to other threads."""

    def __init__(self) -> None:
        self._receivers: Counter[Receiver] = Counter()
        self._slow_hosts: dict[str, None] = {}  # a set in order: the least recently slow host first
        self._last_start: dict[Receiver | str, int] = {}  # by receiver, and by owner; the earliest first
        self._starts = 0  # number of started webhooks, which numbers the starts

    @property
    def is_full(self) -> bool:
        """Whether all slots are occupied."""
        return self._receivers.total() >= MAX_IN_FLIGHT

    def copy(self) -> "InFlight":
        """Return a copy of the current state."""
        copied = InFlight()
        copied._receivers, copied._starts = Counter(self._receivers), self._starts
        copied._slow_hosts, copied._last_start = dict(self._slow_hosts), dict(self._last_start)
        return copied

    def start(self, receiver: Receiver) -> None:
        """Occupy a slot for a webhook to a receiver. Remembers the order of starts for `choose`."""
        self._receivers[receiver] += 1
        self._starts += 1
        for key in (receiver.owner, receiver):
            self._last_start.pop(key, None)  # so that the key moves to the end of the dict
            self._last_start[key] = self._starts
        _forget_oldest(self._last_start)

    def end(self, receiver: Receiver) -> None:
        """Free the slot of a webhook to a receiver."""
        self._receivers[receiver] -= 1
        if not self._receivers[receiver]:
            del self._receivers[receiver]

    def note_speed(self, host: str, *, is_slow: bool) -> None:
        """Remember whether the last attempt to reach a host was slow."""
        self._slow_hosts.pop(host, None)
        if is_slow:
            self._slow_hosts[host] = None
            _forget_oldest(self._slow_hosts)

    def choose(self, due: Iterable[DueWebhooks]) -> Counter[Receiver]:
        """Return the number of webhooks to start for each receiver.

        The result is as if webhooks were chosen one at a time. Each time, the owner with the fewest webhooks in flight
        goes first, and then, among the hosts of this owner, the host with the fewest. If these numbers are equal, the
        owner or host with the earliest last start goes first, then the one with the webhook that has been due longest.
        """
        load = self._count_load()
        by_owner: dict[str, list[_Candidate]] = defaultdict(list)
        for waiting in due:
            receiver = waiting.receiver
            last_start = self._last_start.get(receiver, 0)
            candidate = _Candidate(load.hosts[receiver.host], last_start, waiting.oldest_s, receiver, waiting.count)
            by_owner[receiver.owner].append(candidate)
        owners = []  # a heap: webhooks in flight, last start, when the oldest webhook became due, owner
        for owner, candidates in by_owner.items():
            heapify(candidates)
            owner_oldest_s = min(candidate.oldest_s for candidate in candidates)
            owners.append((load.owners[owner], self._last_start.get(owner, 0), owner_oldest_s, owner))
        heapify(owners)
        chosen: Counter[Receiver] = Counter()
        while owners and load.total < MAX_IN_FLIGHT:
            _, last_start, owner_oldest_s, owner = heappop(owners)
            next_receiver = self._pop_next(by_owner[owner], load)
            if next_receiver is not None:  # otherwise, the owner gets no more slots in this choice
                chosen[next_receiver] += 1
                load.add(next_receiver, is_slow=next_receiver.host in self._slow_hosts)
                heappush(owners, (load.owners[owner], last_start, owner_oldest_s, owner))
        return chosen

    def _pop_next(self, candidates: list[_Candidate], load: _Load) -> Receiver | None:
        """Return the receiver of an owner's next webhook, or None if no receiver of the owner has a free slot.

        `candidates` is a heap of the owner's receivers. Those that get no more slots are removed from it.
        """
        while candidates:
            candidate = heappop(candidates)
            receiver = candidate.receiver
            if not load.has_slot(receiver, is_slow=receiver.host in self._slow_hosts):
                continue  # it gets no slot later in this choice, because the numbers in flight only increase
            if load.hosts[receiver.host] > candidate.in_flight:  # a webhook of another owner to this host was chosen
                heappush(candidates, candidate._replace(in_flight=load.hosts[receiver.host]))
                continue
            if candidate.due_count > 1:
                # The caller adds this webhook to those in flight, and it is no longer due.
                in_flight, due_count = candidate.in_flight + 1, candidate.due_count - 1
                heappush(candidates, candidate._replace(in_flight=in_flight, due_count=due_count))
            return receiver
        return None

    def _count_load(self) -> _Load:
        """Count the webhooks that this process is sending: in total, by owner, by host, and to slow hosts."""
        load = _Load()
        for receiver in self._receivers.elements():
            load.add(receiver, is_slow=receiver.host in self._slow_hosts)
        return load


def _forget_oldest(remembered: dict[Any, Any]) -> None:
    """Remove the first entries of a dict until it has at most `_MAX_REMEMBERED`."""
    while len(remembered) > _MAX_REMEMBERED:
        del remembered[next(iter(remembered))]

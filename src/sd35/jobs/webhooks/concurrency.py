"""Limits on simultaneous webhooks, and the choice of the next webhooks to send.

A receiver that accepts a connection and never answers occupies a slot until the attempt times out. Therefore, the slots
per owner and per host are limited. A host that was slow in its last attempt gets one slot, from a small part of all.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

from sd35.storage.jobs import DueWebhooks, Receiver

MAX_IN_FLIGHT, PER_OWNER, PER_HOST = 64, 16, 4
MAX_SLOW, SLOW_PER_OWNER, PER_SLOW_HOST = 16, 4, 1  # included in the numbers above
_MAX_REMEMBERED = 10_000  # entries of each dict; the least recently used are removed first
_Candidate = tuple[int, int, float, Receiver, int]  # in flight to the host, last start, oldest due, receiver, due count


@dataclass
class _Load:
    """Number of webhooks in flight: in total, by owner and host, and to slow hosts."""

    owners: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    slow_by_owner: Counter[str] = field(default_factory=Counter)
    total: int = 0
    slow: int = 0

    def add(self, receiver: Receiver, *, is_slow: bool) -> None:
        self.total += 1
        self.owners[receiver.owner] += 1
        self.hosts[receiver.host] += 1
        if is_slow:
            self.slow += 1
            self.slow_by_owner[receiver.owner] += 1

    def has_slot(self, receiver: Receiver, *, is_slow: bool) -> bool:
        has_slot = self.total < MAX_IN_FLIGHT and self.owners[receiver.owner] < PER_OWNER
        if not is_slow:
            return has_slot and self.hosts[receiver.host] < PER_HOST
        has_slow_slot = self.slow < MAX_SLOW and self.slow_by_owner[receiver.owner] < SLOW_PER_OWNER
        return has_slot and has_slow_slot and self.hosts[receiver.host] < PER_SLOW_HOST


class InFlight:
    """The webhooks that this process is sending. Not thread-safe: pass a copy to other threads."""

    def __init__(self) -> None:
        self._receivers: Counter[Receiver] = Counter()
        self._slow_hosts: dict[str, None] = {}  # the least recently slow first
        self._last_start: dict[Receiver | str, int] = {}  # by receiver and by owner; oldest first
        self._starts = 0

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
        """Occupy a slot for a webhook."""
        self._receivers[receiver] += 1
        self._starts += 1
        for key in (receiver.owner, receiver):
            self._last_start.pop(key, None)
            self._last_start[key] = self._starts
        _forget_oldest(self._last_start)

    def end(self, receiver: Receiver) -> None:
        """Free the slot of a webhook."""
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
        goes first, and of its hosts the one with the fewest. Ties go to the least recent start, then to the webhook
        that has been due longest.
        """
        load = self._load()
        hosts: dict[str, list[_Candidate]] = defaultdict(list)
        for each in due:
            last = self._last_start.get(each.receiver, 0)
            candidate = (load.hosts[each.receiver.host], last, each.oldest_s, each.receiver, each.count)
            hosts[each.receiver.owner].append(candidate)
        owners = []
        for owner, candidates in hosts.items():
            heapify(candidates)
            oldest_s = min(oldest_s for _, _, oldest_s, *_ in candidates)
            owners.append((load.owners[owner], self._last_start.get(owner, 0), oldest_s, owner))
        heapify(owners)
        chosen: Counter[Receiver] = Counter()
        while owners and load.total < MAX_IN_FLIGHT:
            _, last, oldest_s, owner = heappop(owners)
            receiver = self._pop_next(hosts[owner], load)
            if receiver is not None:
                chosen[receiver] += 1
                load.add(receiver, is_slow=receiver.host in self._slow_hosts)
                heappush(owners, (load.owners[owner], last, oldest_s, owner))
        return chosen

    def _pop_next(self, candidates: list[_Candidate], load: _Load) -> Receiver | None:
        """Choose the receiver of an owner's next webhook. Returns None if no receiver has a free slot."""
        while candidates:
            in_flight, last, oldest_s, receiver, count = heappop(candidates)
            if not load.has_slot(receiver, is_slow=receiver.host in self._slow_hosts):
                continue  # it gets no slot later in this choice, because the numbers in flight only increase
            if load.hosts[receiver.host] > in_flight:  # a webhook of another owner to this host was chosen meanwhile
                heappush(candidates, (load.hosts[receiver.host], last, oldest_s, receiver, count))
                continue
            if count > 1:
                # + 1 because the caller adds this webhook to those in flight.
                heappush(candidates, (in_flight + 1, last, oldest_s, receiver, count - 1))
            return receiver
        return None

    def _load(self) -> _Load:
        load = _Load()
        for receiver in self._receivers.elements():
            load.add(receiver, is_slow=receiver.host in self._slow_hosts)
        return load


def _forget_oldest(remembered: dict[Any, Any]) -> None:
    while len(remembered) > _MAX_REMEMBERED:
        del remembered[next(iter(remembered))]

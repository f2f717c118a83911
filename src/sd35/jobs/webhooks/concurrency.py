"""How many webhooks are sent at once, and whose are next.

A receiver that accepts a connection and never answers keeps a place until the attempt times out. So an owner and a host
have limited numbers of places, and hosts that were slow lately share a small part of all places, one each.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any

from sd35.storage.jobs import DueWebhooks, Receiver

IN_FLIGHT, PER_OWNER, PER_HOST = 64, 16, 4
SLOW, SLOW_PER_OWNER, PER_SLOW_HOST = 16, 4, 1  # parts of the numbers above
_REMEMBERED = 10_000  # hosts, and receivers; what was used longest ago is forgotten first
_Candidate = tuple[int, int, float, Receiver, int]  # in flight to the host, last start, oldest due, who, how many due


@dataclass
class _Load:
    """What is in flight: in all, of slow hosts, and of slow hosts by owner."""

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

    def has_place(self, receiver: Receiver, *, is_slow: bool) -> bool:
        has_room = self.total < IN_FLIGHT and self.owners[receiver.owner] < PER_OWNER
        if not is_slow:
            return has_room and self.hosts[receiver.host] < PER_HOST
        is_slow_free = self.slow < SLOW and self.slow_by_owner[receiver.owner] < SLOW_PER_OWNER
        return has_room and is_slow_free and self.hosts[receiver.host] < PER_SLOW_HOST


class InFlight:
    """The webhooks that this process sends now. Not safe for threads: another thread works on a copy."""

    def __init__(self) -> None:
        self._receivers: Counter[Receiver] = Counter()
        self._slow_hosts: dict[str, None] = {}  # the one that was slow longest ago first
        self._last_start: dict[Receiver | str, int] = {}  # of a receiver or an owner; the oldest first
        self._starts = 0

    @property
    def is_full(self) -> bool:
        """Whether no webhook can be started."""
        return self._receivers.total() >= IN_FLIGHT

    def copy(self) -> "InFlight":
        """Copy what is known now."""
        copied = InFlight()
        copied._receivers, copied._starts = Counter(self._receivers), self._starts
        copied._slow_hosts, copied._last_start = dict(self._slow_hosts), dict(self._last_start)
        return copied

    def start(self, receiver: Receiver) -> None:
        """Count a webhook as in flight."""
        self._receivers[receiver] += 1
        self._starts += 1
        for key in (receiver.owner, receiver):
            self._last_start.pop(key, None)
            self._last_start[key] = self._starts
        _forget_oldest(self._last_start)

    def end(self, receiver: Receiver) -> None:
        """Give the place of a webhook back."""
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
        """Choose how many webhooks of each receiver to start, as if one after the other.

        Each is one of the owner with the fewest in flight, and of that owner's, one to the host with the fewest in
        flight. Of equals, the one whose last start is longest ago goes first, then the one that is due longest.
        """
        load = self._load()
        hosts: dict[str, list[_Candidate]] = defaultdict(list)
        for one in due:
            last = self._last_start.get(one.receiver, 0)
            hosts[one.receiver.owner].append(
                (load.hosts[one.receiver.host], last, one.oldest_s, one.receiver, one.count)
            )
        owners = []
        for owner, candidates in hosts.items():
            heapify(candidates)
            oldest_s = min(oldest_s for _, _, oldest_s, *_ in candidates)
            owners.append((load.owners[owner], self._last_start.get(owner, 0), oldest_s, owner))
        heapify(owners)
        chosen: Counter[Receiver] = Counter()
        while owners and load.total < IN_FLIGHT:
            _, last, oldest_s, owner = heappop(owners)
            receiver = self._next_of(hosts[owner], load)
            if receiver is not None:
                chosen[receiver] += 1
                load.add(receiver, is_slow=receiver.host in self._slow_hosts)
                heappush(owners, (load.owners[owner], last, oldest_s, owner))
        return chosen

    def _next_of(self, candidates: list[_Candidate], load: _Load) -> Receiver | None:
        """Take the next receiver from the heap of one owner's; None if none has a place."""
        while candidates:
            in_flight, last, oldest_s, receiver, count = heappop(candidates)
            if not load.has_place(receiver, is_slow=receiver.host in self._slow_hosts):
                continue  # nor will it have one in this choice: numbers in flight only grow
            if load.hosts[receiver.host] > in_flight:  # another owner's webhook to this host was chosen meanwhile
                heappush(candidates, (load.hosts[receiver.host], last, oldest_s, receiver, count))
                continue
            if count > 1:
                heappush(candidates, (in_flight + 1, last, oldest_s, receiver, count - 1))
            return receiver
        return None

    def _load(self) -> _Load:
        load = _Load()
        for receiver in self._receivers.elements():
            load.add(receiver, is_slow=receiver.host in self._slow_hosts)
        return load


def _forget_oldest(remembered: dict[Any, Any]) -> None:
    while len(remembered) > _REMEMBERED:
        del remembered[next(iter(remembered))]

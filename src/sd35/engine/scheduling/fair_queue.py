"""Fair queueing between clients: the least served client is next, with its image that has the earliest deadline.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) gives each client a quantum of service per round. This queue
is the limit of that algorithm as the quantum goes to zero: each client has an account of the time it was served, and
the client with the least time is next. So a client with work waits at most for one turn of every other client.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
_SWEEP_EVERY = 256  # the invalid entries of a client are dropped whenever it has a multiple of this many entries


@dataclass(eq=False, slots=True)
class Account:
    """How long the device has worked for a client (`served_s`), and how many images the client has.

    An account exists while its client has images. `served_s` never decreases.
    """

    served_s: float
    images: int = 0


class Entry(NamedTuple, Generic[Key]):
    """An image that is ready for its next step. `place` is unique, to order entries of the same deadline."""

    deadline_s: float
    place: int
    key: Key
    account: Account


class FairQueue(Generic[Key]):
    """Entries of many clients. An entry that `is_valid` rejects, such as a cancelled image, is dropped at the front."""

    def __init__(self, is_valid: Callable[[Entry[Key]], bool]) -> None:
        self._is_valid = is_valid
        self._entries: dict[Account, list[Entry[Key]]] = {}  # a heap for each account
        self._accounts: list[tuple[float, int, Account]] = []  # a heap of (served_s at the last check, place, account)

    def push(self, entry: Entry[Key]) -> None:
        """Add an entry."""
        entries = self._entries.get(entry.account)
        if entries is None:
            entries = self._entries[entry.account] = []
            heappush(self._accounts, (entry.account.served_s, entry.place, entry.account))
        heappush(entries, entry)
        if len(entries) % _SWEEP_EVERY == 0:
            entries[:] = filter(self._is_valid, entries)
            heapify(entries)

    def first(self) -> Entry[Key] | None:
        """Return the earliest entry of the least served client, without removing it. None if the queue is empty."""
        while self._accounts:
            heap_s, place, account = self._accounts[0]
            entries = self._entries[account]
            while entries and not self._is_valid(entries[0]):
                heappop(entries)
            if not entries:
                heappop(self._accounts)
                del self._entries[account]
            elif account.served_s > heap_s:  # the client was served since, so its place in the heap is wrong
                heapreplace(self._accounts, (account.served_s, place, account))
            else:
                return entries[0]
        return None

    def take(self) -> None:
        """Remove the entry that `first` has just returned. Call it only directly after `first`."""
        heappop(self._entries[self._accounts[0][2]])

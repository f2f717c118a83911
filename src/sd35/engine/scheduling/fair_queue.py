"""Who is next: the client that was served least, and of its images the one that is due first. Pure policy.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) hands each client a quantum in rounds. This is what it tends
to as the quantum goes to zero: each client has an account of what it was served, and who has least is next. No quantum
has to be chosen, and a client that has work is never passed over for longer than the others take for one turn each.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
_SWEPT = 256  # entries of a client, at which those that are not valid any more are dropped


@dataclass(eq=False, slots=True)
class Account:
    """The device time that a client was served, in seconds, and its number of images. Exists while it has images.

    `served_s` only grows.
    """

    served_s: float
    images: int = 0


class Entry(NamedTuple, Generic[Key]):
    """An image that is ready for its next step. `place` is unique: it orders those that are due at one time."""

    deadline_s: float
    place: int
    key: Key
    account: Account


class FairQueue(Generic[Key]):
    """Entries of many clients. One that is not valid any more is dropped when it comes to the front."""

    def __init__(self, is_valid: Callable[[Entry[Key]], bool]) -> None:
        self._is_valid = is_valid
        self._entries: dict[Account, list[Entry[Key]]] = {}
        self._accounts: list[tuple[float, int, Account]] = []  # served when it was put here, place, account

    def push(self, entry: Entry[Key]) -> None:
        """Put an entry among its client's."""
        entries = self._entries.get(entry.account)
        if entries is None:
            entries = self._entries[entry.account] = []
            heappush(self._accounts, (entry.account.served_s, entry.place, entry.account))
        heappush(entries, entry)
        if len(entries) % _SWEPT == 0:
            entries[:] = filter(self._is_valid, entries)
            heapify(entries)

    def first(self) -> Entry[Key] | None:
        """The entry that is next, left in its place; None where there is none."""
        while self._accounts:
            noted_s, place, account = self._accounts[0]
            entries = self._entries[account]
            while entries and not self._is_valid(entries[0]):
                heappop(entries)
            if not entries:
                heappop(self._accounts)
                del self._entries[account]
            elif account.served_s > noted_s:  # it was served since
                heapreplace(self._accounts, (account.served_s, place, account))
            else:
                return entries[0]
        return None

    def take(self) -> None:
        """Take out the entry that `first` has just named."""
        heappop(self._entries[self._accounts[0][2]])

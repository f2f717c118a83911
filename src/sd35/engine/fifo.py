"""Which picture is next: first come, first served, and a bound on how many wait. Pure policy: no thread, no clock."""

from collections import deque
from typing import Generic, TypeVar

from sd35.errors import Overloaded

Item = TypeVar("Item")

_FIRST_ESTIMATE_S = 5.0  # before any picture was timed
_NEWEST_WEIGHT = 0.3


class Fifo(Generic[Item]):
    """A bounded queue that knows how long a picture takes, so that a refusal can say when to come back."""

    def __init__(self, limit: int) -> None:
        assert limit > 0, limit
        self.limit = limit
        self._waiting: deque[Item] = deque()
        self._picture_s: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def retry_after_s(self) -> float:
        """When a place is likely to be free: the time of one picture, a second at least."""
        return max(1.0, _FIRST_ESTIMATE_S if self._picture_s is None else self._picture_s)

    def add(self, item: Item) -> None:
        """Put an item last. Raises Overloaded where as many wait as may."""
        if len(self._waiting) >= self.limit:
            raise Overloaded(len(self._waiting), self.limit, self.retry_after_s)
        self._waiting.append(item)

    def next(self) -> Item | None:
        """The item that waited longest, which waits no more; None where none waits."""
        return self._waiting.popleft() if self._waiting else None

    def cancel(self, item: Item) -> bool:
        """Take an item out. False where it does not wait (any more)."""
        try:
            self._waiting.remove(item)
        except ValueError:
            return False
        return True

    def finish(self, took_s: float) -> None:
        """Learn how long a picture took, newer ones counting more."""
        before = took_s if self._picture_s is None else self._picture_s
        self._picture_s = before + _NEWEST_WEIGHT * (took_s - before)

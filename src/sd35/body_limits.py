"""Limits on bodies that are being received: how long one may take, and how many bytes of all are held in memory.

The API and the page, which do not import each other, share this module.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Message, Receive


def in_time(receive: Receive, body_timeout_s: float, late: Callable[[], Message]) -> Receive:
    """Receives a body as a whole within a time, and waits for what comes after it for ever.

    `late` says what is received in place of what did not come in time, or raises.
    """
    until_s = asyncio.get_running_loop().time() + body_timeout_s
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout_at(until_s):
                message = await receive()
        except TimeoutError:
            return late()
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time


class HeldBytes:
    """Counts the bytes of bodies that are held in memory: all together, and those of each sender.

    Only bytes that have arrived count. A body that arrives slowly therefore takes no room from others.
    """

    def __init__(self, most_bytes: int, most_bytes_each: int) -> None:
        self._most_bytes, self._most_bytes_each = most_bytes, most_bytes_each
        self._of: Counter[str] = Counter()
        self._all = 0

    @contextmanager
    def body_of(self, sender: str) -> Iterator[Callable[[int], None]]:
        """Give a function that counts the bytes of one body as they arrive. They count until the context ends.

        The function raises TooManyBytes where the bytes would exceed a limit.
        """
        held_bytes = 0

        def count(size_bytes: int) -> None:
            nonlocal held_bytes
            if self._of[sender] + size_bytes > self._most_bytes_each or self._all + size_bytes > self._most_bytes:
                raise TooManyBytes
            held_bytes += size_bytes
            self._of[sender] += size_bytes
            self._all += size_bytes

        try:
            yield count
        finally:
            self._all -= held_bytes
            self._of[sender] -= held_bytes
            if not self._of[sender]:
                del self._of[sender]


class TooManyBytes(Exception):  # noqa: N818
    """The bodies being received already take as much memory as they may."""

"""Limits on request bodies: the time in which one must arrive, and the memory that all of them may use.

Shared by the API and the user interface, which do not import each other.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Message, Receive


def limit_body_time(receive: Receive, timeout_s: float, on_timeout: Callable[[], Message]) -> Receive:
    """Wrap `receive` so that the request body must arrive within `timeout_s`. Later messages are not limited.

    Args:
        receive: The function to wrap.
        timeout_s: Time for the whole body, in seconds from now.
        on_timeout: Returns the message to receive after a timeout, or raises.
    """
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    is_complete = False

    async def receive_in_time() -> Message:
        nonlocal is_complete
        if is_complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline_s):
                message = await receive()
        except TimeoutError:
            return on_timeout()
        is_complete = not message.get("more_body", False)
        return message

    return receive_in_time


class BodyMemory:
    """Limits the memory of request bodies: in total, and for each client.

    Only received bytes count. A body that arrives slowly therefore takes no room from others.

    Args:
        max_bytes: Limit of all bodies together.
        max_client_bytes: Limit of the bodies of one client.
    """

    def __init__(self, max_bytes: int, max_client_bytes: int) -> None:
        self._max_bytes, self._max_client_bytes = max_bytes, max_client_bytes
        self._by_client: Counter[str] = Counter()
        self._total = 0

    @contextmanager
    def body_of(self, client: str) -> Iterator[Callable[[int], None]]:
        """Return a function that counts received bytes of one body. The bytes are released when the context ends.

        The function raises TooManyBytes if the bytes would exceed a limit.
        """
        body_bytes = 0

        def count(size_bytes: int) -> None:
            nonlocal body_bytes
            of_client, total = self._by_client[client] + size_bytes, self._total + size_bytes
            if of_client > self._max_client_bytes or total > self._max_bytes:
                raise TooManyBytes
            body_bytes += size_bytes
            self._by_client[client], self._total = of_client, total

        try:
            yield count
        finally:
            self._total -= body_bytes
            self._by_client[client] -= body_bytes
            if not self._by_client[client]:
                del self._by_client[client]


class TooManyBytes(Exception):  # noqa: N818  it reads as a sentence: "except TooManyBytes"
    """The bodies being received already use all the memory they may."""

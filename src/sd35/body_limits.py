"""Limits on request bodies: the time for a body to arrive, and the memory that all bodies may use.

The API and the user interface share this module, because they do not import each other.
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
        on_timeout: Called after a timeout. Returns the message that the application receives instead of the body, or
            raises an exception.
    """
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    is_complete = False

    async def receive_in_time() -> Message:
        """Return the next message, or the result of `on_timeout` if the body is not complete at the deadline."""
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
    """Limits the memory of request bodies, in total and for each client.

    Only received bytes count. A body that arrives slowly therefore takes no memory from others.

    Args:
        max_bytes: Limit for all bodies together.
        max_client_bytes: Limit for the bodies of one client.
    """

    def __init__(self, max_bytes: int, max_client_bytes: int) -> None:
        self._max_bytes, self._max_client_bytes = max_bytes, max_client_bytes
        self._by_client: Counter[str] = Counter()
        self._total_bytes = 0

    @contextmanager
    def body_of(self, client: str) -> Iterator[Callable[[int], None]]:
        """Count the memory of one body of a client until the context ends.

        Yields a function. Call it with the size in bytes of each received piece. It raises TooManyBytes if the piece
        would exceed a limit.
        """
        body_bytes = 0

        def count(size_bytes: int) -> None:
            """Add a piece to the counts, or raise TooManyBytes and leave them unchanged."""
            nonlocal body_bytes
            client_bytes, total_bytes = self._by_client[client] + size_bytes, self._total_bytes + size_bytes
            if client_bytes > self._max_client_bytes or total_bytes > self._max_bytes:
                raise TooManyBytes
            body_bytes += size_bytes
            self._by_client[client], self._total_bytes = client_bytes, total_bytes

        try:
            yield count
        finally:
            self._total_bytes -= body_bytes
            self._by_client[client] -= body_bytes
            if not self._by_client[client]:
                del self._by_client[client]


class TooManyBytes(Exception):  # noqa: N818  it reads as a sentence: "except TooManyBytes"
    """A piece of a body would exceed a limit of `BodyMemory`. Internal: callers turn it into an HTTP response."""

"""A body has to arrive in time: what the API and the page, which know nothing of each other, share of that."""

import asyncio
from collections.abc import Callable

from starlette.types import Message, Receive


def in_time(receive: Receive, arrival_s: float, late: Callable[[], Message]) -> Receive:
    """Receives a body as a whole within a time, and waits for what comes after it for ever.

    `late` says what is received in place of what did not come in time, or raises.
    """
    until_s = asyncio.get_running_loop().time() + arrival_s
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

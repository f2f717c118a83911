"""Cancellation of work when the client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Result = TypeVar("Result")

CLIENT_CLOSED_REQUEST = 499  # nginx's status for it; no client reads the response


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Await `work`; cancel it and return None if the client disconnects first. The body must have been read."""
    connection = asyncio.timeout(None)  # expires when the client disconnects; so `work` needs no task of its own
    watcher = asyncio.ensure_future(_expire_on_disconnect(request, connection))
    try:
        async with connection:
            return await work
    except TimeoutError:
        if not connection.expired():
            raise
        return None
    finally:
        watcher.cancel()


async def _expire_on_disconnect(request: Request, connection: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    connection.reschedule(asyncio.get_running_loop().time())

"""Waiting for an image on a connection that may end first."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Result = TypeVar("Result")

CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody is left to read it


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What the work gives; None, and the work cancelled, where the client hangs up first. The body has to be read."""
    connection = asyncio.timeout(None)  # over when the client hangs up: waiting that ends so needs no task of its own
    hanging_up = asyncio.ensure_future(_hang_up(request, connection))
    try:
        async with connection:
            return await work
    except TimeoutError:
        if not connection.expired():
            raise
        return None
    finally:
        hanging_up.cancel()


async def _hang_up(request: Request, connection: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    connection.reschedule(asyncio.get_running_loop().time())

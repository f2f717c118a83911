"""Waiting for a picture on a connection that may end first."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

Result = TypeVar("Result")

CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody is left to read it


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What the work gives; None, and the work cancelled, where the client hangs up first. The body has to be read."""
    working = asyncio.ensure_future(work)
    hanging_up = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((working, hanging_up), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        hanging_up.cancel()
        working.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

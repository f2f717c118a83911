"""Thread pools that separate kinds of blocking work, so that one kind cannot delay another."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ThreadPool:
    """A pool of up to `max_threads` threads, used like `asyncio.to_thread`."""

    def __init__(self, name: str, max_threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_threads, name)

    async def run(self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Run `work` in the caller's context and return its result. If cancelled, does not wait for `work`."""
        in_context = partial(copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, in_context)


# For keys and jobs. Not the event loop's default threads, because Gradio serves file ranges on those, so that clients
# without an API key can keep them busy.
STORES = ThreadPool("stores", 8)
# For bodies that take long to parse: forms, and images with metadata. The GIL runs one at a time anyway. The second
# thread lets a short body overtake a long one.
PARSING = ThreadPool("parsing", 2)

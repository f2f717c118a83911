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
        """Run `work` in the caller's context and return its result. After a cancellation, `work` runs to its end."""
        in_context = partial(copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, in_context)


# For the stores of keys and jobs. They do not use the event loop's default threads: Gradio serves ranges of files on
# those, and clients without an API key could keep all of them busy.
STORES = ThreadPool("stores", 8)
# For bodies that take long to parse: forms, and images with metadata. Because of the GIL, more threads are not faster.
# The second thread lets a short body overtake a long one.
PARSING = ThreadPool("parsing", 2)

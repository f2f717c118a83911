"""Thread pools that keep blocking work apart, so that one kind of it cannot delay another."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Threads:
    """Runs work as `asyncio.to_thread` does, on at most `most` threads that run nothing else."""

    def __init__(self, name: str, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, name)

    async def run(self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Run `work` in the caller's context and return its result. If cancelled, do not wait for it."""
        work_here = partial(copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work_here)


# Keys and jobs are read here and not on the event loop's default threads: those can be kept busy without an API key,
# because Gradio serves parts of files there.
STORES = Threads("stores", 8)
# Bodies of clients that take long to parse: forms, and images whose metadata is asked for. Python runs one of them at a
# time anyway; a second thread lets a short one pass a long one.
PARSING = Threads("parsing", 2)

"""Orders of jobs, for tests of what keeps them."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sd35.request import Request
from sd35.storage.jobs import JobSpec

Result = TypeVar("Result")
REQUEST = Request("a cat", "", 64, 64, 4, 4.5, 7, "mini", "0" * 64, "double/float32")


def job_spec(owner: str = "me", **fields: Any) -> JobSpec:
    """An order of one request."""
    return JobSpec(REQUEST, owner, **fields)


def at_once(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """What each call gives, all begun together on threads of their own."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Result]) -> Result:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))

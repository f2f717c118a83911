"""Job specifications for tests of job stores."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sd35.request import Request
from sd35.storage.jobs import JobSpec

Result = TypeVar("Result")
REQUEST = Request("a cat", "", 64, 64, 4, 4.5, 7, "mini", "0" * 64, "double/float32")


def job_spec(owner: str = "me", **fields: Any) -> JobSpec:
    """Create the specification of one request."""
    return JobSpec(REQUEST, owner, **fields)


def at_once(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run all calls at once, each in its own thread, and return their results."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Result]) -> Result:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))

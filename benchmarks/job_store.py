"""Time the methods of the job store with 100,000 jobs in it: `python -m benchmarks.job_store [DATABASE]`.

DATABASE is the path or URL of an empty database, as in the setting `database`. The default is a temporary SQLite file.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import insert, text

from sd35.jobs.webhooks.concurrency import InFlight
from sd35.request import Request
from sd35.storage.database import open_database
from sd35.storage.jobs import Job, JobResult, JobSpec, Status, new_job
from sd35.storage.sql.jobs import SqlJobStore
from sd35.storage.sql.rows import job_values, result_values
from sd35.storage.sql.tables import deliveries, jobs

JOBS, CALLS = 100_000, 25  # calls of each method
LOADS = ((50, 0.1), (1000, 1.0))  # number of owners, and the share of queued jobs
RECEIVERS = (1_000, 100_000)  # of due webhooks; each receiver belongs to one of 20 owners
_REQUEST = Request("a cat to the left of a dog on a red background", "", 1024, 1024, 28, 4.5, 7, "m", "0" * 64, "p")
_RESULT = JobResult("d" * 64, was_cached=False)
_MS = 1e3  # milliseconds in a second


def _new_job(owner: str, priority: int = 0) -> Job:
    return new_job(JobSpec(_REQUEST, owner, priority), time.time())


def fill(store: SqlJobStore, owners: int, queued: float) -> None:
    """Replace all jobs in the store by new ones. The share `queued` of them is queued. The others have succeeded."""
    rng = random.Random(1)
    ended = {**result_values(_RESULT), "ended_s": 1.0}
    unset = {name: None for name in ended if name != "status"}  # all rows of one INSERT need the same columns
    rows = []
    for _ in range(JOBS):
        job = job_values(_new_job(f"owner {rng.randrange(owners)}", rng.randint(-2, 2)))
        rows.append({**job, **(unset if rng.random() < queued else ended)})
    with store.database.write() as connection:
        connection.execute(jobs.delete())
        connection.execute(insert(jobs), rows)
    _vacuum(store)


def fill_webhooks(store: SqlJobStore, receivers: int) -> None:
    """Replace all jobs in the store by jobs that have succeeded, each with a due webhook to one of the receivers."""
    rng = random.Random(1)
    ended = {**result_values(_RESULT), "ended_s": 1.0}
    rows, due = [], []
    for _ in range(JOBS):
        number = rng.randrange(receivers)
        owner, host = f"owner {number % 20}", f"{number}.example"
        job = {**job_values(_new_job(owner)), **ended, "webhook": f"https://{host}/hook"}
        rows.append(job)
        due.append(
            {"job_id": job["id"], "url": job["webhook"], "due_s": rng.random(), "attempts": 0}
            | {"owner": owner, "host": host}
        )
    with store.database.write() as connection:
        connection.execute(jobs.delete())
        connection.execute(insert(jobs), rows)
        connection.execute(insert(deliveries), due)
    _vacuum(store)


def _vacuum(store: SqlJobStore) -> None:
    """Update PostgreSQL's statistics of the new rows now. It would do that itself, but only after a minute."""
    if not store.database.is_sqlite:
        with store.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def calls(store: SqlJobStore) -> dict[str, Callable[[], Any]]:
    """Return the calls to time by name, in their order. Claims some jobs for them."""
    last = store.page(None, [Status.QUEUED], None, 1)[0]
    numbers = count()
    store.claim("measured", time.time(), 3600.0, CALLS)
    held = list(store.renew("measured", 3600.0))
    return {
        "get": lambda: store.get(last.id, None),
        "place of the last": lambda: store.position(last.id),
        "page of 50": lambda: store.page(None, [], None, 50),
        "page of 50, one owner, two statuses": lambda: store.page(
            "owner 1", [Status.FAILED, Status.SUCCEEDED], None, 50
        ),
        "counts": store.counts,
        "add": lambda: store.add(_new_job("owner 1")),
        "end": lambda: store.end(held[next(numbers)], "measured", time.time(), _RESULT),
        "claim of 8": lambda: store.claim("other", time.time(), 3600.0, 8),
    }


def webhook_calls(store: SqlJobStore) -> dict[str, Callable[[], Any]]:
    """Return the calls to time by name: those that the sender makes each time it looks for due webhooks."""
    due = store.due_webhooks(1.0)
    chosen = InFlight().choose(due)
    return {
        "due": lambda: store.due_webhooks(1.0),
        "due, none": lambda: store.due_webhooks(-1.0),
        "choose": lambda: InFlight().choose(due),
        f"take_due of {chosen.total()}": lambda: store.claim_webhooks(1.0, chosen),
    }


def report(calls: dict[str, Callable[[], Any]]) -> None:
    """Time each call `CALLS` times, and print the median in milliseconds."""
    for name, call in calls.items():
        times_ms = []
        for _ in range(CALLS):
            start_s = time.perf_counter()
            call()
            times_ms.append((time.perf_counter() - start_s) * _MS)
        print(f"  {name:36}{median(times_ms):8.2f}")


def main(database: str) -> None:
    """Time the calls for jobs and for webhooks, and print their medians."""
    store = open_database(database).jobs
    assert isinstance(store, SqlJobStore)
    for owners, queued in LOADS:
        fill(store, owners, queued)
        print(f"{JOBS} jobs of {owners} owners, {queued:.0%} queued; median of {CALLS}, ms")
        report(calls(store))
    for receivers in RECEIVERS:
        fill_webhooks(store, receivers)
        print(f"{JOBS} webhooks due of {receivers} receivers; median of {CALLS}, ms")
        report(webhook_calls(store))
    store.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(str(Path(folder) / "jobs.db"))

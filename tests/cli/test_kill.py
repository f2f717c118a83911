"""`sd35 serve` killed in the middle of its work: what it accepted is made by the next one, each image once."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sd35.storage.database import open_database
from tests.support.postgres import new_schema
from tests.support.server_process import JSON, Served, serving

JOBS = 100


def ask(served: Served, method: str, path: str, body: Any = None) -> Any:
    """What the server answers."""
    connection = served.connect()
    connection.request(method, path, json.dumps(body) if body else None, JSON if body else {})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status in {200, 202}, answer
    return answer


def ended(served: Served, job_id: str) -> None:
    """Wait for a job's last event."""
    connection = served.connect()
    connection.request("GET", f"/v1/jobs/{job_id}/events")
    assert b"event: succeeded" in connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_server_loses_no_job(tmp_path: Path, request: pytest.FixtureRequest, kind: str):
    """`kill -9` with a hundred accepted, some made, some in the making: after a restart all end with their image."""
    if kind == "sqlite":
        database = str(tmp_path / "jobs.db")
    else:
        server = request.getfixturevalue("postgres_server")
        database = new_schema(server).render_as_string(hide_password=False)
    (tmp_path / "log").mkdir()
    log = tmp_path / "log" / "stderr"
    with serving(log, "--database", database) as served:
        jobs = [
            ask(served, "POST", "/v1/jobs", {"prompt": f"a cat {number}", "steps": 3, "width": 64, "height": 64})["id"]
            for number in range(JOBS)
        ]
        ended(served, jobs[3])
        served.process.kill()
    opened_database = open_database(database)
    before = Counter(str(status) for status, count in opened_database.jobs.counts().items() for _ in range(count))
    opened_database.close()
    assert before.total() == JOBS
    assert before["running"] > 0
    assert before["succeeded"] > 0
    assert before["queued"] > 0
    with serving(log, "--database", database) as served:
        for job in jobs:
            ended(served, job)
        page = ask(served, "GET", "/v1/jobs?limit=200")["data"]
    assert Counter(job["status"] for job in page) == {"succeeded": JOBS}
    images = tmp_path / "log" / "data" / "images"
    files = [path.name for path in images.glob("[0-9a-f][0-9a-f]/*")]  # what was half-written lies in `staging`
    assert sorted(files) == sorted(f"{job['image']['digest']}.png" for job in page)
    assert len(set(files)) == JOBS

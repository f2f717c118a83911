"""A killed `sd35 serve`: the next process finishes its jobs, and generates each image once."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sd35.storage.database import open_database
from tests.support.postgres import new_schema
from tests.support.server_process import JSON, Served, serving

JOBS = 100


def call(served: Served, method: str, path: str, body: Any = None) -> Any:
    """Send a request and return the JSON of the response."""
    connection = served.connect()
    connection.request(method, path, json.dumps(body) if body else None, JSON if body else {})
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    assert response.status in {200, 202}, content
    return content


def wait_for_end(served: Served, job_id: str) -> None:
    """Wait for the last event of a job."""
    connection = served.connect()
    connection.request("GET", f"/v1/jobs/{job_id}/events")
    assert b"event: succeeded" in connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_server_loses_no_job(tmp_path: Path, request: pytest.FixtureRequest, kind: str):
    """It is killed with a hundred accepted jobs, some of them running and some ended."""
    if kind == "sqlite":
        database = str(tmp_path / "jobs.db")
    else:
        server = request.getfixturevalue("postgres_server")
        database = new_schema(server).render_as_string(hide_password=False)
    (tmp_path / "log").mkdir()
    log = tmp_path / "log" / "stderr"
    with serving(log, "--database", database) as served:
        jobs = [
            call(served, "POST", "/v1/jobs", {"prompt": f"a cat {number}", "steps": 3, "width": 64, "height": 64})["id"]
            for number in range(JOBS)
        ]
        wait_for_end(served, jobs[3])
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
            wait_for_end(served, job)
        page = call(served, "GET", "/v1/jobs?limit=200")["data"]
    assert Counter(job["status"] for job in page) == {"succeeded": JOBS}
    images = tmp_path / "log" / "data" / "images"
    files = [path.name for path in images.glob("[0-9a-f][0-9a-f]/*")]  # incomplete files are in `staging`
    assert sorted(files) == sorted(f"{job['image']['digest']}.png" for job in page)
    assert len(set(files)) == JOBS

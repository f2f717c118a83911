"""Leases in SQL databases, if a holder's process is killed, is stopped, or has another clock."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sd35.errors import StoreUnavailable
from sd35.storage.database import Database, open_database
from sd35.storage.jobs import Job, new_job
from sd35.storage.sql.holders import HolderLocks
from tests.support.job_specs import job_spec
from tests.support.leases import pass_time

LEASE_S = 1000.0  # far longer than any test runs
HOLDING = """
import sys
from sd35.storage.database import open_database
jobs = open_database(sys.argv[1]).jobs
print(jobs.claim("other", 0.0, 1000.0, 1)[0].id, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Database]:
    """A new SQLite database with one job."""
    opened = open_database(str(tmp_path / "jobs.db"))
    opened.jobs.add(new_job(job_spec(), 0.0))
    yield opened
    opened.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of the holders' lock files."""
    return tmp_path / "jobs.db.holders"


@contextmanager
def holding(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that claims the job and stays alive."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "jobs.db")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def claimed(stores: Database, holder: str = "this") -> list[Job]:
    """Claim jobs in this process."""
    return stores.jobs.claim(holder, 0.0, LEASE_S, 9)


def test_jobs_of_a_killed_process_are_claimed_at_once(stores: Database, tmp_path: Path, directory: Path):
    """Its lease does not have to expire. Its lock file is deleted."""
    with holding(tmp_path) as process:
        assert claimed(stores) == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(claimed(stores)) == 1
    assert [path.name for path in directory.iterdir()] == ["this.lock"]


def test_a_stopped_process_keeps_its_jobs_until_its_lease_expires(stores: Database, tmp_path: Path):
    """It still holds its lock, but a process that hangs must not keep its jobs forever."""
    with holding(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        assert claimed(stores) == []
        pass_time(stores.jobs, LEASE_S + 1)
        assert len(claimed(stores)) == 1
        process.send_signal(signal.SIGCONT)


def test_a_holder_that_releases_its_jobs_leaves_no_file(stores: Database, directory: Path):
    """Before that, only this user has access to its file."""
    claimed(stores)
    (path,) = directory.iterdir()
    assert (stat.S_IMODE(directory.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)
    stores.jobs.release("this")
    assert list(directory.iterdir()) == []


def test_files_of_dead_holders_are_removed_at_the_next_claim(stores: Database, directory: Path):
    """Even of holders without jobs. Files of live holders stay."""
    directory.mkdir()
    (directory / "dead.lock").touch()
    other = HolderLocks(directory)
    other.hold("other")
    (directory / "dead too.lock").touch()
    claimed(stores)
    assert sorted(path.name for path in directory.iterdir()) == ["other.lock", "this.lock"]
    other.close()


@pytest.mark.parametrize("how", ["refused", "of no effect"])
def test_without_file_locks_leases_expire_by_time(
    stores: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    """No holder counts as dead. A warning is logged once per process."""

    def refused(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", refused if how == "refused" else lambda *_: None)
    other = open_database(str(tmp_path / "jobs.db"))  # works without locks, too
    with capture_logs() as logs:
        assert len(claimed(stores, "this")) == 1
        claimed(stores, "this")
        assert claimed(other, "other") == []
        pass_time(stores.jobs, LEASE_S + 1)
        assert len(claimed(other, "other")) == 1
    other.close()
    assert [log["log_level"] for log in logs] == ["warning"] * 2  # each opened database stands for a process
    assert "cannot be locked" in logs[0]["event"]


def test_a_holder_that_cannot_lock_its_file_claims_nothing(stores: Database, directory: Path):
    """Other processes would treat it as dead."""
    directory.touch()
    with pytest.raises(StoreUnavailable, match=r"holders cannot contain lock files \((File exists|Not a directory)\)"):
        claimed(stores)


@pytest.mark.parametrize("ahead_s", [3600.0, 1.7e9])
def test_a_lease_that_ends_too_far_in_the_future_has_expired(database: str, ahead_s: float):
    """It was granted before a reboot, before the clock was set back, or by a version that used the wall clock."""
    opened = open_database(database)
    job = opened.jobs.add(new_job(job_spec(), 0.0))
    opened.jobs.claim("dead", 0.0, 10.0, 1)
    pass_time(opened.jobs, -ahead_s)
    assert [each.id for each in opened.jobs.claim("alive", 0.0, 10.0, 1)] == [job.id]
    opened.close()


def test_postgresql_measures_leases_by_its_own_clock(new_postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch):
    """Machines with different monotonic clocks see the same lease."""
    opened = open_database(new_postgres())
    opened.jobs.add(new_job(job_spec(), 0.0))
    opened.jobs.claim("one", 0.0, LEASE_S, 1)
    original = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: original() + 1e6)
    assert claimed(opened, "other") == []
    assert len(opened.jobs.renew("one", LEASE_S)) == 1
    opened.close()

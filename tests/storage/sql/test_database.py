"""SQL databases: files, migrations, killed processes, and databases that do not answer."""

import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, event, make_url, text

from sd35.access.keys import Role, new_key
from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.storage.database import Database, open_database
from sd35.storage.jobs import Delivery, DueWebhooks, JobResult, Receiver, Status, new_job
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.jobs import SqlJobStore
from sd35.storage.sql.tables import VERSION, metadata
from sd35.storage.sql.upgrade import config_for
from tests.support.job_specs import REQUEST, job_spec

TIMEOUT_S = 120
ADDING = """
import sys
from sd35.storage.jobs import new_job
from sd35.storage.database import open_database
from tests.support.job_specs import job_spec
jobs = open_database(sys.argv[1]).jobs
while True:
    print(jobs.add(new_job(job_spec(), 0.0)).id, flush=True)
"""
OPENING = """
import sys
import alembic.command
import sd35.storage.sql.jobs
from sd35.storage.database import open_database
print("ready", flush=True)
sys.stdin.readline()
open_database(sys.argv[1]).close()
"""
JOB_OF_0001 = """
INSERT INTO jobs (id, owner, status, priority, request, format, has_metadata, body_digest, created_s, webhook)
VALUES (:id, :owner, 'cancelled', 0, '{}', 'png', TRUE, '', 0, :url)
"""
ENDED_JOB_OF_0004 = """
INSERT INTO jobs (id, owner, status, priority, request, format, has_metadata, body_digest, created_s, ended_s,
    made_digest, was_cached, is_blurred)
VALUES ('job', 'me', 'succeeded', 0, :request, 'png', TRUE, '', 0, 1, :digest, TRUE, FALSE)
"""
DELIVERY_OF_0001 = "INSERT INTO deliveries (job_id, url, due_s, attempts) VALUES (:id, :url, 0, :attempts)"


@pytest.fixture
def opened(database: str) -> Iterator[Database]:
    """A new, opened SQL database."""
    stores = open_database(database)
    yield stores
    stores.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a new SQLite database."""
    return tmp_path / "data" / "jobs.db"


def process(script: str, database: str) -> subprocess.Popen[str]:
    """Start a Python process that runs a script."""
    return subprocess.Popen(
        [sys.executable, "-c", script, database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def sql_of(stores: Database) -> SqlJobStore:
    """Return the SQL job store of a database."""
    assert isinstance(stores.jobs, SqlJobStore)
    return stores.jobs


def test_stored_data_survives_a_restart(database: str):
    """Jobs, keys, and owners of images."""
    first = open_database(database)
    job = first.jobs.add(new_job(job_spec(), 1.0))
    key, _ = new_key("me", Role.USER, 1.0)
    first.keys.add(key)
    first.ownership.add("d", "me", 10, 1.0)
    first.close()
    second = open_database(database)
    assert (second.jobs.get(job.id, None), second.keys.keys()) == (job, [key])
    assert second.ownership.owners("d") == {"me"}
    second.close()


def test_accepted_jobs_survive_a_kill(database: str):
    """After `kill -9` while jobs are added, every acknowledged job is complete and can be claimed."""
    with process(ADDING, database) as adding:
        assert adding.stdout
        accepted = [adding.stdout.readline().strip() for _ in range(30)]
        adding.send_signal(signal.SIGKILL)
        accepted += [line.strip() for line in adding.stdout]
    stores = open_database(database)
    claimed = [job.id for job in stores.jobs.claim("h", 0.0, 9.0, 400)]
    assert set(accepted) <= set(claimed)
    assert len(claimed) <= len(accepted) + 1  # one may be stored, but not yet acknowledged
    stores.close()


def test_migrations_create_the_tables_of_the_code(database: str, opened: Database):
    """Including every column and index."""
    assert database
    with sql_of(opened).database.read() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        assert ScriptDirectory.from_config(config_for(connection)).get_heads() == [VERSION]


def test_a_database_without_checksums_is_upgraded(database: str):
    """Its images stay, and checksums can be added to them."""
    before = SqlDatabase(make_url(database) if "://" in database else URL.create("sqlite", database=database))
    with before.write() as connection:
        command.upgrade(config_for(connection), "0001")
        connection.execute(text("INSERT INTO pictures VALUES (:digest, 'me', 10, 1.0)"), {"digest": "ab" * 32})
    before.close()
    with pytest.raises(StoreUnavailable, match=r"an older version of sd35 created it \(schema 0001, .* start the"):
        open_database(database, tables="require")
    with pytest.raises(StoreUnavailable, match=r"an older version of sd35 created it \(schema 0001, .* start the"):
        open_database(database, tables="create")
    stores, name = open_database(database), f"{'ab' * 32}.png"
    assert stores.ownership.owners("ab" * 32) == {"me"}
    assert stores.ownership.checksums(name) == {}
    stores.ownership.add_checksum(name, "1" * 64, 10)
    stores.close()
    reopened = open_database(database, tables="require")
    assert reopened.ownership.checksums(name) == {"1" * 64: 10}
    reopened.close()


def test_only_a_migration_is_logged_in_one_line(database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A new database, or one of this version, logs nothing."""
    caplog.set_level(logging.INFO, "sd35")
    before = SqlDatabase(make_url(database) if "://" in database else URL.create("sqlite", database=database))
    with before.write() as connection:
        command.upgrade(config_for(connection), "0001")
    before.close()
    for each in (str(tmp_path / "new.db"), database, database):
        open_database(each).close()
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("sd35.")]
    assert messages == [f"database migrated: {before.name}, from schema 0001 to {VERSION}"]


def test_a_missing_database_is_not_created_without_upgrade(file: Path):
    with pytest.raises(InvalidSetting, match=rf"database: {file} does not exist"):
        open_database(str(file), tables="require")
    assert not file.parent.exists()


def test_upgrading_adds_receivers_to_pending_webhooks(database: str):
    """No webhook is lost."""
    hosts = {
        "https://example.com/hook": "example.com",
        "https://B\u00dcCHER.example.:8443/": "xn--bcher-kva.example",
        "https://[2606:4700::1111]/": "2606:4700::1111",
        "no URL": "",
    }
    before = SqlDatabase(make_url(database) if "://" in database else URL.create("sqlite", database=database))
    with before.write() as connection:
        command.upgrade(config_for(connection), "0001")
        for number, url in enumerate(hosts):
            values = {"id": f"job {number}", "owner": f"owner {number}", "url": url, "attempts": number}
            connection.execute(text(JOB_OF_0001), values)
            connection.execute(text(DELIVERY_OF_0001), values)
    before.close()
    stores = open_database(database)
    receivers = [Receiver(f"owner {number}", host) for number, host in enumerate(hosts.values())]
    assert {one.receiver for one in stores.jobs.due_webhooks(0.0)} == set(receivers)
    claimed = stores.jobs.claim_webhooks(0.0, dict.fromkeys(receivers, 1))
    assert claimed == [
        Delivery(f"job {number}", url, number, receiver)
        for number, (url, receiver) in enumerate(zip(hosts, receivers, strict=True))
    ]
    stores.close()


def test_upgrading_keeps_jobs_and_images_of_renamed_tables(database: str):
    before = SqlDatabase(make_url(database) if "://" in database else URL.create("sqlite", database=database))
    request = REQUEST.canonical.decode()
    with before.write() as connection:
        command.upgrade(config_for(connection), "0004")
        connection.execute(text("INSERT INTO pictures VALUES (:digest, 'me', 10, 1.0)"), {"digest": "ab" * 32})
        connection.execute(text(ENDED_JOB_OF_0004), {"request": request, "digest": "ab" * 32})
    before.close()
    opened = open_database(database)
    assert opened.ownership.owners("ab" * 32) == {"me"}
    (job,) = opened.jobs.page("me", [], None, 10)
    assert job.result == JobResult("ab" * 32, was_cached=True, is_blurred=False)
    opened.close()


def test_a_process_of_the_previous_version_can_still_add_webhooks(database: str, opened: Database):
    """It may share the database while services are upgraded one by one. It does not set the receiver."""
    assert database
    job = opened.jobs.add(new_job(job_spec(webhook="https://example.com/"), 0.0))
    with sql_of(opened).database.write() as connection:
        connection.execute(text(DELIVERY_OF_0001), {"id": job.id, "url": "https://example.com/", "attempts": 0})
    assert opened.jobs.due_webhooks(0.0) == [DueWebhooks(Receiver("", ""), 1, 0.0)]
    assert [one.job_id for one in opened.jobs.claim_webhooks(0.0, {Receiver("", ""): 1})] == [job.id]


def test_processes_that_start_at_once_do_not_break_each_other(database: str):
    """One creates the tables, and the others wait for it."""
    starting = [process(OPENING, database) for _ in range(3)]
    for one in starting:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
    for one in starting:
        assert one.stdin
        one.stdin.write("\n")
        one.stdin.flush()
    assert [one.wait(TIMEOUT_S) for one in starting] == [0] * 3
    for one in starting:
        one.communicate()
    stores = open_database(database)
    assert stores.jobs.counts()[Status.QUEUED] == 0
    stores.close()


def test_a_newer_database_is_refused(database: str, opened: Database):
    """The error says what to do."""
    with sql_of(opened).database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnavailable, match=r"newer version of sd35 created it \(schema 9999, .* install"):
        open_database(database)


def test_the_database_file_is_private_to_its_user(file: Path):
    """Deleted prompts are overwritten."""
    stores = open_database(str(file))
    job = stores.jobs.add(new_job(job_spec(), 0.0))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes == dict.fromkeys(["jobs.db", "jobs.db-wal", "jobs.db-shm", "jobs.db.lock"], 0o600)
    stores.jobs.cancel(job.id, None, 1.0)
    stores.jobs.delete(job.id, None)
    stores.close()
    assert b"a cat" not in file.read_bytes()


def test_a_url_and_a_path_open_the_same_file(file: Path):
    open_database(f"sqlite:///{file}").close()
    assert file.exists()


def test_a_locked_database_is_unavailable_until_it_is_unlocked(file: Path):
    """Writes fail after a limited wait, with the reason."""
    stores = open_database(str(file), wait_s=0.05)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"jobs\.db cannot be used: database is locked"):
        stores.jobs.add(new_job(job_spec(), 0.0))
    assert stores.jobs.counts()[Status.QUEUED] == 0  # reads still work
    other.execute("ROLLBACK")
    other.close()
    stores.jobs.add(new_job(job_spec(), 0.0))
    stores.close()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_removed_file_accepts_no_writes(file: Path, *, is_replaced: bool):
    """Data written to the removed file would be missing after a restart."""
    stores = open_database(str(file))
    for each in file.parent.glob("jobs.db*"):
        each.rename(each.with_name(f"old-{each.name}"))  # not deleted, because a free inode may be reused at once
    if is_replaced:
        open_database(str(file)).close()
    for call in (lambda: stores.jobs.add(new_job(job_spec(), 1.0)), stores.keys.keys):
        with pytest.raises(StoreUnavailable, match=r"jobs.db cannot be used: its file was removed or replaced"):
            call()
    stores.close()


def test_a_full_disk_leaves_nothing_half_written(file: Path):
    """The error has the reason. When there is room again, jobs can be added."""
    stores = open_database(str(file))
    database = sql_of(stores).database
    stored = stores.jobs.add(new_job(job_spec(), 0.0))

    def fill(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite raises this to the current number of pages

    event.listen(database.engine, "checkout", fill)
    with pytest.raises(StoreUnavailable, match="database or disk is full"):  # noqa: PT012  it is not known how many fit
        for _ in range(1000):
            stores.jobs.add(new_job(job_spec(webhook="https://example.com/" + "x" * 1000), 0.0))
    event.remove(database.engine, "checkout", fill)
    database.engine.dispose()
    queued = stores.jobs.counts()[Status.QUEUED]
    assert stores.jobs.get(stored.id, None) == stored
    stores.jobs.add(new_job(job_spec(), 0.0))
    assert stores.jobs.counts()[Status.QUEUED] == queued + 1
    stores.close()


@pytest.mark.parametrize(
    ("name", "reason"), [("here", "unable to open database file"), ("file/jobs.db", "Not a directory|File exists")]
)
def test_a_path_that_cannot_be_a_file_is_an_error(tmp_path: Path, name: str, reason: str):
    """A directory at the path, or a file in place of its directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match=reason):
        open_database(str(tmp_path / name))


def test_a_file_that_is_not_a_database_is_an_error(file: Path):
    """The file is not changed."""
    file.parent.mkdir()
    file.write_bytes(b"x" * 5000)
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        open_database(str(file))
    assert file.read_bytes() == b"x" * 5000


@pytest.mark.parametrize(
    "database",
    [
        "mysql://me:hush@localhost/jobs",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////tmp/jobs.db?mode=ro",
        "postgresql://me:hush@localhost:port/jobs",
        "://hush",
    ],
)
def test_other_databases_are_refused_without_their_password(database: str):
    """The error lists the allowed values."""
    with pytest.raises(InvalidSetting, match=r"allowed: `memory`, a file's path") as error:
        open_database(database)
    assert "hush" not in str(error.value)


def test_an_unreachable_server_is_an_error_without_the_password(tmp_path: Path):
    """The error has the address and the reason."""
    with pytest.raises(StoreUnavailable, match=r"postgresql\+psycopg://me:\*\*\*@/jobs.*No such file") as error:
        open_database(f"postgresql://me:hush@/jobs?host={tmp_path}")
    assert "hush" not in str(error.value)


def test_a_restarted_server_is_used_again(new_postgres: Callable[[], str]):
    """Connections that the server has closed are replaced, so no call fails."""
    url = new_postgres()
    stores, other = open_database(url), open_database(url)
    stores.jobs.counts()
    with sql_of(other).database.write() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    job = stores.jobs.add(new_job(job_spec(), 0.0))
    assert stores.jobs.claim("h", 0.0, 9.0, 1)[0].id == job.id
    assert stores.jobs.end(job.id, "h", 1.0, JobResult("d", was_cached=False))
    stores.close()
    other.close()

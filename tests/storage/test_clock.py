"""ClockStore: one contract for all databases, and the migration of a database without readings."""

import sqlite3
from pathlib import Path

from sqlalchemy import URL, make_url, text

from sd35.storage.clock import ClockRules
from sd35.storage.database import Database, open_database
from sd35.storage.jobs import new_job
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.jobs import SqlJobStore
from sd35.storage.sql.upgrade import config_for
from tests.support.job_specs import job_spec

DAY_S = 86_400.0
NOW_S = 1_800_000_000.0
RULES = ClockRules.for_retention(30 * DAY_S)


def test_readings_are_stored(stores: Database):
    """Later readings are judged by them."""
    assert stores.clock.read(NOW_S, RULES).is_trusted
    assert stores.clock.read(NOW_S + 5 * DAY_S, RULES).is_trusted
    assert not stores.clock.read(NOW_S + 31 * DAY_S, RULES).is_trusted
    back = stores.clock.read(NOW_S + 5 * DAY_S + 300, RULES)
    assert back.is_trusted
    assert back.misdated == (NOW_S + 31 * DAY_S - 600, NOW_S + 31 * DAY_S + 600)


def test_readings_survive_a_restart(database: str):
    """A clock that is wrong from the start of a process is detected."""
    first = open_database(database)
    first.clock.read(NOW_S, RULES)
    first.close()
    second = open_database(database)
    assert not second.clock.read(NOW_S + 31 * DAY_S, RULES).is_trusted
    second.close()


def test_a_database_without_readings_is_as_old_as_its_newest_row(database: str):
    """A wrong clock at the first start of this version does not expire the data of an older version."""
    from alembic import command

    old = SqlDatabase(make_url(database) if "://" in database else URL.create("sqlite", database=database))
    with old.write() as connection:
        command.upgrade(config_for(connection), "0001")
        connection.execute(
            text("INSERT INTO pictures VALUES ('d', 'me', 10, :created_s)"), {"created_s": NOW_S - DAY_S}
        )
    jobs = SqlJobStore(old)
    job = jobs.add(new_job(job_spec(), NOW_S))
    jobs.close()
    opened = open_database(database)
    assert not opened.clock.read(NOW_S + 31 * DAY_S, RULES).is_trusted
    assert opened.clock.read(NOW_S + 60, RULES).is_trusted
    assert (opened.jobs.get(job.id, None), opened.ownership.owners("d")) == (job, {"me"})
    opened.close()


def test_a_new_database_has_no_trusted_reading_yet(tmp_path: Path):
    opened = open_database(str(tmp_path / "jobs.db"))
    opened.close()
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        assert connection.execute("SELECT * FROM clock").fetchall() == [(1, None, None, None, 0.0)]

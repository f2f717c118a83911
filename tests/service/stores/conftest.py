"""Stores of each kind, empty."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sd35.service.stores import MEMORY, Stores, open_stores
from tests.postgres import new_schema

NewDatabase = Callable[[], str]


@pytest.fixture
def new_postgres(request: pytest.FixtureRequest) -> NewDatabase:
    """Makes an empty place in a PostgreSQL server; its URL."""
    server = request.getfixturevalue("postgres_server")
    return lambda: new_schema(server).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An SQL database that nothing has opened yet."""
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    new: NewDatabase = request.getfixturevalue("new_postgres")
    return new()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    """Stores of every kind."""
    where = {"memory": MEMORY, "sqlite": str(tmp_path / "jobs.db")}.get(request.param)
    opened = open_stores(where or request.getfixturevalue("new_postgres")())
    yield opened
    opened.close()

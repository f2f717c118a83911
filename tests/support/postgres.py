"""A PostgreSQL server from Debian's packages. It listens only on a socket in its own folder."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.schema import CreateSchema

_HOMES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
_QUICK = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"  # the data is disposable


@contextmanager
def serving() -> Iterator[URL]:
    """Run a server and yield the URL of its database, in which tests create schemas."""
    if not _HOMES:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    binaries = _HOMES[-1].parent
    folder = Path(
        tempfile.mkdtemp(prefix="sd35-pg-")
    )  # pytest's folders are private to one user, and too long for a socket
    unprivileged = _unprivileged(folder)
    data = folder / "data"
    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "me", "-A", "trust", "-E", "UTF8", "--no-sync"]
    options = f"-k {folder} -c listen_addresses='' {_QUICK}"
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-w"]
    try:
        subprocess.run([*unprivileged, *initdb], check=True, capture_output=True, cwd=folder)
        start = [*control, "-l", str(folder / "log"), "-o", options, "start"]
        subprocess.run([*unprivileged, *start], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            yield URL.create("postgresql+psycopg", "me", database="postgres", query={"host": str(folder)})
        finally:
            stop = [*control, "-m", "immediate", "stop"]
            subprocess.run([*unprivileged, *stop], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    finally:
        shutil.rmtree(folder)


def new_schema(server: URL) -> URL:
    """Create an empty schema. It isolates tests like a database, and is created much faster."""
    name, engine = f"s{uuid.uuid4().hex}", create_engine(server)
    with engine.begin() as connection:
        connection.execute(CreateSchema(name))
    engine.dispose()
    return server.update_query_dict({"options": f"-csearch_path={name}"})


def _unprivileged(folder: Path) -> list[str]:
    """Return a command prefix that drops root privileges, because the server refuses to run as root."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

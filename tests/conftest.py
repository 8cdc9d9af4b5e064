"""Fixtures for everyone: databases, a clock, and randomness that repeats."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import Database
from storage.sealing import Hasher, RandomBytes, Sealer, load_hasher
from tests.databases import FIRST_KEY, Clock, Postgres, migrate, postgres_server, seeded_random_bytes
from tests.house import House, running_house


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def random_bytes() -> RandomBytes:
    return seeded_random_bytes()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "tallydesk.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.close()
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, one for each test process."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: Postgres) -> str:
    """The name of a PostgreSQL database with the newest schema, to be copied."""
    name = postgres.create()
    database = Database(postgres.url(name))
    migrate(database)
    database.close()
    return name


@pytest.fixture
def sqlite_database(tmp_path: Path, migrated_file: Path) -> Iterator[Database]:
    """A migrated SQLite database."""
    path = tmp_path / "tallydesk.db"
    shutil.copyfile(migrated_file, path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def postgres_database(postgres: Postgres, migrated_template: str) -> Iterator[Database]:
    """A migrated PostgreSQL database."""
    name = postgres.create(template=migrated_template)
    database = Database(postgres.url(name))
    yield database
    database.close()
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """A migrated database; the test runs on both kinds."""
    found: Database = request.getfixturevalue(f"{request.param}_database")
    return found


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without any table; the test runs on both kinds."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'empty.db'}")
        yield database
        database.close()
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = postgres.create()
    database = Database(postgres.url(name))
    yield database
    database.close()
    postgres.drop(name)


@pytest.fixture
def sealer() -> Sealer:
    return Sealer((FIRST_KEY,))


@pytest.fixture
def hasher(database: Database, sealer: Sealer, random_bytes: RandomBytes) -> Hasher:
    """The hasher of `database`, with its root key made."""
    hasher = load_hasher(database, sealer=sealer, random_bytes=random_bytes)
    hasher.email("")
    return hasher


@pytest.fixture
def house(database: Database, clock: Clock) -> Iterator[House]:
    """A running house with nobody connected yet, on both kinds of database."""
    with running_house(database.url, clock=clock) as running:
        yield running


@pytest.fixture
def small_house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    """The same on SQLite, for what does not depend on the kind of database."""
    with running_house(sqlite_database.url, clock=clock) as running:
        yield running

"""A house with a person in every table, and a neighbour who must not be touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.database import Database
from tests.databases import Clock
from tests.house import House, running_house


@pytest.fixture
def house(database: Database, clock: Clock) -> Iterator[House]:
    """On both kinds of database."""
    with running_house(database.url, clock=clock) as house:
        yield house


@pytest.fixture
def small_house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    """On SQLite, for what does not depend on the database."""
    with running_house(sqlite_database.url, clock=clock) as house:
        yield house

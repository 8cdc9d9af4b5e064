"""A running house on SQLite, with nobody connected yet: what defends does not depend on the kind of database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.database import Database
from tests.databases import Clock
from tests.house import House, running_house


@pytest.fixture
def house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    with running_house(sqlite_database.url, clock=clock) as house:
        yield house

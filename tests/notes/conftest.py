"""A ticket in a running house, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.database import Database
from tests.databases import Clock
from tests.house import running_house
from tests.notes.tickets import Ticket


@pytest.fixture
def ticket(database: Database, clock: Clock) -> Iterator[Ticket]:
    with running_house(database.url, clock=clock) as house:
        yield Ticket(house)


@pytest.fixture
def small_ticket(sqlite_database: Database, clock: Clock) -> Iterator[Ticket]:
    """For what does not depend on the kind of database."""
    with running_house(sqlite_database.url, clock=clock) as house:
        yield Ticket(house)

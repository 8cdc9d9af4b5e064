"""A running house with nobody connected yet, and somebody who is told of trouble."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.database import Database
from tests.databases import Clock
from tests.health.chat import Chat, running_chat
from tests.house import House, running_house


@pytest.fixture
def house(database: Database, clock: Clock) -> Iterator[House]:
    with running_house(database.url, clock=clock) as house:
        yield house


@pytest.fixture
def small_house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    """For what does not depend on the kind of database."""
    with running_house(sqlite_database.url, clock=clock) as house:
        yield house


@pytest.fixture
def chat() -> Iterator[Chat]:
    with running_chat() as chat:
        yield chat

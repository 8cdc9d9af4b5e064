"""A running house with a store at Rivo, on each kind of database and, where that does not matter, on SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from storage.database import Database
from tests.awards_elsewhere.door import Door
from tests.awards_elsewhere.shop import Shop, running_shop
from tests.databases import Clock


@pytest.fixture
def shop(database: Database, clock: Clock) -> Iterator[Shop]:
    with running_shop(database.url, clock=clock) as shop:
        yield shop


@pytest.fixture
def small_shop(sqlite_database: Database, clock: Clock) -> Iterator[Shop]:
    """For what does not depend on the kind of database."""
    with running_shop(sqlite_database.url, clock=clock) as shop:
        yield shop


@pytest.fixture
def door() -> Iterator[Door]:
    """What `shop_behind_door` reaches Rivo through."""
    with closing(Door()) as door:
        yield door


@pytest.fixture
def shop_behind_door(sqlite_database: Database, clock: Clock, door: Door) -> Iterator[Shop]:
    with running_shop(sqlite_database.url, clock=clock, door=door) as shop:
        yield shop

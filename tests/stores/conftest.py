"""A running house with a store at Rivo, on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.database import Database
from tests.awards_elsewhere.shop import Shop, running_shop
from tests.databases import Clock


@pytest.fixture
def shop(database: Database, clock: Clock) -> Iterator[Shop]:
    with running_shop(database.url, clock=clock) as shop:
        yield shop

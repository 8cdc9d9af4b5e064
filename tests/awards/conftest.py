"""A running house with one connected helpdesk, on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.database import Database
from tests.awards.desk import Desk
from tests.databases import Clock
from tests.house import House, running_house
from widget.connections import Connection


@pytest.fixture
def house(database: Database, clock: Clock) -> Iterator[House]:
    with running_house(database.url, clock=clock) as house:
        yield house


@pytest.fixture
def connection(house: House) -> Connection:
    """The connection of the account acme to its ledger."""
    return house.connect()[1]


@pytest.fixture
def desk(house: House, connection: Connection) -> Desk:
    """A desk whose customer is a member with 100 points."""
    desk = Desk(house=house, connection=connection)
    desk.enrol(points=100)
    return desk

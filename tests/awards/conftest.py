"""A running house with one connected helpdesk, on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from loyalty.awards import Rules
from loyalty.ledger import identity_for, open_store
from oauth.wire import TokenSet
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
    """The account acme and its ledger, without the walk through the helpdesk: nothing here depends on it."""
    services, now = house.services, house.clock()
    tokens = TokenSet(access_token="a", refresh_token="r", expires_at=now + timedelta(days=1))
    account = services.accounts.connect("acme", tokens=tokens, user_email="admin@acme.example")
    settings = services.settings
    with services.database.write() as tx:
        store = open_store(tx, identity=identity_for("acme"), now=now)
        rules = Rules(
            max_points_per_award=settings.max_points_per_award,
            max_points_per_agent_per_day=settings.max_points_per_agent_per_day,
            max_points_per_day=settings.max_points_per_connection_per_day,
        )
        services.connections.open(tx, account_id=account.id, store=store, rules=rules)
    return services.connections.of_account(account.id)[0]


@pytest.fixture
def desk(house: House, connection: Connection) -> Desk:
    """A desk whose customer is a member with 100 points."""
    desk = Desk(house=house, connection=connection)
    desk.enrol(points=100)
    return desk

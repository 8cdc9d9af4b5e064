"""A running house with a Rivo store of the sandbox, whose webhooks carry a secret."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox import RivoStore
from storage.database import Database
from tests.databases import Clock
from tests.house import House, running_house
from tests.webhooks.rivo_sends import ANA, SECRET, Rivo
from widget.connections import Connection


@pytest.fixture
def house(database: Database, clock: Clock) -> Iterator[House]:
    with running_house(database.url, clock=clock, sandbox_retry_delays_s=(0.01,)) as house:
        yield house


@pytest.fixture
def store(house: House) -> RivoStore:
    """The store at Rivo, with one member."""
    store = house.sandbox.rivo("northwind")
    store.add_customer(ANA, points=120, credits="25.50", status="member")
    return store


@pytest.fixture
def connection(house: House, store: RivoStore) -> Connection:
    return house.open_rivo(max_credit_cents_per_award=10_000, max_credit_cents_per_day=50_000)


@pytest.fixture
def rivo(house: House, connection: Connection) -> Rivo:
    """Rivo as a sender, which signs with the secret that the merchant has pasted."""
    house.services.stores.save_webhook_secret(connection.store, secret=SECRET)
    return Rivo(house=house, connection=connection)

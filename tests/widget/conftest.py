"""A running house with one connected helpdesk, on each kind of database."""

from __future__ import annotations

import pytest

from tests.house import House
from widget.connections import Connection


@pytest.fixture
def connection(house: House) -> Connection:
    """The connection of the account acme to its ledger."""
    return house.connect()[1]

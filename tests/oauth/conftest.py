"""Fixtures of the OAuth tests: the product and the sandbox, running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.database import Database
from tests.databases import Clock
from tests.house import House, running_house
from tests.oauth.scripted import Scripted


@pytest.fixture
def house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    """Product and sandbox on SQLite."""
    with running_house(sqlite_database.url, clock=clock) as running:
        yield running


@pytest.fixture
def house_on_both(database: Database, clock: Clock) -> Iterator[House]:
    """Product and sandbox; the test runs on both databases."""
    with running_house(database.url, clock=clock) as running:
        yield running


@pytest.fixture
def rotating_house(database: Database, clock: Clock) -> Iterator[House]:
    """On both databases, with a Gorgias that rotates refresh tokens and ends the family when one is used twice."""
    with running_house(database.url, clock=clock, sandbox_rotate_refresh_tokens=True) as running:
        yield running


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that answers whatever a test tells it to."""
    with Scripted() as running:
        yield running

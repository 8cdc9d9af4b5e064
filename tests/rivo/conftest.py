"""Fixtures for the client's tests: a gate on a real database whose waiting takes no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from loyalty.gate import Gate
from loyalty.rivo import Access, RivoClient
from outbound import Client
from sandbox import Sandbox
from storage.database import Database
from tests.databases import Clock
from tests.oauth.scripted import Scripted

ClientOf = Callable[[str], RivoClient]


@pytest.fixture
def gate(sqlite_database: Database, clock: Clock) -> Gate:
    return Gate(sqlite_database, now=clock, sleep=clock.advance)


@pytest.fixture
def client_of(gate: Gate, clock: Clock) -> Iterator[ClientOf]:
    """Makes a client for a base URL."""
    client = Client()
    yield lambda base_url: RivoClient(base_url, client=client, gate=gate, now=clock)
    client.close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with Scripted() as scripted:
        yield scripted


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(rivo_stores=("northwind",), rivo_calls_per_s=None) as sandbox:
        yield sandbox


@pytest.fixture
def access(sandbox: Sandbox) -> Access:
    return Access(key=sandbox.rivo("northwind").key, gate="northwind")


@pytest.fixture
def client(sandbox: Sandbox, client_of: ClientOf) -> RivoClient:
    return client_of(sandbox.rivo_url)

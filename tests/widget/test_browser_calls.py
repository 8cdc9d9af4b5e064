"""Whether a browser may call us: exactly the helpdesks that are known, never everyone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
import requests

from oauth.wire import TokenSet
from storage.database import Database
from tests.databases import Clock
from tests.house import House, running_house
from widget.connections import Connection

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def house_of_hosts(database: Database, clock: Clock) -> Iterator[House]:
    """Helpdesks whose account stands in the host, as at Gorgias."""
    with running_house(database.url, clock=clock, gorgias_url="https://{account}.gorgias.example") as house:
        for name in ("acme", "withdrawn", "gone"):
            _account(house, name, clock())
        house.services.accounts.withdraw(2, reason="invalid_grant")
        with house.services.database.write() as tx:
            tx.exec_driver_sql("UPDATE accounts SET state = 'disconnected' WHERE name = 'gone'")
        yield house


def test_a_known_helpdesk_may_call_both_addresses(house_of_hosts: House) -> None:
    for path in ("customer", "earnings"):
        answer = _preflight(house_of_hosts, path, "https://acme.gorgias.example")
        assert answer.status_code == 204
        assert answer.content == b""
        assert answer.headers["Access-Control-Allow-Origin"] == "https://acme.gorgias.example"
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert answer.headers["Access-Control-Allow-Headers"] == "X-Api-Key, Content-Type"
        assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_helpdesk_whose_tokens_no_longer_serve_keeps_its_buttons(house_of_hosts: House) -> None:
    origin = "https://withdrawn.gorgias.example"
    assert _preflight(house_of_hosts, "earnings", origin).headers["Access-Control-Allow-Origin"] == origin


STRANGERS = (
    "https://globex.gorgias.example",
    "https://gone.gorgias.example",
    "http://acme.gorgias.example",
    "https://acme.gorgias.example:8443",
    "https://acme.gorgias.example.evil.example",
    "https://evil.example/https://acme.gorgias.example",
    "https://acme.evil.example",
    "https://acmeXgorgias.example",
    "https://ACME.gorgias.example",
    "https://acme.gorgias.example/",
    "null",
    "*",
    "",
)


def test_nobody_else_may(house_of_hosts: House) -> None:
    for origin in STRANGERS:
        answer = _preflight(house_of_hosts, "earnings", origin)
        assert answer.status_code == 204, origin
        assert not [name for name in answer.headers if name.startswith("Access-Control")], origin
        assert answer.headers["Vary"] == "Origin", origin


def test_without_a_known_account_there_is_no_origin_to_allow(house: House) -> None:
    """Here the account stands in the path of GORGIAS_URL: all helpdesks share one origin."""
    origin = house.sandbox.gorgias_url.removesuffix("/{account}")
    assert "Access-Control-Allow-Origin" not in _preflight(house, "earnings", origin).headers
    house.connect()
    assert _preflight(house, "earnings", origin).headers["Access-Control-Allow-Origin"] == origin
    assert "Access-Control-Allow-Origin" not in _preflight(house, "earnings", f"{origin}/acme").headers


def test_answers_carry_the_origin_of_the_keys_own_account_and_no_other(house: House, connection: Connection) -> None:
    origin = house.sandbox.gorgias_url.removesuffix("/{account}")
    house.add_member(connection.store, "jane@example.com")
    for answer in (
        house.lookup(connection, "jane@example.com", headers={"Origin": origin}),
        house.award(connection, {"email": "jane@example.com", "points": 5}, headers={"Origin": origin}),
        house.award(connection, {"email": "jane@example.com", "points": "x"}, headers={"Origin": origin}),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Vary"] == "Origin"
    for other in ("https://evil.example", "null"):
        answer = house.lookup(connection, "jane@example.com", headers={"Origin": other})
        assert answer.status_code == 200
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Access-Control-Allow-Origin" not in house.lookup(connection, "jane@example.com").headers


def _preflight(house: House, path: str, origin: str) -> requests.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return requests.options(f"{house.url}/widget/{path}", headers=headers, timeout=20)


def _account(house: House, name: str, now: datetime) -> None:
    tokens = TokenSet(access_token="a", refresh_token="r", id_token="i", expires_at=now + timedelta(days=1))
    house.services.accounts.connect(name, tokens=tokens, user_email="admin@example.com")

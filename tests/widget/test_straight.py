"""The card's way past Flask: what holds for every answer holds for it as well, and a key is known for a second."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from app import create_app
from services import build_services
from tests.databases import seeded_random_bytes
from tests.house import House
from widget.connections import Connection

JANE = "jane+vip@example.com"
CUSTOMER = "/widget/customer"
only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

# Headers that are about one answer alone.
OWN = {"date", "content-length", "content-type", "x-request-id", "x-instance", "allow", "vary"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


@only_sqlite
def test_the_headers_of_a_card_are_those_of_every_answer(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE, points=5)
    other = _ask(house, "GET", "/nothing-is-here", key="")
    common = {name: value for name, value in other.headers.items() if name not in OWN}
    assert {"cache-control", "content-security-policy", "x-content-type-options", "referrer-policy"} <= set(common)
    key = _key(house, connection)
    query = f"{CUSTOMER}?email=jane%2Bvip%40example.com"
    for method in ("GET", "HEAD"):
        for used, path, status in ((key, query, 200), (key, CUSTOMER, 200), ("wrong", query, 401)):
            answer = _ask(house, method, path, key=used)
            assert answer.status == status
            assert {name: value for name, value in answer.headers.items() if name not in OWN} == common
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["content-type"] == "application/json"
            assert re.fullmatch(r"[0-9a-f]{24}", answer.headers["x-request-id"])
            assert "set-cookie" not in answer.headers
    given = _ask(house, "GET", query, key=key, more="X-Request-Id: given-by-the-proxy\r\n")
    assert given.headers["x-request-id"] == "given-by-the-proxy"


@only_sqlite
def test_a_head_is_the_card_without_its_body(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE, points=5)
    for key, path in ((_key(house, connection), f"{CUSTOMER}?email=jane%2Bvip%40example.com"), ("wrong", CUSTOMER)):
        card, head = (_ask(house, method, path, key=key) for method in ("GET", "HEAD"))
        assert head.status == card.status
        assert head.body == b""
        assert head.headers["content-length"] == card.headers["content-length"] == str(len(card.body))


@only_sqlite
def test_other_methods_go_the_way_of_every_other_page(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE, points=5)
    for method in ("POST", "PUT", "DELETE"):
        refused = _ask(house, method, CUSTOMER, key=_key(house, connection))
        assert refused.status == 405
        assert json.loads(refused.body)["reason"] == "http_405"
        assert refused.headers["allow"] == "GET, HEAD, OPTIONS"
    origin = house.sandbox.gorgias_url.replace("{account}", "acme")
    origin = f"{urlsplit(origin).scheme}://{urlsplit(origin).netloc}"
    asked = _ask(house, "OPTIONS", CUSTOMER, key="", more=f"Origin: {origin}\r\n")
    assert (asked.status, asked.body) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == origin
    assert asked.headers["vary"] == "Origin"
    assert asked.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in _ask(house, "OPTIONS", CUSTOMER, key="").headers
    for elsewhere in (f"{CUSTOMER}/", "/Widget/Customer", "/widget//customer"):
        assert _ask(house, "GET", elsewhere, key=_key(house, connection)).status in (308, 404), elsewhere


@only_sqlite
def test_whatever_the_query_is_it_is_a_card(house: House, connection: Connection) -> None:
    """Over the wire, byte for byte."""
    house.add_member(connection.store, JANE, points=7)
    house.add_member(connection.store, "jürgen@example.com", points=8)
    key = _key(house, connection)
    for query, points in (
        (b"email=jane%2Bvip%40example.com", 7),
        (b"email=jane%252Bvip%2540example.com", 7),
        (b"email=jane+vip@example.com", 7),
        (b"email=jane%2Bvip%40example.com&email=nobody%40example.com", 7),
        (b"email=nobody%40example.com&email=jane%2Bvip%40example.com", 7),
        (b"email=&email=jane%2Bvip%40example.com", 7),
        (b"\xff=\xfe&email=jane%2Bvip%40example.com&\xc3", 7),
        (b"%FF=%FE&email=jane%2Bvip%40example.com&%C3", 7),
        (b"email=j%C3%BCrgen%40example.com", 8),
        (b"email=j%FCrgen%40example.com", None),
        (b"email=\xff\xfe\x80", None),
        (b"email=%FF%FE%80", None),
        (b"email=", None),
        (b"email", None),
        (b"email==", None),
        (b"", None),
        (b"&&=&", None),
    ):
        answer = _ask(house, "GET", CUSTOMER.encode() + b"?" + query, key=key)
        assert answer.status == 200, query
        _assert_card(json.loads(answer.body), points=points, sent=query)


@only_sqlite
def test_letters_that_nobody_encoded_are_read_as_utf_8_or_found_nowhere(house: House, connection: Connection) -> None:
    """As WSGI hands them over, a character for each byte; the server of these tests would encode them once more."""
    house.add_member(connection.store, "jürgen@example.com", points=8)
    client = create_app(house.services).test_client()
    headers = {"X-Api-Key": _key(house, connection)}
    for query, points in (
        ("email=jürgen@example.com".encode(), 8),
        (b"\xff=\xfe&email=j\xc3\xbcrgen@example.com", 8),
        (b"email=j\xfcrgen@example.com", None),
        (b"email=j\xfcrgen@example.com&email=j\xc3\xbcrgen@example.com", 8),
        (b"email=\xff\xfe\x80", None),
        (b"email=\xed\xa0\x80@example.com", None),
        (b"email=\xc3", None),
    ):
        sent = {"QUERY_STRING": query.decode("latin-1")}
        answer = client.get(CUSTOMER, headers=headers, environ_overrides=sent)
        assert answer.status_code == 200, query
        _assert_card(json.loads(answer.data), points=points, sent=query)


def test_a_key_that_another_process_took_back_opens_nothing_a_second_later(
    house: House, connection: Connection
) -> None:
    house.add_member(connection.store, JANE, points=5)
    key = _key(house, connection)
    elsewhere = build_services(house.services.settings, now=house.clock, random_bytes=seeded_random_bytes(8))
    try:
        assert _status(house, key) == 200
        house.clock.advance(0.5)
        elsewhere.connections.remove(connection.id)
        assert elsewhere.connections.opened_by(key) is None, "at once where it was taken back"
        house.clock.advance(0.5)
        assert _status(house, key) == 401, "a second after it was read, however often it was used meanwhile"
        assert _status(house, key) == 401
    finally:
        elsewhere.database.close()


@only_sqlite
def test_a_key_that_this_process_took_back_opens_nothing_at_once(house: House, connection: Connection) -> None:
    connections = house.services.connections
    old = connections.newest_keys(connection.id)
    with house.services.database.write() as tx:
        connections.add_keys(tx, connection.id)
    new = connections.newest_keys(connection.id)
    assert [_status(house, key) for key in (old.lookup, new.lookup)] == [200, 200]
    connections.retire_keys(connection.id, keep=new)
    assert [_status(house, key) for key in (old.lookup, new.lookup)] == [401, 200]
    connections.remove(connection.id)
    assert _status(house, new.lookup) == 401


@only_sqlite
def test_a_key_that_opened_nothing_opens_as_soon_as_it_is_one(house: House, connection: Connection) -> None:
    """That a key is wrong is never remembered; nor is anything longer when the clock is set back."""
    connections = house.services.connections
    key = _key(house, connection)
    connections.remove(connection.id)
    assert _status(house, key) == 401
    with house.services.database.write() as tx:
        connections.open(tx, account_id=connection.account_id, store=connection.store, rules=connection.rules)
    key = _key(house, connection)
    assert _status(house, key) == 200
    elsewhere = build_services(house.services.settings, now=house.clock, random_bytes=seeded_random_bytes(8))
    elsewhere.connections.remove(connection.id)
    elsewhere.database.close()
    house.clock.advance(-3_600)
    assert _status(house, key) == 401


def _assert_card(shown: dict[str, Any], *, points: int | None, sent: bytes) -> None:
    """The card of a member with `points`, or of nobody where there are none."""
    assert len(shown) == 11, sent
    status = "Customer not found" if points is None else "Member"
    assert (shown["loyalty_status"], shown["points_balance"]) == (status, "" if points is None else points), sent


def _key(house: House, connection: Connection) -> str:
    return house.services.connections.newest_keys(connection.id).lookup


def _status(house: House, key: str) -> int:
    address = f"{house.url}{CUSTOMER}"
    return requests.get(address, params={"email": JANE}, headers={"X-Api-Key": key}, timeout=20).status_code


def _ask(house: House, method: str, path: str | bytes, *, key: str, more: str = "") -> Answer:
    """Byte for byte what is sent, and all that comes back."""
    parts = urlsplit(house.url)
    path = path.encode() if isinstance(path, str) else path
    rest = f" HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Api-Key: {key}\r\nConnection: close\r\n{more}\r\n"
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as wire:
        wire.sendall(method.encode() + b" " + path + rest.encode())
        received = b"".join(iter(lambda: wire.recv(65_536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs), f"a header came twice: {lines}"
    return Answer(status=int(first.split()[1]), headers=headers, body=body)

"""Wrong keys are limited by address and starts of the dance by account; whoever has the right key is never refused."""

from __future__ import annotations

from datetime import timedelta

import pytest
import requests
from prometheus_client import REGISTRY

from limiting import Limit, network_of
from oauth.views import STARTS_FROM_ONE_ADDRESS, STARTS_IN_ALL, STARTS_NEVER_REFUSED, Starts
from tests.databases import Clock
from tests.house import House
from widget.room import WRONG_KEYS


def test_wrong_keys_are_refused_for_their_rate_and_right_ones_never(house: House) -> None:
    _, connection = house.connect()
    house.add_member(connection.store, "jane@example.com", points=100)
    counted = _counted("/widget/customer", "too_many_wrong_keys")
    assert {_wrong(house).status_code for _ in range(WRONG_KEYS)} == {401}
    refused = _wrong(house)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
    assert refused.json()["reason"] == "too_many_wrong_keys"
    assert "Nothing was added." in refused.json()["message"]
    assert _counted("/widget/customer", "too_many_wrong_keys") == counted + 1

    # The same address, with the right keys, in the same minute: as often as it likes.
    for _ in range(2 * WRONG_KEYS):
        assert house.lookup(connection, "jane@example.com").json()["points_balance"] == 100
    for ticket in range(1, WRONG_KEYS + 2):
        asked = {"email": "jane@example.com", "points": 1, "ticket_id": str(ticket)}
        assert house.award(connection, asked).status_code == 200
    assert requests.post(f"{house.url}/widget/earnings", headers={"X-Api-Key": "x"}, timeout=5).status_code == 429

    # Another address behind the same proxy is not meant, whatever it says came before it.
    assert _wrong(house, forwarded="203.0.113.9, 198.51.100.7").status_code == 401
    house.clock.advance(60)
    assert _wrong(house).status_code == 401


def test_starting_to_connect_is_limited_by_account_and_says_when_to_try_again(house: House) -> None:
    def start(account: str, address: str = "") -> requests.Response:
        headers = {"X-Forwarded-For": address} if address else {}
        url = f"{house.url}/oauth/install?account={account}"
        return requests.get(url, headers=headers, allow_redirects=False, timeout=5)

    assert {start("acme").status_code for _ in range(STARTS_FROM_ONE_ADDRESS)} == {303}
    house.clock.advance(121)
    refused = start("acme")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "479")
    assert "Try again in 8 minutes." in refused.text
    assert start("globex").status_code == 303
    # A stranger who goes on asking keeps nobody else out.
    assert start("acme", "198.51.100.7").status_code == 303
    house.clock.advance(479)
    assert start("acme").status_code == 303


def test_many_starts_of_one_account_have_an_end_and_keep_out_nobody_who_comes_from_elsewhere(clock: Clock) -> None:
    starts = Starts(clock)
    counted = STARTS_FROM_ONE_ADDRESS - STARTS_NEVER_REFUSED
    for stranger in range(STARTS_IN_ALL // counted):
        waits = [starts.wait_s("acme", network=f"203.0.113.{stranger}") for _ in range(STARTS_FROM_ONE_ADDRESS)]
        assert set(waits) == {0}
    merchant = [starts.wait_s("acme", network="8.8.8.8") for _ in range(STARTS_NEVER_REFUSED + 1)]
    assert merchant == [0] * STARTS_NEVER_REFUSED + [600]
    clock.advance(600)
    assert starts.wait_s("acme", network="8.8.8.8") == 0


def test_the_window_moves(clock: Clock) -> None:
    limit = Limit(most=2, within=timedelta(seconds=60), now=clock)
    assert limit.wait_s("a") == 0
    clock.advance(30)
    assert (limit.wait_s("a"), limit.wait_s("a"), limit.wait_s("b")) == (0, 30, 0)
    clock.advance(30)
    assert (limit.wait_s("a"), limit.wait_s("a")) == (0, 30)


def test_a_crowd_of_keys_takes_no_more_memory_than_was_set(clock: Clock) -> None:
    limit = Limit(most=1, within=timedelta(seconds=60), now=clock, most_keys=100)
    for number in range(1_000):
        assert limit.wait_s(str(number)) == 0
    assert len(limit._events) == 100
    # The latest are remembered, the quietest are forgotten.
    assert limit.wait_s("999") == 60
    assert limit.wait_s("0") == 0


@pytest.mark.parametrize(
    ("peer", "forwarded", "counts_as"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("8.8.8.8", "1.1.1.1", "8.8.8.8"),
        ("127.0.0.1", "9.9.9.9, 8.8.4.4", "8.8.4.4"),
        ("10.1.2.3", "8.8.4.4", "8.8.4.4"),
        ("100.64.0.7", " 8.8.4.4 ", "8.8.4.4"),
        ("::1", "2001:4860:4860:12:34::5", "2001:4860:4860:12::"),
        ("::ffff:8.8.8.8", None, "8.8.8.8"),
        ("127.0.0.1", "not an address", "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        (None, None, "unknown"),
    ],
)
def test_an_address_is_that_of_the_client_and_not_of_our_proxy(
    peer: str | None, forwarded: str | None, counts_as: str
) -> None:
    assert network_of(peer, forwarded) == counts_as


def _wrong(house: House, *, forwarded: str = "") -> requests.Response:
    headers = {"X-Api-Key": "wrong", **({"X-Forwarded-For": forwarded} if forwarded else {})}
    return requests.get(f"{house.url}/widget/customer?email=jane@example.com", headers=headers, timeout=5)


def _counted(route: str, outcome: str) -> float:
    return REGISTRY.get_sample_value("tallydesk_requests_total", {"route": route, "outcome": outcome}) or 0

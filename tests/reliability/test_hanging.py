"""Rivo takes every call and never answers: agents go on working, and Gorgias sees no failure."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sandbox.faults import Fault
from storage.database import Database
from tests.databases import Clock
from tests.house import House, running_house
from widget.connections import Connection

DEADLINE_S = 0.4
# Time that a busy machine takes to run us at all. Without a deadline it would be minutes.
SLACK_S = 3.0
CALLS = r"/merchant_api/v1/.*"


@pytest.fixture
def house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    with running_house(sqlite_database.url, clock=clock, card_deadline_s=DEADLINE_S) as house:
        yield house


def know(house: House, connection: Connection, email: str) -> None:
    """A member whose card was shown once, long ago."""
    house.sandbox.rivo("northwind").add_customer(email, points=120)
    assert house.lookup(connection, email).json()["points_balance"] == 120
    house.clock.advance(300)


def hang(house: House) -> Fault:
    house.sandbox.requests.clear()
    return house.sandbox.faults.add(path=CALLS, account="rivo", kind="hang", times=None)


def test_cards_of_known_members_are_answered_while_the_calls_behind_them_still_hang(house: House) -> None:
    connection = house.open_rivo()
    emails = [f"ana{number}@example.com" for number in range(3)]
    for email in emails:
        know(house, connection, email)
    fault = hang(house)
    for _ in range(20):
        for email in emails:
            answer = house.lookup(connection, email)
            assert answer.status_code == 200
            assert answer.json()["points_balance"] == 120
    calls = house.sandbox.requests.filter(account="rivo")
    assert len(calls) == fault.hits == len(emails), "one call for each member, however often they are shown"
    assert [call.status for call in calls] == [None] * len(emails), "and no card waited for one"


def test_a_card_of_somebody_unknown_says_so_at_its_deadline_and_still_answers_200(house: House) -> None:
    connection = house.open_rivo()
    hang(house)
    for number in range(3):
        began = time.monotonic()
        answer = house.lookup(connection, f"stranger{number}@example.com")
        assert time.monotonic() - began < DEADLINE_S + SLACK_S
        assert answer.status_code == 200
        assert answer.json()["loyalty_status"] == "Temporarily unavailable"
    assert [call.status for call in house.sandbox.requests.filter(account="rivo")] == [None] * 3


def test_gorgias_counts_no_failure_and_keeps_the_integration_enabled(house: House) -> None:
    house.connect()
    connection = house.services.placement.ensure(house.open_rivo().id)
    integration_id = connection.placed.integration_id
    assert integration_id is not None
    helpdesk = house.sandbox.helpdesk("acme")
    know(house, connection, "ana@example.com")
    hang(house)
    worst = 0
    for number in range(110):
        email = "ana@example.com" if number % 10 == 0 else f"stranger{number}@example.com"
        customer = next(
            (one for one in helpdesk.customers() if one["email"] == email), None
        ) or helpdesk.create_customer("Somebody", email)
        helpdesk.create_ticket(customer["id"], "Where is it?", "Hello")
        worst = max(worst, helpdesk.failures(integration_id))
    house.sandbox.settle(60)
    assert max(worst, helpdesk.failures(integration_id)) == 0
    assert helpdesk.integration(integration_id)["deactivated_datetime"] is None
    sent = house.sandbox.runtime.delivery_log(integration_id)
    assert sent, "the log keeps the latest ones"
    assert {delivery.status for delivery in sent} == {200}

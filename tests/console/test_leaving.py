"""Disconnecting a helpdesk that shows Rivo: secrets and snapshots are erased, history stays and is found again."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from storage.tables import connections
from tests.console.steps import ANA, activity_of, count_of_snapshots, page_of, store_row
from tests.house import Browser, House
from tests.placement.gorgias import assert_exactly_one_of_each, found_in, fresh
from widget.connections import Connection
from widget.placement import PlacementFailed, PlacementProblem


def with_history(house: House) -> tuple[Browser, Connection]:
    """A connection with a key, two webhook secrets, a snapshot and an award."""
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    assert house.award(connection, {"email": ANA, "points": 50, "ticket_id": "7"}).status_code == 200
    for secret in ("former", "present"):
        house.services.stores.save_webhook_secret(connection.store, secret=secret)
    assert count_of_snapshots(house, connection) == 1
    return browser, connection


def assert_erased(house: House, connection: Connection) -> None:
    row = store_row(house, connection)
    assert (row.key_sealed, row.webhook_secret_sealed, row.old_webhook_secret_sealed) == (None, None, None)
    assert row.key_state == "missing"
    assert count_of_snapshots(house, connection) == 0


def test_disconnecting_erases_secrets_and_snapshots_and_the_same_key_finds_the_history(house: House) -> None:
    browser, connection = with_history(house)
    page = page_of(browser, connection)
    assert "Rivo’s key, its webhook secret and all that is remembered of its members here are erased" in page
    assert "connecting again with the same key finds the history" in page
    page = browser.submit("/oauth/disconnect", on=f"/connections/{connection.id}").text
    assert "acme is disconnected. Members, points and the history of awards are kept." in page
    assert "are erased here" in page
    assert_erased(house, connection)
    assert found_in(house).ids == set()

    browser, again = house.connect_rivo()
    assert (again.id, again.store) == (connection.id, connection.store)
    assert_exactly_one_of_each(house, again)
    assert "+50 points" in activity_of(browser, again)
    assert house.balance(again, ANA) == 170
    assert house.services.stores.webhook_secrets(again.store) == (), "the secret has to be brought again"


def test_every_store_of_the_helpdesk_is_erased_and_none_of_another(house: House) -> None:
    browser, ledger = house.connect()
    house.add_member(ledger.store, "mia@example.com", points=100)
    _, first = with_history(house)
    _, second = house.connect_rivo(store="fernhill")
    _, other = house.connect_rivo("globex")
    assert house.balance(other, ANA) == 170
    browser.submit("/oauth/disconnect", on="/connections/")
    assert_erased(house, first)
    assert_erased(house, second)
    assert house.services.stores.key_of(other.store).key == house.sandbox.rivo("northwind").key
    assert count_of_snapshots(house, other) == 1
    _, again = house.connect()
    assert house.balance(again, "mia@example.com") == 100


def test_the_ledger_alone_says_nothing_of_rivo(small_house: House) -> None:
    browser, connection = small_house.connect()
    page = browser.submit("/oauth/disconnect", on=f"/connections/{connection.id}").text
    assert "Rivo" not in page.partition("What happens next")[0]


def test_secrets_stay_while_the_cards_are_still_in_gorgias(small_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house = small_house
    browser, connection = with_history(house)

    def held(_: int) -> list[str]:
        raise PlacementFailed(PlacementProblem.IN_PROGRESS, "Someone else is setting up this connection.")

    monkeypatch.setattr(house.services.placement, "remove", held)
    page = browser.submit("/oauth/disconnect", on=f"/connections/{connection.id}").text
    assert "The account is still connected; press Disconnect again" in page
    assert house.balance(connection, ANA) == 170
    monkeypatch.undo()
    browser.submit("/oauth/disconnect", on=f"/connections/{connection.id}")
    assert_erased(house, connection)


def test_what_a_disconnect_that_was_broken_off_left_behind_is_erased_by_the_next(small_house: House) -> None:
    house = small_house
    browser, connection = with_history(house)
    with house.services.database.write() as tx:
        tx.execute(update(connections).where(connections.c.id == connection.id).values(state="removed"))
    assert fresh(house, connection).state == "removed"
    browser.submit("/oauth/disconnect", on="/connections/new")
    assert_erased(house, connection)

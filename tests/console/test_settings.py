"""Settings of a Rivo connection: store credit, the date of birth, and nothing that only the ledger has."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from storage.tables import snapshots
from tests.console.steps import ANA, page_of, session_of, text_of
from tests.house import Browser, House
from tests.placement.gorgias import found_in, fresh, raw_buttons
from widget.connections import Connection

FORM = {
    "max_points_per_award": "1000",
    "max_points_per_agent_per_day": "10000",
    "max_points_per_day": "50000",
    "reasons": "",
    "presets": "",
}


def save(browser: Browser, connection: Connection, **fields: str) -> str:
    page = browser.submit(
        f"/connections/{connection.id}/settings", {**FORM, **fields}, on=f"/connections/{connection.id}"
    )
    assert page.status_code == 200
    return page.text


def test_agents_may_give_store_credit_once_the_merchant_says_how_much(house: House) -> None:
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120, credits="1.00")
    asked: dict[str, Any] = {"email": ANA, "ticket_id": "7", "store_credit": "5.00"}
    assert house.award(connection, asked).status_code == 422
    assert _labels(house) == ["Add Earnings"]

    page = save(browser, connection, max_store_credit_per_award="5", max_store_credit_per_day="7,50")
    assert "Saved." in page
    assert 'name="max_store_credit_per_award" inputmode="decimal" autocomplete="off" value="5.00"' in page
    assert 'name="max_store_credit_per_day" inputmode="decimal" autocomplete="off" value="7.50"' in page
    rules = fresh(house, connection).rules
    assert (rules.max_credit_cents_per_award, rules.max_credit_cents_per_day) == (500, 750)
    assert _labels(house) == ["Add Earnings", "Add Store Credit"]
    assert house.award(connection, asked).status_code == 200
    assert (
        "5.01 store credit is too much for one award" in house.award(connection, {**asked, "store_credit": "5.01"}).text
    )

    assert "Saved." in save(browser, connection, max_store_credit_per_award="", max_store_credit_per_day="0.00")
    assert _labels(house) == ["Add Earnings"]
    assert house.award(connection, {**asked, "ticket_id": "8"}).status_code == 422


def test_faults_of_store_credit_are_told_with_the_others_and_what_was_typed_stays(small_house: House) -> None:
    browser, connection = small_house.connect_rivo()
    page = save(
        browser,
        connection,
        max_points_per_award="lots",
        max_store_credit_per_award="five",
        api_key="never-shown-again-0123456789",
        storefront_url="not an address",
    )
    read = text_of(page)
    assert "Points per award must be a whole number" in read
    assert "Store credit per award must be an amount such as 5 or 5.00" in read
    assert "Shop address" not in read
    assert 'value="five"' in page
    assert "never-shown-again" not in page
    assert "never-shown-again" not in session_of(small_house, browser)
    assert fresh(small_house, connection).rules.max_credit_cents_per_award == 0


def test_the_ledger_takes_no_store_credit(small_house: House) -> None:
    browser, connection = small_house.connect()
    assert "Saved." in save(browser, connection, max_store_credit_per_award="5", max_store_credit_per_day="5")
    assert fresh(small_house, connection).rules.max_credit_cents_per_award == 0
    assert _labels(small_house) == ["Add Earnings"]


def test_switching_the_date_of_birth_off_erases_it_at_once(house: House) -> None:
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120, dob="05-31")
    assert house.lookup(connection, ANA).json()["date_of_birth"] == ""
    save(browser, connection, show_date_of_birth="on")
    house.clock.advance(61)
    house.services.members.settle(10)
    house.lookup(connection, ANA)
    house.services.members.settle(10)
    assert house.lookup(connection, ANA).json()["date_of_birth"] == "05-31"
    assert _kept_dates(house) != [None]
    save(browser, connection)
    assert _kept_dates(house) == [None]
    assert house.lookup(connection, ANA).json()["date_of_birth"] == ""
    assert house.lookup(connection, ANA).json()["points_balance"] == 120


def test_what_a_merchant_has_to_know_is_explained_in_place(small_house: House) -> None:
    browser, connection = small_house.connect_rivo()
    page = page_of(browser, connection)
    for sentence in (
        "Store credit is money that a customer spends in your shop; Rivo keeps it beside the points.",
        "The REST API key lets Tallydesk read this store’s members and add points in Rivo",
        "A webhook is a message that Rivo sends when something changes",
    ):
        assert sentence in page
    assert "Shop address" not in page


def _labels(house: House) -> list[str]:
    [labels] = {tuple(button["label"] for button in raw_buttons(widget)) for widget in found_in(house).widgets}
    return list(labels)


def _kept_dates(house: House) -> list[Any]:
    with house.services.database.read() as tx:
        return list(tx.scalars(select(snapshots.c.date_of_birth_sealed)))

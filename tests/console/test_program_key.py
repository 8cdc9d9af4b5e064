"""A Rivo connection's page: how it stands with the key, a new key in the place of the old, and webhooks."""

from __future__ import annotations

import pytest

from tests.console.steps import ANA, activity_of, count_of_snapshots, page_of, session_of, store_row, text_of
from tests.house import Browser, House
from widget.connections import Connection

WRONG = "a-wrong-key-0123456789abcdef"


def replace(browser: Browser, connection: Connection, key: str) -> str:
    """Paste a key into the form; the page at the end, as read."""
    page = browser.submit(
        f"/connections/{connection.id}/program-key", {"api_key": key}, on=f"/connections/{connection.id}"
    )
    assert page.status_code == 200
    assert key not in page.text
    assert key not in session_of(browser.house, browser)
    return text_of(page.text)


def save_secret(browser: Browser, connection: Connection, **fields: str) -> str:
    page = browser.submit(f"/connections/{connection.id}/webhook-secret", fields, on=f"/connections/{connection.id}")
    assert page.status_code == 200
    return text_of(page.text)


def test_a_regenerated_key_is_told_with_its_time_and_the_new_one_puts_it_right(house: House) -> None:
    browser, connection = house.connect_rivo()
    store = house.sandbox.rivo("northwind")
    store.add_customer(ANA, points=120)
    assert house.award(connection, {"email": ANA, "points": 50, "ticket_id": "7"}).status_code == 200
    store.regenerate_key()
    assert house.award(connection, {"email": ANA, "points": 5, "ticket_id": "8"}).status_code == 503
    page = page_of(browser, connection)
    assert "Rivo has refused the key of this store since 14 Mar 2026, 09:30 UTC." in page
    assert "Agents see the last known values with their time, awards are refused" in page
    assert "Key refused since 14 Mar 2026, 09:30 UTC." in page
    listed = text_of(browser.get("/connections/").text)
    assert "Key refused" in listed
    assert "Set up" not in listed

    assert count_of_snapshots(house, connection) == 1
    page = replace(browser, connection, store.key)
    assert "The new key is in place. The history of awards is kept" in page
    assert "refused" not in page.partition("Webhooks")[0]
    assert f"Rivo takes the key ending in {store.key[-4:]}." in page
    assert count_of_snapshots(house, connection) == 0
    assert "+50 points" in activity_of(browser, connection)
    assert house.balance(connection, ANA) == 170
    assert house.award(connection, {"email": ANA, "points": 5, "ticket_id": "9"}).status_code == 200


@pytest.mark.parametrize("typed", ["", "two words", WRONG])
def test_a_key_that_is_not_taken_leaves_the_old_one_in_use(small_house: House, typed: str) -> None:
    house = small_house
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    assert house.balance(connection, ANA) == 120
    before = store_row(house, connection)
    page = browser.submit(
        f"/connections/{connection.id}/program-key", {"api_key": typed}, on=f"/connections/{connection.id}"
    )
    assert "Nothing was kept; the key that was in use stays." in page.text
    assert not typed or typed not in page.text
    assert store_row(house, connection) == before
    assert count_of_snapshots(house, connection) == 1


def test_when_rivo_is_down_the_old_key_stays(small_house: House) -> None:
    browser, connection = small_house.connect_rivo()
    before = store_row(small_house, connection)
    small_house.sandbox.faults.add(".*", account="rivo", kind="status", status=503)
    page = replace(browser, connection, small_house.sandbox.rivo("northwind").regenerate_key())
    assert "Rivo is in trouble, so the key could not be tried. Try again in a minute. Nothing was kept" in page
    assert store_row(small_house, connection) == before


def test_the_key_of_another_connection_is_refused_by_its_name(house: House) -> None:
    browser, first = house.connect_rivo(store="northwind")
    _, second = house.connect_rivo(store="fernhill")
    before = store_row(house, second)
    page = replace(browser, second, house.sandbox.rivo("northwind").key)
    assert f"This key is in use already, by Rivo, connection {first.id}: a store is shown once." in page
    assert store_row(house, second) == before
    # Its own key again is no trouble.
    assert "The new key is in place." in replace(browser, second, house.sandbox.rivo("fernhill").key)


def test_the_key_of_a_store_that_was_disconnected_is_not_taken_over_with_its_history(small_house: House) -> None:
    house = small_house
    browser, _ = house.connect_rivo(store="northwind")
    browser.submit("/oauth/disconnect", on="/connections/")
    browser, second = house.connect_rivo(store="fernhill")
    page = replace(browser, second, house.sandbox.rivo("northwind").key)
    assert "This key belongs to a store that this helpdesk showed before it was disconnected." in page


def test_replacing_by_the_same_key_after_the_plan_was_renewed_puts_it_right(small_house: House) -> None:
    browser, connection = small_house.connect_rivo()
    store = small_house.sandbox.rivo("northwind")
    store.add_customer(ANA, points=1)
    store.lapse()
    assert small_house.lookup(connection, ANA).json()["loyalty_status"] == "Temporarily unavailable"
    assert "Key refused since" in page_of(browser, connection)
    on = f"/connections/{connection.id}"
    looked = text_of(browser.submit(f"{on}/lookup", {"email": "nobody@example.com"}, on=on).text)
    assert "Rivo is not asked without a key that it takes" in looked
    assert "Try again in a moment" not in looked
    store.lapse(False)
    assert "The new key is in place." in replace(browser, connection, store.key)
    assert small_house.balance(connection, ANA) == 1


def test_webhooks_are_set_up_rotated_and_ended(house: House) -> None:
    browser, connection = house.connect_rivo()
    secrets = house.services.stores.webhook_secrets
    page = browser.get(f"/connections/{connection.id}").text
    assert f'value="{house.url}/rivo/webhooks/{connection.id}"' in page
    read = text_of(page)
    assert "no secret is saved, so webhooks are refused" in read
    assert "for loyalty_profile/updated first, then for points_event/created" in read
    assert "everything works without" in read
    assert "Stop trusting" not in read

    assert "Saved. Webhooks signed with this secret are trusted." in save_secret(
        browser, connection, webhook_secret=" first secret "
    )
    assert secrets(connection.store) == ("first secret",)
    page = save_secret(browser, connection, webhook_secret="second")
    assert "The former secret goes on counting until the next change." in page
    assert "Webhooks signed with the saved secret are trusted." in page
    assert secrets(connection.store) == ("second", "first secret")
    assert "first secret" not in browser.get(f"/connections/{connection.id}").text
    for odd in ("", "  ", "a\x00b", "x" * 501):
        page = save_secret(browser, connection, webhook_secret=odd)
        assert "Nothing was kept." in page
        assert secrets(connection.store) == ("second", "first secret")
    page = save_secret(browser, connection, stop="yes")
    assert "Webhooks are no longer trusted." in page
    assert secrets(connection.store) == ()


def test_webhooks_of_the_sandbox_are_taken_at_the_address_on_the_page(small_house: House) -> None:
    house = small_house
    browser, connection = house.connect_rivo()
    store = house.sandbox.rivo("northwind")
    store.add_customer(ANA, points=120)
    save_secret(browser, connection, webhook_secret="whsec")
    store.subscribe(f"{house.url}/rivo/webhooks/{connection.id}", secret="whsec")
    assert house.balance(connection, ANA) == 120
    store.add_event(ANA, points=30)
    house.sandbox.settle()
    assert {sent.status for sent in store.deliveries()} == {200}


def test_the_ledger_has_neither_key_nor_webhooks(small_house: House) -> None:
    browser, connection = small_house.connect()
    page = page_of(browser, connection)
    assert "acme shows the built-in ledger" in page
    assert "Rivo" not in page
    assert "Webhook" not in page
    assert "Store credit" not in page
    for path in ("program-key", "webhook-secret"):
        answer = browser.submit(f"/connections/{connection.id}/{path}", {"api_key": WRONG}, on="/connections/")
        assert answer.status_code == 404


def test_the_lookup_shows_what_rivo_has_and_says_what_a_missing_customer_may_mean(small_house: House) -> None:
    browser, connection = small_house.connect_rivo()
    small_house.sandbox.rivo("northwind").add_customer(
        ANA, points=120, credits="25.50", tier="Gold", points_expire_at="December 31, 2026"
    )
    on = f"/connections/{connection.id}"
    page = text_of(browser.submit(f"{on}/lookup", {"email": ANA}, on=on).text)
    card = page[page.index(f"Loyalty · Rivo {connection.id}") :]
    for shown in ("Points balance 120", "Points expire December 31, 2026", "Store credit 25.50", "VIP tier Gold"):
        assert shown in card
    page = text_of(browser.submit(f"{on}/lookup", {"email": "nobody@example.com"}, on=on).text)
    assert "Customer not found" in page
    assert "takes up to a minute to reach Rivo" in page
    small_house.sandbox.faults.add(".*", account="rivo", kind="status", times=None)
    page = text_of(browser.submit(f"{on}/lookup", {"email": "later@example.com"}, on=on).text)
    assert "Rivo could not be asked in time" in page

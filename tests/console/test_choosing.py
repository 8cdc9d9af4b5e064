"""Choosing the program: Rivo's key is tried before it is kept, and a typed key is seen nowhere again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from loyalty.program import ProgramKind
from storage.database import Database
from tests.console.steps import everything, page_of, session_of, text_of
from tests.databases import Clock
from tests.house import Browser, House, running_house
from tests.placement.gorgias import assert_exactly_one_of_each, found_in
from widget.connections import Connection

WRONG = "a-wrong-key-0123456789abcdef"
VIP_TIERS = r"/merchant_api/v1/vip_tiers"


def choose(browser: Browser, key: str, *, follow: bool = True, **fields: str) -> Any:
    fields = {"program": "rivo", "api_key": key, **fields}
    return browser.submit("/connections/", fields, on="/connections/new", follow=follow)


def connections_of(house: House, account: str = "acme") -> list[Connection]:
    known = house.services.accounts.named(account)
    assert known is not None
    return house.services.connections.of_account(known.id)


def test_the_key_is_tried_and_the_connection_is_placed_and_says_rivo(house: House) -> None:
    store = house.sandbox.rivo("northwind")
    browser = house.browser()
    browser.sign_in("acme")
    answer = choose(browser, f"  {store.key}\n", follow=False)
    assert answer.status_code == 303
    [connection] = connections_of(house)
    assert answer.headers["Location"] == f"/connections/{connection.id}"
    [tried] = house.sandbox.requests.filter(account="rivo")
    assert (tried.method, tried.path, tried.status) == ("GET", "/merchant_api/v1/vip_tiers", 200)
    assert tried.headers["Authorization"] == store.key
    assert connection.store.program is ProgramKind.RIVO
    assert_exactly_one_of_each(house, connection)
    page = page_of(browser, connection)
    assert "Connected. Everything is in place in Gorgias." in page
    assert "acme shows Rivo" in page
    assert f"Rivo takes the key ending in {store.key[-4:]}." in page
    assert "ledger" not in page
    assert "flask members import" not in page
    store.add_customer("ana@example.com", points=120)
    assert house.balance(connection, "ana@example.com") == 120


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "Paste the REST API key from Rivo"),
        ("   ", "Paste the REST API key from Rivo"),
        (f"Bearer {WRONG}", "A Rivo key has no spaces or line breaks"),
        (f"{WRONG}\r\nX-Evil: 1", "A Rivo key has no spaces or line breaks"),
        (f"{WRONG}\x00", "This cannot be a Rivo key"),
        (f"{WRONG}€", "This cannot be a Rivo key"),
        (f"{WRONG}{'x' * 4000}", "This cannot be a Rivo key"),
    ],
)
def test_what_cannot_be_a_key_is_not_sent_anywhere(
    small_house: House, typed: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with nothing_kept(small_house, capfd, told=told) as browser:
        browser(typed)
    assert small_house.sandbox.requests.filter(account="rivo") == []


def test_a_key_that_rivo_refuses_is_not_kept(small_house: House, capfd: pytest.CaptureFixture[str]) -> None:
    for told in (
        "Rivo refuses this key. Copy the REST API key once more, complete, from Rivo under Settings → Developer "
        "Toolkit → REST API Keys: it may have been regenerated.",
        "the store's Rivo plan must include the Developer Toolkit",
    ):
        with nothing_kept(small_house, capfd, told=told) as paste:
            paste(WRONG)


def test_the_right_key_of_a_store_whose_plan_has_lapsed_is_not_kept(
    small_house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    store = small_house.sandbox.rivo("northwind")
    store.lapse()
    with nothing_kept(small_house, capfd, told="plan must include the Developer Toolkit", secret=store.key) as paste:
        paste(store.key)
    store.lapse(False)
    browser = small_house.browser()
    browser.sign_in("acme")
    assert "Connected." in choose(browser, store.key).text


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("status", "Rivo is in trouble, so the key could not be tried. Try again in a minute."),
        ("reset_before", "Rivo did not answer, so the key could not be tried. Try again in a minute."),
        ("html", "Rivo gave an answer that cannot be read"),
        ("rate_limited", "Rivo takes no more calls for this key just now. Try again in a few seconds."),
    ],
)
def test_when_rivo_is_in_trouble_nothing_is_kept_and_trying_again_helps(
    small_house: House, kind: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store = small_house.sandbox.rivo("northwind")
    small_house.sandbox.faults.add(VIP_TIERS, account="rivo", kind=kind)
    with nothing_kept(small_house, capfd, told=told, secret=store.key) as paste:
        paste(store.key)
    small_house.clock.advance(60)
    browser = small_house.browser()
    browser.sign_in("acme")
    assert "Connected." in choose(browser, store.key).text


def test_when_rivo_failed_several_times_it_is_left_alone_and_the_page_says_so(
    small_house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    store = small_house.sandbox.rivo("northwind")
    small_house.sandbox.faults.add(VIP_TIERS, account="rivo", kind="status", times=5)
    browser = small_house.browser()
    browser.sign_in("acme")
    for _ in range(5):
        choose(browser, store.key)
    seen = len(small_house.sandbox.requests.filter(account="rivo"))
    told = "Rivo failed several times in a row and is left alone for a few seconds"
    with nothing_kept(small_house, capfd, told=told, secret=store.key) as paste:
        paste(store.key)
    assert len(small_house.sandbox.requests.filter(account="rivo")) == seen


def test_when_rivo_cannot_be_reached_nothing_is_kept(
    sqlite_database: Database, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/merchant_api/v1"
    with (
        running_house(sqlite_database.url, clock=clock, rivo_url=url) as house,
        nothing_kept(house, capfd, told="Rivo could not be reached, so the key could not be tried.") as paste,
    ):
        paste(WRONG)


def test_a_key_in_use_opens_its_connection_and_finishes_its_placement(house: House) -> None:
    browser, connection = house.connect_rivo()
    before = found_in(house)
    house.sandbox.helpdesk("acme").delete_object("widgets", before.widgets[0]["id"])
    answer = choose(browser, house.sandbox.rivo("northwind").key, follow=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/connections/{connection.id}")
    assert [found.id for found in connections_of(house)] == [connection.id]
    assert_exactly_one_of_each(house, connection)
    assert "This key was in use already, by this connection." in page_of(browser, connection)


def test_another_helpdesk_with_the_same_key_has_a_store_of_its_own(house: House) -> None:
    _, acme = house.connect_rivo("acme")
    _, globex = house.connect_rivo("globex")
    assert acme.store != globex.store
    house.sandbox.rivo("northwind").regenerate_key()
    browser = house.browser()
    browser.sign_in("globex")
    fields = {"api_key": house.sandbox.rivo("northwind").key}
    browser.submit(f"/connections/{globex.id}/program-key", fields, on=f"/connections/{globex.id}")
    key_of = house.services.stores.key_of
    assert key_of(acme.store).key != key_of(globex.store).key == house.sandbox.rivo("northwind").key


def test_the_secret_of_webhooks_can_come_with_the_key(small_house: House) -> None:
    browser = small_house.browser()
    browser.sign_in("acme")
    key = small_house.sandbox.rivo("northwind").key
    choose(browser, key, webhook_secret=" whsec_first ")
    [connection] = connections_of(small_house)
    assert small_house.services.stores.webhook_secrets(connection.store) == ("whsec_first",)
    # Choosing it once more without one does not end the trust.
    choose(browser, key)
    assert small_house.services.stores.webhook_secrets(connection.store) == ("whsec_first",)


def test_an_unusable_secret_keeps_nothing(small_house: House) -> None:
    browser = small_house.browser()
    browser.sign_in("acme")
    page = choose(browser, small_house.sandbox.rivo("northwind").key, webhook_secret="a\x00b")
    assert "This cannot be a signing secret" in page.text
    assert connections_of(small_house) == []
    assert small_house.sandbox.requests.filter(account="rivo") == []


@pytest.mark.parametrize("program", ["", "yotpo", "RIVO"])
def test_a_program_has_to_be_chosen(small_house: House, program: str) -> None:
    browser = small_house.browser()
    browser.sign_in("acme")
    page = browser.submit("/connections/", {"program": program, "api_key": WRONG}, on="/connections/new")
    assert "Choose a program first." in page.text
    assert connections_of(small_house) == []


def test_the_choice_is_a_form_that_needs_no_script_and_asks_browsers_to_keep_nothing(small_house: House) -> None:
    browser = small_house.browser()
    browser.sign_in("acme")
    page = browser.get("/connections/new").text
    assert "<script" not in page
    [field] = [line for line in page.splitlines() if 'name="api_key"' in line]
    assert 'type="password"' in field
    assert 'autocomplete="off"' in field
    assert "value=" not in field
    assert 'value="ledger" checked' in page
    small_house.connect()
    assert 'value="rivo" checked' in browser.get("/connections/new").text, "the ledger is shown already"


def test_stores_of_one_helpdesk_are_told_apart(house: House) -> None:
    browser, ledger = house.connect()
    _, first = house.connect_rivo(store="northwind")
    assert "Built-in ledger Connection" in text_of(browser.get("/connections/").text)
    assert f"Rivo Connection {first.id} · key ending in" in text_of(browser.get("/connections/").text)
    assert "acme shows Rivo Connection" in page_of(browser, first)
    _, second = house.connect_rivo(store="fernhill")
    listed = text_of(browser.get("/connections/").text)
    for connection, store in ((first, "northwind"), (second, "fernhill")):
        ending = house.sandbox.rivo(store).key[-4:]
        name = f"Rivo, connection {connection.id}"
        assert f"{name} Connection {connection.id} · key ending in {ending}" in listed
        assert f"acme shows {name}" in page_of(browser, connection)
        assert name in text_of(browser.get(f"/connections/{connection.id}/activity").text)
        assert f"<title>Activity of {name}" in browser.get(f"/connections/{connection.id}/activity").text
    assert f"Built-in ledger Connection {ledger.id}" in listed
    titles = {widget["template"]["widgets"][0]["title"] for widget in found_in(house).widgets}
    assert titles == {"Loyalty", f"Loyalty · Rivo {first.id}", f"Loyalty · Rivo {second.id}"}


def test_of_a_short_key_nothing_is_shown(small_house: House) -> None:
    _, connection = small_house.connect_rivo()
    small_house.services.stores.replace_key(connection.store, account="acme", key="short-key")
    browser = small_house.browser()
    browser.sign_in("acme")
    assert "key ending" not in page_of(browser, connection)
    assert "-key" not in text_of(browser.get("/connections/").text)


@contextmanager
def nothing_kept(house: House, capfd: pytest.CaptureFixture[str], *, told: str, secret: str = WRONG) -> Iterator[Any]:
    """Paste what will be refused: the page says so, nothing is in the database, and the key is to be seen nowhere."""
    browser = house.browser()
    browser.sign_in("acme")
    before = everything(house)
    capfd.readouterr()
    seen: list[str] = []

    def paste(key: str) -> None:
        answer = choose(browser, key, follow=False)
        assert answer.status_code == 303
        seen.extend([str(answer.headers), answer.text, session_of(house, browser)])
        page = browser.get(answer.headers["Location"])
        assert page.status_code == 200
        shown = text_of(page.text)
        assert told in shown
        assert "Nothing was kept." in shown
        assert 'value="rivo" checked' in page.text
        seen.append(page.text)

    yield paste
    seen += capfd.readouterr()
    assert [text for text in seen if secret in text] == []
    assert everything(house) == before
    assert connections_of(house) == []

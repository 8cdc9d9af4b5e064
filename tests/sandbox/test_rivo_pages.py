"""The pages of the sandbox's Rivo over real sockets, without a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

import pytest
import requests

from sandbox import RivoStore, Sandbox

ANA = "ana@example.com"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(rivo_stores=("northwind", "fernhill"), retry_delays_s=()) as running:
        running.rivo("northwind").add_customer(ANA, points=120, credits="25.50", tier="Gold", first_name="Ana<b>")
        yield running


@pytest.fixture
def store(sandbox: Sandbox) -> RivoStore:
    return sandbox.rivo("northwind")


def page(sandbox: Sandbox, path: str = "/rivo/northwind") -> str:
    answer = requests.get(f"{sandbox.url}{path}", timeout=5)
    assert answer.status_code == 200
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    return unescape(answer.text)


def press(sandbox: Sandbox, part: str, **fields: str) -> requests.Response:
    """Send a form of the store's page."""
    url = f"{sandbox.url}/rivo/northwind/{part}"
    return requests.post(url, data=fields, allow_redirects=False, timeout=5)


def test_the_landing_pages_lead_to_the_stores(sandbox: Sandbox) -> None:
    assert 'href="/rivo/northwind"' in requests.get(sandbox.url, timeout=5).text
    for store in ("northwind", "fernhill"):
        assert f'href="/rivo/{store}"' in page(sandbox, "/rivo/")
    with Sandbox() as without:
        assert "/rivo" not in requests.get(without.url, timeout=5).text
        assert "It serves no stores" in page(without, "/rivo/")


def test_a_store_that_is_not_there_is_404_on_a_page(sandbox: Sandbox) -> None:
    answer = requests.get(f"{sandbox.url}/rivo/globex", timeout=5)
    assert (answer.status_code, "There is no such store here." in answer.text) == (404, True)


def test_the_page_shows_the_key_and_regenerating_makes_another(sandbox: Sandbox, store: RivoStore) -> None:
    old = store.key
    assert f">{old}<" in page(sandbox)
    assert "Developer Toolkit → REST API Keys" in page(sandbox)
    assert press(sandbox, "key").headers["Location"] == "/rivo/northwind#keys"
    assert store.key != old
    assert f">{store.key}<" in page(sandbox)


def test_the_plan_can_lapse_and_be_renewed(sandbox: Sandbox, store: RivoStore) -> None:
    press(sandbox, "plan", api="off")
    assert store.lapsed
    assert "Calls are answered with 403." in page(sandbox)
    press(sandbox, "plan", api="on")
    assert not store.lapsed


def test_customers_are_listed_with_balances_and_can_be_searched(sandbox: Sandbox, store: RivoStore) -> None:
    store.add_customer("bo@example.com", status="excluded", first_name="Bo")
    shown = requests.get(f"{sandbox.url}/rivo/northwind", timeout=5).text
    assert "Ana&lt;b&gt;" in shown
    for text in (">120<", ">25.50<", ">Gold<", ">excluded<"):
        assert text in shown
    found = page(sandbox, "/rivo/northwind?q=BO+example")
    assert (ANA in found, "bo@example.com" in found) == (False, True)
    assert "No customer like “zoe”." in page(sandbox, "/rivo/northwind?q=zoe")


def test_adjusting_writes_an_event_as_the_admin_and_shows_it(sandbox: Sandbox, store: RivoStore) -> None:
    sent = press(sandbox, "adjust", email="ANA@example.com", points="-20", credits="2.50", reason="Wrong <order>")
    assert (sent.status_code, sent.headers["Location"]) == (303, "/rivo/northwind#events")
    (event,) = store.events(ANA)
    assert (event["points_diff"], event["credits_diff"], event["source"]) == (-20, "2.50", "manual")
    # The pattern that was seen of Rivo's own admin.
    assert event["internal_note"] == "admin@northwind.example: Wrong <order>"
    shown = page(sandbox)
    for text in ("admin@northwind.example: Wrong <order>", ">−20<", ">+2.50<", ">100<"):
        assert text in shown


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"email": ANA}, "Enter how many points"),
        ({"email": ANA, "points": "1.5"}, "Enter points as a whole number"),
        ({"email": ANA, "credits": "much"}, "Enter points as a whole number"),
        ({"email": "nobody@example.com", "points": "5"}, "No customer of this store"),
        ({"email": "bo@example.com", "points": "5"}, "This customer is excluded"),
    ],
)
def test_an_adjustment_that_cannot_be_is_told_beside_what_was_entered(
    sandbox: Sandbox, store: RivoStore, fields: dict[str, str], sentence: str
) -> None:
    store.add_customer("bo@example.com", status="excluded")
    refused = press(sandbox, "adjust", **fields, reason="because")
    assert (refused.status_code, sentence in refused.text) == (400, True)
    assert 'value="because"' in refused.text
    assert store.events() == []


def test_webhooks_are_set_up_and_removed_and_their_deliveries_shown(sandbox: Sandbox, store: RivoStore) -> None:
    assert "None yet." in page(sandbox)
    refused = press(sandbox, "webhooks", url="ftp://x/", secret="s3cret")
    assert (refused.status_code, "Enter the address that takes the webhooks" in refused.text) == (400, True)
    press(sandbox, "webhooks", url=f"{sandbox.url}/nowhere", secret="s3cret", topic="", scheme="standard")
    press(sandbox, "webhooks", url=f"{sandbox.url}/", secret="t", topic="points_event/created", scheme="legacy_hex")
    assert [(one["topic"], one["scheme"]) for one in store.subscriptions()] == [
        ("*", "standard"),
        ("points_event/created", "legacy_hex"),
    ]
    store.add_event(ANA, points=1)
    sandbox.settle()
    shown = page(sandbox)
    assert "s3cret" not in shown
    deliveries = shown[shown.index("Latest deliveries") :]
    assert len(re.findall(r"msg_[0-9a-f]{24}", deliveries)) == 2
    assert "HTTP status 404." in deliveries
    press(sandbox, "webhooks/delete", topic="*")
    assert [one["topic"] for one in store.subscriptions()] == ["points_event/created"]


def test_a_form_from_elsewhere_is_refused(sandbox: Sandbox, store: RivoStore) -> None:
    old = store.key
    forged = requests.post(f"{sandbox.url}/rivo/northwind/key", headers={"Origin": "https://evil.example"}, timeout=5)
    assert forged.status_code == 403
    assert store.key == old

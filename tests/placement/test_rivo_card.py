"""What an ensure puts into Gorgias for Rivo: a card with what Rivo has, told apart, and a button for store credit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sandbox.widgets import Field, InputKind, build
from tests.house import House
from tests.placement.gorgias import RULES, assert_exactly_one_of_each, found_in, fresh, raw_buttons, shown_buttons
from widget.connections import Connection

WITH_CREDIT = replace(RULES, max_credit_cents_per_award=500, max_credit_cents_per_day=5_000)


def test_the_card_has_rows_for_what_rivo_offers_and_the_ledgers_has_none_of_them(small_house: House) -> None:
    house = small_house
    _, ledger = house.connect()
    _, rivo = house.connect_rivo()
    shared = ["Status", "Points balance", "VIP tier", "Lifetime points", "Referral link"]
    assert _titles(house, ledger) == [*shared, "As of"]
    assert _titles(house, rivo) == [
        "Status",
        "Points balance",
        "Points expire",
        "Store credit",
        "VIP tier",
        "Lifetime points",
        "Referral link",
        "As of",
    ]


def test_an_agent_reads_the_values_of_rivo_beside_the_ticket(small_house: House) -> None:
    house = small_house
    _, connection = house.connect_rivo()
    customer_id, _ = _open_ticket(house, credits="25.50", points_expire_at="December 31, 2026", tier="Gold")
    [card] = _cards(house, connection, customer_id)
    assert card.title == f"Loyalty · Rivo {connection.id}"
    shown = {item.label: item.text for item in card.items if isinstance(item, Field)}
    assert shown["Store credit"] == "25.50"
    assert shown["Points expire"] == "December 31, 2026"
    assert (shown["Points balance"], shown["VIP tier"]) == ("120", "Gold")


def test_cards_of_several_stores_are_told_apart_and_show_their_own_values(small_house: House) -> None:
    house = small_house
    _, ledger = house.connect()
    _, first = house.connect_rivo(store="northwind")
    _, second = house.connect_rivo(store="fernhill")
    house.add_member(ledger.store, "mia@example.com", points=1)
    house.sandbox.rivo("fernhill").add_customer("mia@example.com", points=3)
    customer_id, _ = _open_ticket(house, points=2)
    shown = {}
    for connection in (ledger, first, second):
        [card] = _cards(house, connection, customer_id)
        shown[card.title] = {item.path: item.text for item in card.items if isinstance(item, Field)}["points_balance"]
    assert shown == {"Loyalty": "1", f"Loyalty · Rivo {first.id}": "2", f"Loyalty · Rivo {second.id}": "3"}


def test_the_button_for_store_credit_comes_and_goes_with_the_setting_and_keeps_every_id(house: House) -> None:
    _, connection = house.connect_rivo()
    before = found_in(house).ids
    house.sandbox.requests.clear()
    _save(house, connection, rules=WITH_CREDIT)
    for widget in found_in(house).widgets:
        assert [button["label"] for button in raw_buttons(widget)] == [
            "Add Earnings",
            "Add Store Credit",
            "Add 50 points",
        ]
    changes = [(r.method, r.path.split("/")[2]) for r in house.sandbox.requests if r.method != "GET"]
    assert changes == [("PUT", "widgets"), ("PUT", "widgets")]
    assert_exactly_one_of_each(house, fresh(house, connection))
    _save(house, connection, rules=RULES)
    for widget in found_in(house).widgets:
        assert [button["label"] for button in raw_buttons(widget)] == ["Add Earnings", "Add 50 points"]
    assert found_in(house).ids == before


def test_pressing_it_gives_store_credit_on_a_ticket_and_on_the_customers_page(house: House) -> None:
    _, connection = house.connect_rivo()
    _save(house, connection, rules=WITH_CREDIT)
    customer_id, ticket_id = _open_ticket(house, credits="1.00")
    where: dict[str, Any] = {"context": "ticket", "customer_id": customer_id, "ticket_id": ticket_id}
    helpdesk = house.sandbox.helpdesk("acme")
    button = shown_buttons(helpdesk, fresh(house, connection), **where)["Add Store Credit"]
    assert [(i.key, i.label, i.kind, i.required) for i in button.inputs] == [
        ("store_credit", "Store credit", InputKind.STRING, True),
        ("reason", "Reason", InputKind.STRING, False),
    ]
    result = _press(house, button, {"store_credit": "2.50", "reason": "Late parcel"}, customer_id, ticket_id)
    assert (result.status, result.error) == (200, None)
    assert "Added 2.50 store credit." in result.body
    button = shown_buttons(helpdesk, fresh(house, connection), context="customer", customer_id=customer_id)[
        "Add Store Credit"
    ]
    house.clock.advance(61)
    assert _press(house, button, {"store_credit": "1,5", "reason": ""}, customer_id, None).status == 200
    events = house.sandbox.rivo("northwind").events("mia@example.com")
    assert [(event["points_diff"], event["credits_diff"]) for event in events] == [(0, "2.50"), (0, "1.50")]


def _titles(house: House, connection: Connection) -> list[str]:
    [titles] = {
        tuple(row["title"] for row in widget["template"]["widgets"][0]["widgets"] if row["type"] != "list")
        for widget in found_in(house).widgets
        if widget["integration_id"] == fresh(house, connection).placed.integration_id
    }
    return list(titles)


def _cards(house: House, connection: Connection, customer_id: int) -> Any:
    helpdesk = house.sandbox.helpdesk("acme")
    placed = fresh(house, connection).placed
    assert placed.ticket_widget_id is not None
    data = helpdesk.customer(customer_id)["integrations"][str(placed.integration_id)]
    return build(helpdesk.widget(placed.ticket_widget_id)["template"], data, context={})


def _save(house: House, connection: Connection, *, rules: Any) -> None:
    """As the console does: keep, then ensure."""
    with house.services.database.write() as tx:
        house.services.connections.save_settings(
            tx, connection.id, rules=rules, presets=(50,), show_date_of_birth=False
        )
    house.services.placement.ensure(connection.id)


def _open_ticket(house: House, *, points: int = 120, **customer: Any) -> tuple[int, int]:
    house.sandbox.rivo("northwind").add_customer("mia@example.com", points=points, **customer)
    helpdesk = house.sandbox.helpdesk("acme")
    customer_id: int = helpdesk.create_customer("Mia Wong", "Mia@example.com")["id"]
    ticket_id: int = helpdesk.create_ticket(customer_id, "Where is it?", "Hello")["id"]
    house.sandbox.settle()
    return customer_id, ticket_id


def _press(house: House, button: Any, fields: dict[str, str], customer_id: int, ticket_id: int | None) -> Any:
    helpdesk = house.sandbox.helpdesk("acme")
    return house.sandbox.runtime.run_action(
        helpdesk,
        button.action,
        fields=fields,
        ticket_id=ticket_id,
        customer_id=customer_id,
        user_id=helpdesk.users()[0]["id"],
    )

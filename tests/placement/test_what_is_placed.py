"""What an ensure puts into Gorgias: the very objects, and that they work in the sidebar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandbox.widgets import InputKind
from tests.house import House
from tests.placement.gorgias import (
    RULES,
    assert_exactly_one_of_each,
    found_in,
    fresh,
    raw_buttons,
    shown_buttons,
)
from widget.connections import Connection


def test_one_integration_asks_for_the_ticket_customer_with_the_braces_left_literal(small_house: House) -> None:
    _, connection = small_house.connect()
    (integration,) = found_in(small_house).integrations
    assert integration["type"] == "http"
    assert integration["deactivated_datetime"] is None
    http = integration["http"]
    assert http["url"] == f"{small_house.url}/widget/customer?email={{{{ticket.customer.email}}}}"
    assert http["method"] == "GET"
    assert http["response_content_type"] == "application/json"
    assert http["triggers"] == {"ticket-created": True, "ticket-updated": True, "ticket-message-created": True}
    key = small_house.services.connections.newest_keys(connection.id).lookup
    assert http["headers"] == {"X-Api-Key": key}
    assert key not in http["url"]


def test_one_widget_for_tickets_and_one_for_customers_hang_on_the_integration(small_house: House) -> None:
    small_house.connect()
    found = found_in(small_house)
    assert sorted(widget["context"] for widget in found.widgets) == ["customer", "ticket"]
    for widget in found.widgets:
        assert (widget["type"], widget["integration_id"]) == ("http", found.integrations[0]["id"])
        assert widget["template"]["type"] == "wrapper"
        (card,) = widget["template"]["widgets"]
        assert (card["type"], card["path"]) == ("card", "")


def test_one_macro_carries_the_real_id_of_the_integration_in_the_shape_that_is_known(small_house: House) -> None:
    small_house.connect()
    found = found_in(small_house)
    (macro,) = found.macros
    (action,) = macro["actions"]
    assert {name: action[name] for name in ("name", "title", "type")} == {
        "name": "setResponseText",
        "title": "Add response text",
        "type": "user",
    }
    assert action["arguments"].keys() == {"body_text", "body_html"}
    for text in action["arguments"].values():
        for field in ("points_balance", "loyalty_status", "referral_url", "vip_tier_name"):
            assert f"{{{{ticket.customer.integrations[{found.integrations[0]['id']}].{field}}}}}" in text


def test_the_two_keys_are_different_and_each_is_in_its_own_place_only(small_house: House) -> None:
    _, connection = small_house.connect()
    keys = small_house.services.connections.newest_keys(connection.id)
    assert keys.lookup != keys.award
    found = found_in(small_house)
    assert keys.award not in str(found.integrations)
    assert keys.lookup not in str(found.widgets)
    assert keys.lookup not in str(found.macros)
    assert keys.award not in str(found.macros)


def test_setting_up_twice_changes_nothing(house: House) -> None:
    _, connection = house.connect()
    before = found_in(house)
    house.sandbox.requests.clear()
    house.services.placement.ensure(connection.id)
    assert_exactly_one_of_each(house, connection)
    assert found_in(house) == before
    assert [r.method for r in house.sandbox.requests if r.method != "GET"] == []


def test_the_card_asks_for_points_and_a_reason_and_its_button_awards_on_a_ticket(house: House) -> None:
    _, connection = house.connect()
    customer_id, ticket_id = _open_ticket(house, connection)
    button = _button(house, connection, "Add Earnings", context="ticket", customer_id=customer_id, ticket_id=ticket_id)
    assert [(i.key, i.kind, i.required) for i in button.inputs] == [
        ("points", InputKind.NUMBER, True),
        ("reason", InputKind.STRING, False),
    ]
    result = _press(house, button, {"points": "50", "reason": "Late parcel"}, customer_id, ticket_id)
    assert (result.status, result.error) == (200, None)
    assert "New balance: 150 points." in result.body
    assert house.balance(connection, "mia@example.com") == 150


def test_the_card_of_a_customer_without_a_ticket_awards_too(house: House) -> None:
    _, connection = house.connect()
    customer_id, _ = _open_ticket(house, connection)
    button = _button(house, connection, "Add Earnings", context="customer", customer_id=customer_id)
    result = _press(house, button, {"points": "7", "reason": ""}, customer_id, None)
    assert result.status == 200, result.body
    assert house.balance(connection, "mia@example.com") == 107


def test_a_double_click_in_the_sidebar_awards_once_and_a_reloaded_card_awards_again(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    customer_id, ticket_id = _open_ticket(house, connection)
    where: dict[str, Any] = {"context": "ticket", "customer_id": customer_id, "ticket_id": ticket_id}
    button = _button(house, connection, "Add Earnings", **where)
    for _ in range(2):
        _press(house, button, {"points": "50", "reason": ""}, customer_id, ticket_id)
    assert house.balance(connection, "mia@example.com") == 150
    house.work()
    house.sandbox.settle()
    button = _button(house, connection, "Add Earnings", **where)
    _press(house, button, {"points": "50", "reason": ""}, customer_id, ticket_id)
    assert house.balance(connection, "mia@example.com") == 200, "the note brought a new card with a new key"


def test_presets_become_buttons_that_ask_for_nothing(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    connection = _with_settings(house, connection, presets=(50, 1_000))
    customer_id, ticket_id = _open_ticket(house, connection)
    where: dict[str, Any] = {"context": "ticket", "customer_id": customer_id, "ticket_id": ticket_id}
    preset = _button(house, connection, "Add 50 points", **where)
    assert preset.inputs == ()
    assert [b["label"] for b in raw_buttons(found_in(house).widgets[0])] == [
        "Add Earnings",
        "Add 50 points",
        "Add 1,000 points",
    ]
    for entry in raw_buttons(found_in(house).widgets[0])[1]["action"]["body"]["application/x-www-form-urlencoded"]:
        assert "editable" not in entry
    assert _press(house, preset, {}, customer_id, ticket_id).status == 200
    assert house.balance(connection, "mia@example.com") == 150
    preset = _button(house, connection, "Add 50 points", context="customer", customer_id=customer_id)
    house.clock.advance(61)
    assert _press(house, preset, {}, customer_id, None).status == 200
    assert house.balance(connection, "mia@example.com") == 200


def test_reasons_become_a_list_to_choose_from(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    connection = _with_settings(house, connection, reasons=("Late parcel", "Goodwill; again"))
    customer_id, ticket_id = _open_ticket(house, connection)
    where: dict[str, Any] = {"context": "ticket", "customer_id": customer_id, "ticket_id": ticket_id}
    button = _button(house, connection, "Add Earnings", **where)
    reason = button.inputs[1]
    assert (reason.kind, reason.options) == (InputKind.DROPDOWN, ("Late parcel", "Goodwill; again"))
    result = _press(house, button, {"points": "5", "reason": "Goodwill; again"}, customer_id, ticket_id)
    assert result.status == 200, result.body


def test_the_date_of_birth_has_a_row_only_when_it_is_switched_on(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    assert "date_of_birth" not in str(found_in(house).widgets)
    _with_settings(house, connection, show_date_of_birth=True)
    for widget in found_in(house).widgets:
        rows = widget["template"]["widgets"][0]["widgets"]
        assert [row["title"] for row in rows if row["path"] == "date_of_birth"] == ["Date of birth"]
    _with_settings(house, connection, show_date_of_birth=False)
    assert "date_of_birth" not in str(found_in(house).widgets)


@pytest.mark.parametrize("setting", [{"presets": (10,)}, {"reasons": ("Goodwill",)}, {"show_date_of_birth": True}])
def test_settings_reach_the_widgets_by_put_and_keep_every_id(small_house: House, setting: dict[str, Any]) -> None:
    _, connection = small_house.connect()
    before = found_in(small_house).ids
    small_house.sandbox.requests.clear()
    _with_settings(small_house, connection, **setting)
    assert found_in(small_house).ids == before
    changes = [(r.method, r.path.split("/")[2]) for r in small_house.sandbox.requests if r.method != "GET"]
    assert changes == [("PUT", "widgets"), ("PUT", "widgets")]


def _with_settings(house: House, connection: Connection, **settings: Any) -> Connection:
    """Save settings as the console does: keep them, then ensure."""
    with house.services.database.write() as tx:
        house.services.connections.save_settings(
            tx,
            connection.id,
            rules=replace(RULES, reasons=settings.get("reasons", ())),
            presets=settings.get("presets", ()),
            show_date_of_birth=settings.get("show_date_of_birth", False),
        )
    return house.services.placement.ensure(connection.id)


def _open_ticket(house: House, connection: Connection) -> tuple[int, int]:
    house.add_member(connection.store, "mia@example.com", points=100)
    helpdesk = house.sandbox.helpdesk("acme")
    customer_id: int = helpdesk.create_customer("Mia Wong", "Mia@example.com")["id"]
    ticket_id: int = helpdesk.create_ticket(customer_id, "Where is it?", "Hello")["id"]
    house.sandbox.settle()
    return customer_id, ticket_id


def _button(house: House, connection: Connection, label: str, **where: Any) -> Any:
    return shown_buttons(house.sandbox.helpdesk("acme"), fresh(house, connection), **where)[label]


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

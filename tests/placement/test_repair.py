"""What was changed in the helpdesk by hand is noticed, and Repair puts it right without new ids where it can."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.house import Browser, House
from tests.placement.gorgias import assert_exactly_one_of_each, found_in, fresh
from widget.connections import Connection

KINDS = ("integrations", "ticket widget", "customer widget", "macros")


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_deleted_by_hand_is_noticed_on_the_page_and_put_back_by_repair(house: House, kind: str) -> None:
    browser, connection = house.connect()
    before = found_in(house)
    gone = {
        "integrations": before.integrations[0],
        "ticket widget": next(w for w in before.widgets if w["context"] == "ticket"),
        "customer widget": next(w for w in before.widgets if w["context"] == "customer"),
        "macros": before.macros[0],
    }[kind]
    house.sandbox.helpdesk("acme").delete_object(kind.split()[-1].removesuffix("s") + "s", gone["id"])
    findings = {f.id: f for f in house.services.placement.inspect(fresh(house, connection))}
    finding = findings[
        {"integrations": "integration", "ticket widget": "widget.ticket", "customer widget": "widget.customer"}.get(
            kind, "macro"
        )
    ]
    assert (finding.well, finding.remedy) == (False, "Press Repair on the connection's page.")
    page = browser.get(f"/connections/{connection.id}").text
    assert finding.sentence in page
    assert "missing in Gorgias" in finding.sentence
    _repair(browser, connection)
    assert_exactly_one_of_each(house, connection)
    assert all(f.well for f in house.services.placement.inspect(fresh(house, connection)))
    if kind != "integrations":
        assert before.ids - found_in(house).ids == {gone["id"]}, "nothing else got a new id"


def test_everything_deleted_by_hand_comes_back(house: House) -> None:
    browser, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    before = found_in(house)
    for kind in ("integrations", "widgets", "macros"):
        for found in getattr(before, kind):
            helpdesk.delete_object(kind, found["id"])
    _repair(browser, connection)
    assert_exactly_one_of_each(house, connection)


def test_a_macro_whose_answer_was_lost_is_found_even_when_the_integration_was_deleted_meanwhile(house: House) -> None:
    browser, connection = house.connect()
    house.services.connections.save_placed(connection.id, macro_id=None)
    house.sandbox.helpdesk("acme").delete_object("integrations", found_in(house).integrations[0]["id"])
    _repair(browser, connection)
    assert_exactly_one_of_each(house, connection)


def test_an_integration_that_gorgias_switched_off_is_noticed_and_switched_on_with_the_same_id(house: House) -> None:
    browser, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    number = found_in(house).integrations[0]["id"]
    for _ in range(100):
        helpdesk.count_failure(number)
    assert helpdesk.integration(number)["deactivated_datetime"] is not None
    assert "The HTTP integration is switched off in Gorgias." in browser.get(f"/connections/{connection.id}").text
    house.sandbox.requests.clear()
    _switch_on(browser, connection)
    integration = helpdesk.integration(number)
    assert integration["deactivated_datetime"] is None
    changes = [(r.method, r.path) for r in house.sandbox.requests if r.method != "GET" and r.path.startswith("/api/")]
    assert changes == [("PUT", f"/api/integrations/{number}")]


@pytest.mark.parametrize(
    "drift",
    [
        {"url": "https://elsewhere.example.com/?email={{ticket.customer.email}}"},
        {"url": "%7B%7Bticket.customer.email%7D%7D"},
        {"triggers": {"ticket-created": True, "ticket-updated": False, "ticket-message-created": True}},
        {"triggers": {}},
        {"headers": {"X-Api-Key": "wrong"}},
        {"headers": {}},
        {"method": "POST"},
    ],
)
def test_an_integration_changed_by_hand_is_noticed_and_put_right_with_the_same_id(
    small_house: House, drift: dict[str, Any]
) -> None:
    house = small_house
    browser, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    (before,) = found_in(house).integrations
    if str(drift.get("url")).startswith("%7B"):
        drift = {"url": f"{house.url}/widget/customer?email={drift['url']}"}
    changed = copy.deepcopy(before)
    changed["http"].update(drift)
    helpdesk.keep_object("integrations", changed, key=before["id"])
    page = browser.get(f"/connections/{connection.id}").text
    assert "The HTTP integration was changed in Gorgias." in page
    _repair(browser, connection)
    assert helpdesk.integration(before["id"])["http"] == before["http"]
    assert_exactly_one_of_each(house, connection)


def test_triggers_that_gorgias_spells_with_underscores_are_taken_as_the_same(small_house: House) -> None:
    _, connection = small_house.connect()
    (before,) = found_in(small_house).integrations
    before["http"]["triggers"] = {name.replace("-", "_"): True for name in before["http"]["triggers"]}
    small_house.sandbox.helpdesk("acme").keep_object("integrations", before, key=before["id"])
    assert all(finding.well for finding in small_house.services.placement.inspect(fresh(small_house, connection)))


def test_a_merchants_edit_of_the_card_is_kept_until_our_side_changes_or_repair_is_pressed(house: House) -> None:
    browser, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    original = {widget["id"]: widget["template"] for widget in found_in(house).widgets}
    number = next(iter(original))

    def edit() -> None:
        edited = copy.deepcopy(helpdesk.widget(number))
        edited["template"]["widgets"][0]["title"] = "Our club"
        helpdesk.keep_object("widgets", edited, key=number)

    def title() -> str:
        return str(helpdesk.widget(number)["template"]["widgets"][0]["title"])

    edit()
    _save(browser, connection, max_points_per_award="500")
    assert title() == "Our club", "a limit stands in no template"
    _repair(browser, connection)
    assert helpdesk.widget(number)["template"] == original[number]
    edit()
    _save(browser, connection, presets="25")
    assert title() == "Loyalty", "a new button changes the template"
    assert found_in(house).ids >= set(original)


def test_a_macro_that_a_merchant_renamed_or_rewrote_is_still_ours_and_stays_theirs(house: House) -> None:
    browser, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    (macro,) = found_in(house).macros
    words = {"body_text": "Look at the card.", "body_html": "Look at the card."}
    edited = macro | {"name": "Points!", "actions": [macro["actions"][0] | {"arguments": words}]}
    helpdesk.keep_object("macros", edited, key=macro["id"])
    _repair(browser, connection)
    (after,) = found_in(house).macros
    assert (after["id"], after["name"]) == (macro["id"], "Points!")
    assert after["actions"][0]["arguments"] == words


def test_a_renamed_macro_learns_the_new_id_when_the_integration_had_to_be_made_anew(house: House) -> None:
    browser, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    (macro,) = found_in(house).macros
    helpdesk.keep_object("macros", macro | {"name": "Points!"}, key=macro["id"])
    helpdesk.delete_object("integrations", found_in(house).integrations[0]["id"])
    _repair(browser, connection)
    assert_exactly_one_of_each(house, connection)
    assert found_in(house).macros[0]["id"] == macro["id"]


def test_a_moved_service_takes_its_integration_along_with_the_same_id(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    helpdesk = house.sandbox.helpdesk("acme")
    (before,) = found_in(house).integrations
    before["http"]["url"] = "http://localhost:1/widget/customer?email={{ticket.customer.email}}"
    helpdesk.keep_object("integrations", before, key=before["id"])
    house.services.placement.ensure(connection.id)
    assert_exactly_one_of_each(house, connection)
    assert found_in(house).integrations[0]["id"] == before["id"]


def test_a_card_switched_off_by_hand_is_noticed_and_switched_on(small_house: House) -> None:
    browser, connection = small_house.connect()
    helpdesk = small_house.sandbox.helpdesk("acme")
    widget = found_in(small_house).widgets[0]
    helpdesk.keep_object("widgets", widget | {"deactivated_datetime": "2026-03-14T09:00:00+00:00"}, key=widget["id"])
    assert f"The card for {widget['context']}s is missing" in browser.get(f"/connections/{connection.id}").text
    _repair(browser, connection)
    assert helpdesk.widget(widget["id"])["deactivated_datetime"] is None


def test_the_page_says_so_when_gorgias_cannot_be_asked(small_house: House) -> None:
    browser, connection = small_house.connect()
    small_house.sandbox.faults.add("/api/integrations/.*", kind="reset_before", times=None)
    page = browser.get(f"/connections/{connection.id}")
    assert page.status_code == 200
    assert "Gorgias did not answer" in page.text


def _repair(browser: Browser, connection: Connection) -> None:
    page = browser.submit(f"/connections/{connection.id}/repair", on=f"/connections/{connection.id}")
    assert "Repaired." in page.text


def _save(browser: Browser, connection: Connection, **changed: str) -> None:
    settings = {
        "max_points_per_award": "1000",
        "max_points_per_agent_per_day": "10000",
        "max_points_per_day": "50000",
        "presets": "",
        "reasons": "",
        "storefront_url": "",
        **changed,
    }
    page = browser.submit(f"/connections/{connection.id}/settings", settings, on=f"/connections/{connection.id}")
    assert "Saved." in page.text


def _switch_on(browser: Browser, connection: Connection) -> None:
    page = f"/connections/{connection.id}"
    assert "Switch on again</button>" in browser.get(page).text
    answer = browser.submit(f"{page}/switch-on", on=page)
    assert "The HTTP integration is switched on again." in answer.text
    assert "Switch on again</button>" not in answer.text

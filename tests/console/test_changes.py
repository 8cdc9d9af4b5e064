"""The audit: every change in the console is written down with who, when and what, and nothing secret with it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from console.changes import CHANGES_KEPT, PAGE
from storage.tables import changes
from tests.console.steps import ANA, put_in_review, text_of
from tests.house import House

FORM = {
    "max_points_per_award": "500",
    "max_points_per_agent_per_day": "10000",
    "max_points_per_day": "50000",
    "reasons": "Goodwill\nask jane@shop.example",
    "presets": "50, 100",
}


def test_every_change_is_written_down_with_who_and_what(house: House) -> None:
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    page = f"/connections/{connection.id}"
    browser.submit(f"{page}/settings", FORM, on=page)
    browser.submit(f"{page}/repair", on=page)
    browser.submit(f"{page}/keys", on=page)
    browser.submit(f"{page}/webhook-secret", {"webhook_secret": "a signing secret nobody may read"}, on=page)
    browser.submit(f"{page}/webhook-secret", {"stop": "1"}, on=page)
    other_key = house.sandbox.rivo("fernhill").key
    waiting = put_in_review(house, connection)
    award = f"{page}/awards/{waiting.operation_id}"
    # A day has passed, and with it the session.
    browser.sign_in()
    browser.submit(f"{award}/look", on=page)
    browser.submit(f"{award}/mark", {"applied": "yes"}, on=page)
    waiting.fault.commit()
    browser.submit(f"{award}/undo", on=page)
    browser.submit(f"{page}/program-key", {"api_key": other_key}, on=page)

    read = text_of(browser.get("/connections/changes").text)
    in_order = [
        "Replaced the key of the program",
        f"Undid an award Award: {waiting.operation_id}",
        f"Marked an award Award: {waiting.operation_id} Applied: yes",
        f"Looked for an award again Award: {waiting.operation_id} Outcome: absent",
        "Stopped trusting webhooks",
        "Saved a webhook secret",
        "Replaced the keys that Gorgias uses",
        "Pressed Repair",
        "Saved the settings Points per award: 1,000 → 500",
        "Chose the program Program: Rivo",
        "Connected the helpdesk",
    ]
    places = [read.index(sentence) for sentence in in_order]
    assert places == sorted(places)
    assert "Presets: none → 50, 100" in read
    assert read.replace(" @", "@").count(_admin_of(house)) >= len(in_order)
    # What did not change is not listed, and a name of a signed-in look is none.
    assert "Points per day" not in read

    kept = json.dumps(_kept(house), default=str)
    for private in ("nobody may read", other_key, house.sandbox.rivo("northwind").key, ANA, "jane@", _admin_of(house)):
        assert private not in kept

    browser.submit("/oauth/disconnect", on=page)
    assert [row["what"] for row in _kept(house)][-1] == "account_disconnected"


def test_what_was_refused_is_no_change(small_house: House) -> None:
    browser, connection = small_house.connect()
    before = len(_kept(small_house))
    page = f"/connections/{connection.id}"
    browser.submit(f"{page}/settings", {**FORM, "max_points_per_award": "lots"}, on=page)
    browser.submit(f"{page}/lookup", {"email": ANA}, on=page)
    agent = small_house.browser()
    agent.sign_in(user_id=_agent_of(small_house))
    agent.submit(f"{page}/settings", FORM, on=page)
    assert len(_kept(small_house)) == before


def test_what_was_pressed_and_could_not_be_done_is_told_as_such(small_house: House) -> None:
    """Part of it may have reached Gorgias: it is written down all the same, with how it ended."""
    browser, connection = small_house.connect()
    page = f"/connections/{connection.id}"
    small_house.sandbox.faults.add(r"/api/integrations.*", kind="status", times=None)
    for button, what in (("repair", "placement_repaired"), ("switch-on", "integration_switched_on")):
        browser.submit(f"{page}/{button}", on=page)
        last = _kept(small_house)[-1]
        assert (last["what"], last["details"]) == (what, {"outcome": "gorgias_unreachable"})
    assert "Pressed Repair Outcome: gorgias unreachable" in text_of(browser.get("/connections/changes").text)


def test_the_page_lists_the_account_s_own_changes_and_older_ones_behind_a_link(small_house: House) -> None:
    browser, connection = small_house.connect("acme")
    stranger, _ = small_house.connect("globex")
    for _ in range(PAGE):
        _change(small_house, connection.account_id)
    first = browser.get("/connections/changes")
    assert "Connected the helpdesk" not in text_of(first.text)
    assert first.text.count("<time") == PAGE
    [link] = [part for part in first.text.split('"') if part.startswith("/connections/changes?before=")]
    assert "Connected the helpdesk" in text_of(browser.get(link).text)
    assert stranger.get("/connections/changes").text.count("<time") == 2
    assert small_house.browser().get("/connections/changes").url.endswith("/")
    for odd in ("0", "-1", "x", "9" * 30):
        assert browser.get(f"/connections/changes?before={odd}").text.count("<time") == PAGE


def test_changes_are_forgotten_after_400_days(house: House) -> None:
    _, connection = house.connect()
    house.clock.advance(CHANGES_KEPT / timedelta(seconds=1) - 60)
    _change(house, connection.account_id)
    house.services.jobs.sweep()
    assert len(_kept(house)) == 3
    house.clock.advance(120)
    house.services.jobs.sweep()
    assert [row["what"] for row in _kept(house)] == ["settings_saved"]


def _kept(house: House) -> list[dict[str, Any]]:
    with house.services.database.read() as tx:
        return [dict(row._mapping) for row in tx.execute(select(changes).order_by(changes.c.id))]


def _change(house: House, account_id: int) -> None:
    with house.services.database.write() as tx:
        tx.execute(
            changes.insert().values(
                account_id=account_id,
                at=house.clock(),
                who_sealed=house.services.sealer.seal("someone@acme.example"),
                what="settings_saved",
                details={},
            )
        )


def _admin_of(house: House) -> str:
    return str(house.sandbox.helpdesk("acme").users()[0]["email"])


def _agent_of(house: House) -> int:
    users = house.sandbox.helpdesk("acme").users()
    return int(next(user["id"] for user in users if user["role"]["name"] != "admin"))

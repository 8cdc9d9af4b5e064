"""The log of awards without JavaScript: find some by the keyboard, read one, undo it there, see the charts."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.steps import Visit, connect
from tests.house import House

MAYA = "maya.okafor@example.com"
BEN = "ben@acme.example"


def test_awards_are_found_read_undone_and_drawn_without_javascript(house: House, visit: Visit) -> None:
    page = visit(java_script_enabled=False)
    connect(page, house)
    connection = page.url
    (opened,) = house.services.connections.all()
    for ticket_id, (points, agent) in enumerate([(50, BEN), (20, ""), (5, BEN), (100, "")], start=1):
        asked = {"email": MAYA, "points": points, "agent_email": agent, "ticket_id": ticket_id}
        assert house.award(opened, asked).json()["status"] == "applied"

    page.goto(f"{connection}/activity")
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Agent’s e-mail").fill(BEN)
    page.keyboard.press("Enter")
    rows = page.get_by_role("row")
    expect(rows).to_have_count(3)
    expect(page.get_by_role("status")).to_have_text(f"Shown are awards by {BEN}.")
    expect(page.get_by_label("Agent’s e-mail")).to_have_value(BEN)
    assert "ben" not in page.url.partition("?")[2]

    rows.nth(1).get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Award of +5 points")
    expect(page.get_by_role("region", name="What happened")).to_contain_text("booked in the built-in ledger")
    page.get_by_role("button", name=re.compile("^Undo 5 points")).click()
    expect(page.get_by_role("status")).to_contain_text("Took back 5 points.")
    expect(page.get_by_role("heading", level=1)).to_have_text("Award of +5 points")
    expect(page.get_by_role("region", name="What is known")).to_contain_text("Undone")

    page.get_by_role("link", name="Activity", exact=True).click()
    page.get_by_role("link", name="Charts").click()
    expect(page.get_by_role("img", name="Points per day")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("3 awards, 170 points.")
    page.get_by_text("The same as a table").click()
    expect(page.get_by_role("table", name="Awards by day, newest first")).to_be_visible()
    page.get_by_role("link", name="not named").click()
    expect(rows).to_have_count(3)

"""What is wrong, as a merchant sees it, and its way out by keyboard alone."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.steps import Visit, assert_usable, connect
from tests.health.chat import running_chat
from tests.health.steps import switch_off
from tests.house import House


def test_trouble_is_seen_told_and_mended_on_the_pages(house: House, visit: Visit) -> None:
    page = visit()
    connect(page, house)
    address = page.url
    connection = house.services.connections.all()[0]
    switch_off(house, connection)
    page.goto(address)
    health = page.get_by_role("region", name="In Gorgias")
    expect(health.locator(".finding.bad")).to_contain_text("The HTTP integration is switched off in Gorgias.")
    expect(health.locator(".finding.bad")).to_contain_text(
        re.compile(r"Since 14 Mar 2026, 09:\d\d UTC\. Press “Switch")
    )
    assert_usable(page)
    page.goto(f"{house.url}/connections/")
    expect(page.get_by_role("listitem").filter(has_text="Not in order")).to_have_count(1)
    with running_chat() as chat:
        page.get_by_label("Address of the webhook").fill(chat.url)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Saved. A first notice has arrived at 127.0.0.1.")
        expect(page.get_by_label("Another address")).to_have_value("")
        assert "The HTTP integration is switched off in Gorgias." in chat.take()[0]
    page.get_by_text("Stop the notices…").click()
    assert_usable(page)
    page.goto(address)
    button = page.get_by_role("button", name="Switch on again")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("The HTTP integration is switched on again.")
    expect(button).to_have_count(0)
    expect(health.locator(".finding.good")).to_have_count(5)

"""The card's link to the award page, and the inspector, as people use them: without JavaScript and by keyboard."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.steps import (
    Visit,
    assert_usable,
    connect,
    field,
    keep_picture,
    open_ticket,
    reload_until,
    tab_to,
)
from tests.house import House

MAYA = "maya.okafor@example.com"


def test_an_agent_awards_from_the_cards_link_with_a_proven_identity(house: House, visit: Visit) -> None:
    admin = visit()
    connect(admin, house)
    connection = admin.url
    admin.get_by_label("Preset buttons").fill("25, 100")
    admin.get_by_label("Reasons an agent may choose").fill("Late parcel\nGoodwill")
    admin.get_by_role("button", name="Save").click()

    # Ben is signed in at the helpdesk, and nowhere else.
    desk = visit(java_script_enabled=False)
    desk.goto(f"{house.sandbox.url}/acme/app/tickets")
    desk.get_by_role("button", name="Ben").click()
    open_ticket(desk, house, "Maya Okafor")
    with desk.expect_popup() as opened:
        desk.get_by_role("link", name="Add points in Tallydesk").click()
    page = opened.value
    expect(page.get_by_role("heading", level=1)).to_have_text("Tallydesk wants to connect to acme")
    page.get_by_role("button", name="Allow").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Add points")
    expect(page.get_by_text(MAYA)).to_be_visible()
    expect(page.get_by_text("1,250", exact=True)).to_be_visible()
    assert "maya" not in page.url
    page.get_by_label("Reason").select_option("Late parcel")
    assert_usable(page)
    keep_picture("award", page)

    # What cannot be taken is said, and the rest is still there; Enter sends the form.
    page.get_by_label("Points", exact=True).fill("1001")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("1,001 points are too many for one award")
    expect(page.get_by_label("Reason")).to_have_value("Late parcel")
    page.get_by_label("Points", exact=True).fill("50")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Added 50 points. New balance: 1,300 points.")
    assert_usable(page)
    page.reload()
    expect(page.get_by_role("status")).to_have_text("Added 50 points. New balance: 1,300 points.")
    page.go_back()
    expect(page.get_by_role("status")).to_have_text("Added 50 points. New balance: 1,300 points.")

    # One more on purpose, by a preset and the keyboard alone.
    page.get_by_role("link", name="Add more for this customer").click()
    preset = page.get_by_role("button", name="Add 25 points")
    tab_to(page, preset)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Added 25 points. New balance: 1,325 points.")
    page.get_by_role("link", name=re.compile("^Back to ticket")).click()
    reload_until(page, page.locator(".message.note").filter(has_text="ben@acme.example added 25 points"))
    reload_until(page, field(page, "points_balance").filter(has_text="1325"))
    admin.goto(connection)
    admin.get_by_role("link", name="All activity").click()
    expect(admin.get_by_role("row").nth(1)).to_contain_text("ben@acme.example")
    expect(admin.get_by_role("row").nth(1)).to_contain_text("signed in")

    # From a customer's page there is no ticket; a link without a customer asks for one.
    page.goto(connection.partition("#")[0] + "/award?award_key={{award_key}}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Which customer?")
    assert_usable(page)
    page.get_by_label("Customer’s e-mail").fill(MAYA)
    page.get_by_role("button", name="Find the customer").click()
    expect(page.get_by_text("No ticket came with the link")).to_be_visible()


def test_a_merchant_watches_what_gorgias_asks_and_finds_help_where_it_is_needed(house: House, visit: Visit) -> None:
    page = visit(java_script_enabled=False)
    connect(page, house)
    connection = page.url
    questions = page.locator("details.help summary")
    expect(questions).to_have_count(6)
    for number in range(6):
        questions.nth(number).click()
    assert_usable(page)
    page.get_by_role("link", name="Watch what Gorgias asks", exact=True).click()
    page.get_by_role("button", name="Watch what Gorgias asks (10 minutes)").click()
    expect(page.get_by_role("status").first).to_contain_text("What Gorgias asks is recorded for ten minutes.")
    helpdesk = house.sandbox.helpdesk("acme")
    for name, email in (("Chat visitor", None), ("Stranger", "stranger@example.net"), ("Maya", MAYA)):
        known = [found for found in helpdesk.customers() if found["email"] == email and email]
        customer = known[0] if known else helpdesk.create_customer(name, email)
        helpdesk.create_ticket(customer["id"], "Hello", "Is anybody there?")
        house.sandbox.settle()
    house.services.inspector.settle(10)
    page.get_by_role("link", name="Reload").click()
    rows = page.get_by_role("row")
    expect(rows).to_have_count(4)
    expect(rows.nth(1)).to_contain_text("Gorgias asked for m…@e….com: a member.")
    expect(rows.nth(2)).to_contain_text("s…@e….net, who is not in the loyalty program")
    expect(rows.nth(3)).to_contain_text("without an e-mail address")
    assert_usable(page)
    keep_picture("inspector", page)
    assert connection.partition("#")[0] in page.url

"""The main job, as people do it: connect, see loyalty beside the ticket, award, undo, repair, disconnect."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.steps import (
    Visit,
    add_earnings,
    connect,
    field,
    keep_picture,
    open_ticket,
    reload_until,
    settings_page,
    sign_in,
    tab_to,
)
from tests.house import House

MACRO = "Loyalty summary (Tallydesk 1)"


def test_from_the_first_visit_to_points_beside_the_ticket_and_back(house: House, visit: Visit) -> None:
    page = visit(device_scale_factor=1.5, reduced_motion="reduce")
    page.goto(house.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Loyalty, beside the ticket")
    keep_picture("connect", page, height=740)

    # What people paste is taken as well as the bare name.
    sign_in(page, house, f"https://acme.gorgias.com/app/tickets?from={house.url}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Tallydesk wants to connect to acme")
    page.get_by_role("button", name="Allow").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Choose the loyalty program")
    page.get_by_role("button", name="Use this program").click()

    # The connection proves itself: what is in Gorgias, under which ids, and a lookup that goes the whole way.
    helpdesk = house.sandbox.helpdesk("acme")
    integration_id = helpdesk.integrations()[0]["id"]
    widget_ids = [widget["id"] for widget in helpdesk.widgets()]
    macro_id = helpdesk.macros()[0]["id"]
    health = page.get_by_role("region", name="In Gorgias")
    expect(page.get_by_role("status")).to_have_text("Connected. Everything is in place in Gorgias.")
    expect(health.locator(".finding.good")).to_have_count(5)
    for object_id in (integration_id, *widget_ids, macro_id):
        expect(health.get_by_text(str(object_id), exact=True)).to_be_visible()
    page.get_by_label("Customer's e-mail").fill("maya.okafor@example.com")
    page.get_by_role("button", name="Look up").click()
    found = page.get_by_role("region", name="Try a lookup").get_by_role("status")
    for shown in ("Member", "1250", "Gold", "2640", f"{house.url}/r/"):
        expect(found).to_contain_text(shown)
    assert "maya" not in page.url.lower()
    variable = page.get_by_label("Points balance", exact=True)
    expect(variable).to_have_value(f"{{{{ticket.customer.integrations[{integration_id}].points_balance}}}}")
    page.evaluate("scrollTo(0, 0)")
    keep_picture("connection", page)
    page.emulate_media(color_scheme="dark")
    keep_picture("connection-dark", page)
    page.emulate_media(color_scheme="light")
    connection = page.url.partition("#")[0]

    # The card stands beside the ticket.
    open_ticket(page, house, "Maya Okafor")
    for path, shown in (
        ("loyalty_status", "Member"),
        ("points_balance", "1250"),
        ("vip_tier_name", "Gold"),
        ("lifetime_points", "2640"),
    ):
        expect(field(page, path)).to_have_text(shown)
    expect(field(page, "referral_url").get_by_role("link")).to_have_attribute("href", re.compile(r"/r/[a-z0-9]+$"))

    # An award: the answer is one sentence, and balance and note come by themselves.
    page.evaluate("window.loadedOnce = true")
    add_earnings(page, 50, reason="Late parcel")
    expect(page.locator("#outcome")).to_contain_text("Added 50 points. New balance: 1,300 points.")
    expect(field(page, "points_balance")).to_have_text("1300")
    expect(field(page, "lifetime_points")).to_have_text("2690")
    note = page.locator(".message.note")
    expect(note).to_have_count(1)
    expect(note).to_contain_text("added 50 points. New balance: 1,300 points.")
    expect(note).to_contain_text("Reason: Late parcel")
    assert page.evaluate("window.loadedOnce") is True
    keep_picture("sidebar", page)
    page.emulate_media(color_scheme="dark")
    keep_picture("sidebar-dark", page)
    page.emulate_media(color_scheme="light")

    # The macro says this customer's four values.
    page.get_by_label("Macro").select_option(label=MACRO)
    page.get_by_role("button", name="Insert").click()
    referral = field(page, "referral_url").inner_text()
    reply = page.get_by_label("Message")
    expect(reply).to_have_value(re.compile(r"^Hi Maya,.*1300 points, status Member, VIP tier Gold\.", re.DOTALL))
    expect(reply).to_have_value(re.compile(re.escape(referral)))

    # What happened is on the activity page, under the operation id that the note names, and can be taken back.
    console = page.context.new_page()
    console.goto(connection)
    console.get_by_role("link", name="All activity").click()
    operation_id = re.search(r"Operation: (td_\w+)", note.inner_text())
    assert operation_id is not None
    row = console.get_by_role("row").filter(has_text=operation_id[1])
    for shown in ("+50", "balance 1,300", "maya.okafor@example.com", "ada@acme.example", "Late parcel", "applied"):
        expect(row).to_contain_text(shown)
    row.get_by_role("button", name="Undo 50 points for maya.okafor@example.com").click()
    expect(console.get_by_role("status")).to_have_text("Took back 50 points. New balance: 1,250 points.")
    expect(console.locator(f"[id={operation_id[1]}]")).to_contain_text("undone by")
    expect(console.get_by_role("button", name="Undo")).to_have_count(0)
    expect(field(page, "points_balance")).to_have_text("1250")
    expect(page.locator(".message.note")).to_have_count(2)
    expect(page.locator(".message.note").last).to_contain_text("took back 50 points. New balance: 1,250 points.")
    assert page.evaluate("window.loadedOnce") is True

    add_earnings(page, 120, reason="Goodwill")
    expect(field(page, "points_balance")).to_have_text("1370")
    expect(page.locator(".message.note")).to_have_count(3)
    console.reload()
    expect(console.get_by_role("row")).to_have_count(4)
    expect(console.get_by_text("note on the ticket")).to_have_count(3)
    keep_picture("activity", console, height=780)
    # The ticket is one click away from the award, and the connection from the card.
    console.get_by_role("link", name=re.compile("^ticket ")).first.click()
    expect(console.get_by_role("heading", level=1)).to_have_text("Where is my order?")
    expect(page.get_by_role("link", name="Activity in Tallydesk")).to_have_attribute("href", f"{connection}/activity")


def test_a_merchant_sets_up_repairs_replaces_keys_and_leaves_without_a_trace(house: House, visit: Visit) -> None:
    page = visit(device_scale_factor=1.5, reduced_motion="reduce")
    connect(page, house)
    connection = page.url

    # Faults are said where the form is, and what was typed is still there.
    page.get_by_label("Points per award").fill("lots")
    page.get_by_label("Preset buttons").fill("25; 100, x")
    page.get_by_label("Reasons an agent may choose").fill("Late parcel\nGoodwill")
    page.get_by_label("Guests may receive points").check()
    page.get_by_role("button", name="Save").click()
    faults = page.get_by_role("region", name="Settings").get_by_role("alert")
    expect(faults).to_contain_text("Nothing was saved.")
    expect(faults.get_by_role("listitem")).to_have_text(
        [
            "Points per award must be a whole number from 1 to 2,000,000,000.",
            "Presets: up to 6 different whole numbers such as 50, 100.",
        ]
    )
    expect(faults).to_be_in_viewport()
    expect(page.get_by_label("Points per award")).to_have_value("lots")
    expect(page.get_by_label("Reasons an agent may choose")).to_have_value("Late parcel\nGoodwill")
    expect(page.get_by_label("Guests may receive points")).to_be_checked()
    page.reload()
    expect(page.get_by_label("Points per award")).to_have_value("1000")
    expect(page.get_by_label("Guests may receive points")).not_to_be_checked()

    page.get_by_label("Points per award").fill("500")
    page.get_by_label("Preset buttons").fill("25, 100")
    page.get_by_label("Reasons an agent may choose").fill("Late parcel\nGoodwill")
    page.get_by_label("Guests may receive points").check()
    page.get_by_label("Show the date of birth").check()
    page.get_by_label("Shop address").fill("https://shop.example.com/")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("Saved.")
    keep_picture("settings", page.get_by_role("region", name="Settings"))

    # The card follows: presets need no dialog, reasons are a choice, the limit holds, guests receive.
    open_ticket(page, house, "Maya Okafor")
    expect(field(page, "date_of_birth")).to_have_text("1990-04-12")
    page.get_by_role("button", name="Add 100 points").click()
    expect(field(page, "points_balance")).to_have_text("1350")
    page.get_by_role("button", name="Add Earnings").click()
    page.get_by_label("Points", exact=True).fill("501")
    page.get_by_label("Reason").select_option("Goodwill")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#outcome .bad")).to_contain_text("500")
    expect(page.locator("#outcome .bad")).to_contain_text("Nothing was added.")
    open_ticket(page, house, "Omar Haddad")
    expect(field(page, "loyalty_status")).to_have_text("Guest")
    page.get_by_role("button", name="Add 25 points").click()
    expect(field(page, "points_balance")).to_have_text("25")

    # Somebody deletes the tickets' card and switches the integration off; one press puts both back.
    settings_page(page, house)
    page.get_by_role("button", name="Disable").click()
    row = page.get_by_role("row").filter(has_text="tickets")
    row.get_by_role("button", name=re.compile("^Delete widget")).click()
    expect(row).to_have_count(0)
    page.goto(connection)
    health = page.get_by_role("region", name="In Gorgias")
    expect(health.locator(".finding.bad")).to_have_text(
        [
            re.compile("The HTTP integration is switched off in Gorgias. Since .* Press “Switch on again”."),
            re.compile("The card for tickets is missing in Gorgias. Since .* Press Repair."),
        ]
    )
    page.get_by_role("button", name="Repair").click()
    expect(page.get_by_role("status")).to_contain_text("Repaired.")
    expect(health.locator(".finding.good")).to_have_count(5)

    # New keys: the card still comes, and its buttons still award.
    page.get_by_role("button", name="Replace keys").click()
    expect(page.get_by_role("status")).to_contain_text("New keys are in place and the old ones have ended.")
    open_ticket(page, house, "Liam Novak")
    expect(field(page, "points_balance")).to_have_text("120")
    page.get_by_role("button", name="Add 25 points").click()
    expect(field(page, "points_balance")).to_have_text("145")

    # And out: nothing of ours stays in the helpdesk, while members and points are kept.
    page.goto(connection)
    page.get_by_text("Disconnect…").click()
    page.get_by_role("button", name="Disconnect acme now").click()
    expect(page.get_by_role("status").filter(has_text="acme is disconnected.")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    helpdesk = house.sandbox.helpdesk("acme")
    assert (helpdesk.integrations(), helpdesk.widgets(), helpdesk.macros()) == ([], [], [])
    page.goto(connection)
    expect(page.get_by_role("heading", level=1)).to_have_text("Loyalty, beside the ticket")
    open_ticket(page, house, "Liam Novak")
    expect(page.locator("#sidebar .card")).to_have_count(0)
    connect(page, house, user="")
    open_ticket(page, house, "Liam Novak")
    expect(field(page, "points_balance")).to_have_text("145")


def test_the_walk_without_javascript(house: House, visit: Visit) -> None:
    page = visit(java_script_enabled=False)
    connect(page, house)
    connection = page.url
    page.get_by_label("Customer's e-mail").fill("sofia.reyes@example.com")
    page.get_by_role("button", name="Look up").click()
    expect(page.get_by_role("region", name="Try a lookup").get_by_role("status")).to_contain_text("Platinum")

    open_ticket(page, house, "Sofia Reyes")
    expect(field(page, "points_balance")).to_have_text("8800")
    add_earnings(page, 50, reason="Goodwill <b>&amp;</b>")
    expect(page.locator("#outcome")).to_contain_text("Added 50 points. New balance: 8,850 points.")
    reload_until(page, page.locator(".message.note").filter(has_text="Reason: Goodwill <b>&amp;</b>"))
    expect(field(page, "points_balance")).to_have_text("8850")
    page.get_by_label("Macro").select_option(label=MACRO)
    page.get_by_role("button", name="Insert").click()
    expect(page.get_by_label("Message")).to_have_value(re.compile("8850 points, status Member, VIP tier Platinum"))

    page.goto(connection)
    page.get_by_role("link", name="All activity").click()
    expect(page.get_by_role("row").last).to_contain_text("Goodwill <b>&amp;</b>")
    page.get_by_role("button", name="Undo 50 points").click()
    expect(page.get_by_role("status")).to_have_text("Took back 50 points. New balance: 8,800 points.")
    page.goto(connection)
    page.get_by_role("button", name="Repair").click()
    expect(page.get_by_role("status")).to_contain_text("Repaired.")
    page.get_by_text("Disconnect…").click()
    page.get_by_role("button", name="Disconnect acme now").click()
    expect(page.get_by_role("status").filter(has_text="acme is disconnected.")).to_be_visible()


def test_the_walk_with_the_keyboard_alone(house: House, visit: Visit) -> None:
    page = visit()
    page.goto(house.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("Your Gorgias account"))
    page.keyboard.type("acme")
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Ada"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Allow"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Use this program"))
    page.keyboard.press("Space")
    tab_to(page, page.get_by_label("Customer's e-mail"))
    page.keyboard.type("noah.fischer@example.org")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Try a lookup").get_by_role("status")).to_contain_text("Silver")

    page.goto(f"{house.sandbox.url}/acme/app/tickets")
    tab_to(page, page.get_by_role("row").filter(has_text="Noah Fischer").get_by_role("link").first)
    page.keyboard.press("Enter")
    expect(field(page, "points_balance")).to_have_text("510")
    tab_to(page, page.get_by_role("button", name="Add Earnings"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Points", exact=True)).to_be_focused()
    page.keyboard.type("50")
    page.keyboard.press("Enter")
    expect(field(page, "points_balance")).to_have_text("560")

    page.goto(f"{house.url}/connections/1/activity")
    tab_to(page, page.get_by_role("button", name="Undo 50 points"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Took back 50 points. New balance: 510 points.")
    page.goto(f"{house.url}/connections/1")
    tab_to(page, page.get_by_text("Disconnect…"))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Disconnect acme now"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="acme is disconnected.")).to_be_visible()


def test_a_double_click_on_submit_awards_once(house: House, visit: Visit) -> None:
    page = visit()
    connect(page, house)
    open_ticket(page, house, "Maya Okafor")
    page.get_by_role("button", name="Add Earnings").click()
    page.get_by_label("Points", exact=True).fill("50")
    page.get_by_role("button", name="Submit").dblclick()
    # Both clicks reached us: the helpdesk's history has them both.
    expect(page.get_by_text("ran an action of a card: status 200")).to_have_count(2)
    expect(page.locator(".message.note")).to_have_count(1)
    expect(field(page, "points_balance")).to_have_text("1300")
    page.goto(f"{house.url}/connections/1/activity")
    expect(page.get_by_text("maya.okafor@example.com")).to_have_count(1)


def test_starting_from_the_helpdesks_app_store_and_awarding_on_the_customers_page(house: House, visit: Visit) -> None:
    page = visit()
    page.goto(f"{house.sandbox.url}/acme/app/apps")
    page.get_by_role("button", name="Ada").click()
    page.get_by_role("link", name="App store").click()
    page.get_by_role("link", name="Install", exact=True).click()
    page.get_by_role("button", name="Allow").click()
    page.get_by_role("button", name="Use this program").click()
    expect(page.get_by_role("status")).to_contain_text("Everything is in place")
    open_ticket(page, house, "Grace Chen")
    expect(field(page, "points_balance")).to_have_text("15200")
    page.locator("#sidebar").get_by_role("link", name="Grace Chen").click()
    expect(field(page, "points_balance")).to_have_text("15200")
    add_earnings(page, 10)
    expect(page.locator("#outcome")).to_contain_text("Added 10 points. New balance: 15,210 points.")


def test_who_is_no_member_has_a_card_that_says_so_and_gets_no_points(house: House, visit: Visit) -> None:
    page = visit()
    connect(page, house)
    for customer in ("Nora Stranger", "Website visitor"):
        open_ticket(page, house, customer)
        expect(field(page, "loyalty_status")).to_have_text("Customer not found")
        expect(field(page, "points_balance")).to_have_text("")
        add_earnings(page, 50)
        expect(page.locator("#outcome .bad")).to_contain_text("Nothing was added.")
    open_ticket(page, house, "Victor Hale")
    expect(field(page, "loyalty_status")).to_have_text("Excluded")
    add_earnings(page, 50)
    expect(page.locator("#outcome .bad")).to_contain_text("Nothing was added.")
    page.goto(f"{house.url}/connections/1/activity")
    expect(page.get_by_text("No awards yet.")).to_be_visible()

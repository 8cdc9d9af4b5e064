"""Every page of the console: who may do what on it, what it says when it refuses, and whether everybody can use it."""

from __future__ import annotations

import re

from playwright.sync_api import Page, Request, Response, expect
from sqlalchemy import text

from tests.browser.steps import (
    Visit,
    add_earnings,
    complaints,
    connect,
    field,
    open_ticket,
    settings_page,
    sign_in,
)
from tests.house import House

HOUR_S = 3600


def test_every_page_can_be_used_by_everybody(house: House, visit: Visit) -> None:
    """Landmarks, headings, labels, contrast in light and dark, no sideways scrolling on the smallest phone."""
    page = visit()

    def look(title: str) -> None:
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        assert page.title() != "Tallydesk"
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            for width in (1280, 360):
                page.set_viewport_size({"width": width, "height": 800})
                assert complaints(page) == [], f"{title}, {scheme}, {width} pixels wide"
        page.set_viewport_size({"width": 1280, "height": 800})

    page.goto(house.url)
    look("Loyalty, beside the ticket")
    _every_focus_is_visible(page)
    page.goto(f"{house.url}/oauth/install?account=not%20an%20account")
    look("That is not a Gorgias account")
    page.goto(f"{house.url}/oauth/callback?state=made-up")
    look("This browser did not start the connection")
    page.goto(f"{house.url}/nothing")
    look("There is nothing here")
    sign_in(page, house)
    page.get_by_role("button", name="Deny").click()
    look("You did not allow the connection")
    sign_in(page, house, user="")
    page.get_by_role("button", name="Allow").click()
    look("Choose the loyalty program")
    page.get_by_role("button", name="Use this program").click()
    look("acme shows the built-in ledger")
    connection = page.url
    page.goto(f"{connection}/activity")
    look("Activity")
    for email in (" Maya.Okafor@EXAMPLE.com ", "nobody@example.com"):
        page.goto(connection)
        page.get_by_label("Customer's e-mail").fill(email)
        page.get_by_role("button", name="Look up").click()
        look("acme shows the built-in ledger")
    open_ticket(page, house, "Maya Okafor")
    referral = field(page, "referral_url").inner_text()
    for points, reason in ((50, "Late parcel"), (1000, "A reason so long that it fills its column more than once")):
        add_earnings(page, points, reason=reason)
        expect(page.locator("#outcome")).to_contain_text(f"Added {points:,} points")
        expect(page.locator(".message.note").filter(has_text=f"added {points:,} points")).to_be_visible()
    page.goto(f"{connection}/activity")
    page.get_by_role("button", name="Undo 50 points").click()
    look("Activity")
    _every_focus_is_visible(page)
    settings_page(page, house)
    page.get_by_role("button", name=re.compile("^Delete widget")).first.click()
    page.goto(connection)
    page.get_by_label("Preset buttons").fill("x")
    page.get_by_text("Disconnect…").click()
    look("acme shows the built-in ledger")
    page.get_by_role("button", name="Save").click()
    look("acme shows the built-in ledger")
    _every_focus_is_visible(page)
    page.goto(f"{house.url}/connections/")
    look("Connections of acme")
    page.goto(house.url)
    expect(page.get_by_role("link", name="Go to your connections")).to_be_visible()
    look("Loyalty, beside the ticket")
    page.goto(referral)
    look("You were invited")

    # The helpdesk took our access away: seen once the tokens of the day have ended.
    house.clock.advance(20 * HOUR_S)
    sign_in(page, house, user="")
    expect(page.get_by_role("heading", level=1)).to_have_text("Connections of acme")
    house.sandbox.helpdesk("acme").uninstall()
    house.clock.advance(5 * HOUR_S)
    page.goto(connection)
    expect(page.get_by_role("alert").filter(has_text="no longer accepts our access").first).to_be_visible()
    look("acme shows the built-in ledger")
    page.goto(f"{house.url}/connections/")
    look("Connections of acme")
    page.get_by_role("button", name="Connect again").click()
    page.get_by_role("button", name="Allow").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Connections of acme")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_agent_may_look_and_not_change(house: House, visit: Visit) -> None:
    admin = visit()
    connect(admin, house)
    connection = admin.url
    page = visit()
    sign_in(page, house, user="Ben")
    # Somebody who only signs in is asked for nothing that could change the helpdesk.
    expect(page.get_by_role("listitem")).to_have_text(["Know who you are", "See your e-mail address", "See your name"])
    page.get_by_role("button", name="Allow").click()
    expect(page.get_by_role("banner")).to_contain_text("may look, not change")
    expect(page.get_by_role("link", name="Add another store")).to_have_count(0)
    page.get_by_role("link", name="Built-in ledger").click()
    expect(page.get_by_role("region", name="In Gorgias").locator(".finding.good")).to_have_count(5)
    for name in ("Repair", "Save", "Replace keys", "Disconnect acme now"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.get_by_label("Points per award")).to_be_disabled()
    page.get_by_label("Customer's e-mail").fill("maya.okafor@example.com")
    page.get_by_role("button", name="Look up").click()
    expect(page.get_by_role("region", name="Try a lookup").get_by_role("status")).to_contain_text("1250")
    assert complaints(page) == []
    settings_page(admin, house)
    admin.get_by_role("button", name=re.compile("^Delete widget")).first.click()
    page.goto(connection)
    expect(page.locator(".finding.bad")).to_contain_text("A helpdesk admin can repair it here.")
    page.goto(f"{house.url}/connections/new")
    expect(page.get_by_role("alert")).to_contain_text("Only a helpdesk admin can choose the program.")
    assert complaints(page) == []
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_have_text("You are signed out.")

    # An admin who is none any more has the buttons still, and within a quarter of an hour no use of them.
    helpdesk = house.sandbox.helpdesk("acme")
    helpdesk.set_role(helpdesk.users()[0]["id"], "agent")
    house.clock.advance(16 * 60)
    admin.goto(connection)
    admin.get_by_role("button", name="Replace keys").click()
    expect(admin.get_by_role("heading", level=1)).to_have_text("Only a helpdesk admin can change this")
    assert complaints(admin) == []


def test_refusals_say_what_to_do_and_a_way_on_is_at_hand(house: House, visit: Visit) -> None:
    page = visit()
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer) if answer.request.is_navigation_request() else None)

    def refused(title: str, status: int) -> None:
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        assert answers[-1].status == status
        expect(page.get_by_label("Your Gorgias account")).to_be_visible()

    # A name that is none: what was typed is there to be mended.
    for typed in ("not an account", "acme.example.com", "https://gorgias.com.evil.example/", "a" * 64):
        page.goto(house.url)
        page.get_by_label("Your Gorgias account").fill(typed)
        page.get_by_role("button", name="Connect").click()
        refused("That is not a Gorgias account", 400)
        expect(page.get_by_label("Your Gorgias account")).to_have_value(typed)

    # An account that Gorgias does not know: nothing comes back, and nothing is connected.
    page.get_by_label("Your Gorgias account").fill("unheard-of")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text("That is not a Gorgias account")
    assert page.url.startswith(f"{house.sandbox.url}/unheard-of/oauth/authorize")
    assert answers[-1].status == 404

    # Denied; then somebody who is no admin; then an address that was used already, and one from elsewhere.
    returned: list[str] = []

    def note(request: Request) -> None:
        if "/oauth/callback?" in request.url:
            returned.append(request.url)

    page.on("request", note)
    sign_in(page, house)
    page.get_by_role("button", name="Deny").click()
    refused("You did not allow the connection", 403)
    page.goto(returned[-1])
    refused("This link was used already or is too old", 400)
    stranger = visit()
    stranger.goto(returned[-1])
    expect(stranger.get_by_role("heading", level=1)).to_have_text("This browser did not start the connection")
    agent = visit()
    sign_in(agent, house, user="Ben")
    agent.get_by_role("button", name="Allow").click()
    expect(agent.get_by_role("heading", level=1)).to_have_text("A helpdesk admin has to do this")
    assert house.services.accounts.named("acme") is None
    assert house.sandbox.helpdesk("acme").integrations() == []

    # The way on that the page offers works.
    page.get_by_label("Your Gorgias account").fill("acme")
    page.get_by_role("button", name="Connect").click()
    page.get_by_role("button", name="Allow").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Choose the loyalty program")
    page.get_by_role("button", name="Use this program").click()
    connection = page.url

    # Another account's connection is not there for anybody else.
    other = visit()
    sign_in(other, house, "globex")
    other.get_by_role("button", name="Allow").click()
    other.goto(connection)
    expect(other.get_by_role("heading", level=1)).to_have_text("There is nothing here")
    other.get_by_role("link", name="Go to the start").click()
    expect(other.get_by_role("heading", level=1)).to_have_text("Choose the loyalty program")

    # Somebody sees a form, and is signed out before pressing it.
    second = page.context.new_page()
    second.goto(connection)
    page.get_by_role("button", name="Sign out").click()
    second.get_by_role("button", name="Repair").click()
    expect(second.get_by_role("alert")).to_contain_text("Your session has ended. Sign in and try again")


def test_trouble_with_the_database_is_a_page_not_a_crash(house: House, visit: Visit) -> None:
    page = visit()
    connect(page, house)
    with house.services.database.write() as tx:
        tx.execute(text("ALTER TABLE accounts RENAME TO accounts_away"))
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Something went wrong here")
    expect(page.get_by_role("link", name="Tallydesk")).to_be_visible()
    assert complaints(page) == []


def _every_focus_is_visible(page: Page) -> None:
    """Tab through the whole page: each stop shows an outline, and the focus is never trapped."""
    page.evaluate("document.activeElement.blur()")
    stops = page.locator("a[href], button:enabled, input:enabled:not([type=hidden]), textarea:enabled, summary").count()
    for _ in range(stops + 5):
        page.keyboard.press("Tab")
        at = page.evaluate(
            "[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle, "
            "document.activeElement.getBoundingClientRect().width]"
        )
        if at[0] == "BODY":
            return
        assert at[1] == "solid", at
        assert at[2] > 0, at
    raise AssertionError("the focus does not leave the page")

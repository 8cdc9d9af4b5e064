"""Two pages to read: what was changed, and what programs may call; for everybody, on every screen."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.steps import Visit, complaints, connect
from tests.house import House


def test_what_was_changed_and_what_programs_may_call_can_be_read_by_everybody(house: House, visit: Visit) -> None:
    page = visit()
    connect(page, house)
    connection = page.url
    page.get_by_label("Points per award").fill("500")
    page.get_by_role("button", name="Save").click()
    page.goto(f"{house.url}/connections/")
    page.get_by_role("link", name="Changes").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Changes")
    expect(page.get_by_role("row").nth(1)).to_contain_text("Points per award: 1,000 → 500")
    _check(page)
    page.get_by_role("link", name="Connection 1").first.click()
    expect(page).to_have_url(connection.partition("#")[0])

    page.goto(house.url)
    page.get_by_role("link", name="the API").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("API")
    _check(page)
    page.get_by_role("link", name="Card", exact=True).first.click()
    expect(page.locator("#Card")).to_be_in_viewport()


def _check(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 800})
            assert complaints(page) == [], f"{page.title()}, {scheme}, {width} pixels wide"
    page.set_viewport_size({"width": 1280, "height": 800})

"""What a person does, step by step, and the pictures that the documentation uses."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from playwright.sync_api import FloatRect, Locator, Page, expect

from tests.databases import Clock
from tests.house import House

CHECK = (Path(__file__).parent / "accessibility.js").read_text(encoding="utf-8")
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


class RunningClock(Clock):
    """A clock that begins where every test begins and then goes on by itself, as pages in a browser expect."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()

    def __call__(self) -> datetime:
        return super().__call__() + timedelta(seconds=time.monotonic() - self._started)


class Visit(Protocol):
    """Opens a page in a browser of its own; takes the options of Playwright's new_context."""

    def __call__(self, **options: Any) -> Page: ...


def keep_picture(name: str, seen: Page | Locator, *, height: int = 860) -> None:
    """Write docs/images/NAME.png, but only when UPDATE_SCREENSHOTS is set: an ordinary run leaves the tree alone.

    Of a page the first `height` pixels of what is seen, of a part of a page all of it. Call `assert_usable` before:
    taking a picture leaves inline styles in the page.
    """
    if not os.environ.get("UPDATE_SCREENSHOTS"):
        return
    path = IMAGES / f"{name}.png"
    if isinstance(seen, Page):
        clip: FloatRect = {"x": 0, "y": 0, "width": 1280, "height": height}
        seen.screenshot(path=path, animations="disabled", clip=clip)
    else:
        seen.screenshot(path=path, animations="disabled")


def sign_in(page: Page, house: House, account: str = "acme", *, user: str = "Ada") -> None:
    """From the landing page through Gorgias' sign-in, unless `user` is empty: then the browser is signed in there."""
    page.goto(house.url)
    page.get_by_label("Your Gorgias account").fill(account)
    page.get_by_role("button", name="Connect").click()
    if user:
        page.get_by_role("button", name=user).click()


def connect(page: Page, house: House, account: str = "acme", *, user: str = "Ada") -> None:
    """Connect `account` as its admin and choose the built-in ledger; ends on the connection's page."""
    sign_in(page, house, account, user=user)
    page.get_by_role("button", name="Allow").click()
    page.get_by_role("button", name="Use this program").click()
    expect(page.get_by_text("Everything is in place in Gorgias.")).to_be_visible()


def connect_rivo(page: Page, house: House, *, user: str = "Ada") -> None:
    """Connect acme as its admin and choose Rivo with the key of the sandbox's store northwind."""
    sign_in(page, house, user=user)
    page.get_by_role("button", name="Allow").click()
    page.get_by_role("radio", name="Rivo").check()
    page.get_by_label("REST API key of the Rivo store").fill(house.sandbox.rivo("northwind").key)
    page.get_by_role("button", name="Use this program").click()
    expect(page.get_by_text("Everything is in place in Gorgias.")).to_be_visible()


def complaints(page: Page) -> list[str]:
    """What the page does wrong for people who hear it, tab through it, enlarge it or see little contrast."""
    page.wait_for_load_state()  # the style sheet may come after the text
    found: list[str] = page.evaluate(CHECK)
    return found


def assert_usable(page: Page) -> None:
    """No complaints in light and dark, on a desk and on the smallest phone."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 860})
            found = complaints(page)
            assert found == [], f"{page.title()}, {scheme}, {width} pixels wide: {found}"
    page.set_viewport_size({"width": 1280, "height": 860})
    page.emulate_media(color_scheme="light")


def open_ticket(page: Page, house: House, customer: str, account: str = "acme") -> None:
    """Open the ticket of `customer` in the helpdesk, by way of its list."""
    page.goto(f"{house.sandbox.url}/{account}/app/tickets")
    row = page.get_by_role("row").filter(has_text=customer)
    row.get_by_role("link").first.click()


def field(page: Page, path: str) -> Locator:
    """What the card in the sidebar shows for one of the answer's keys."""
    return page.locator(f'#sidebar .card:not(.nested) > dl > .field[data-path="{path}"] dd')


def add_earnings(page: Page, points: int | str, *, reason: str = "") -> None:
    """Press Add Earnings, fill in what it asks for, submit."""
    page.get_by_role("button", name="Add Earnings").click()
    page.get_by_label("Points", exact=True).locator("visible=true").fill(str(points))
    if reason:
        page.get_by_label("Reason").locator("visible=true").fill(reason)
    page.get_by_role("button", name="Submit").locator("visible=true").click()


def settings_page(page: Page, house: House, account: str = "acme") -> None:
    """The helpdesk's settings, where its integrations and widgets can be deleted."""
    page.goto(f"{house.sandbox.url}/{account}/app/settings/integrations")


def reload_until(page: Page, seen: Locator) -> None:
    """Where nothing comes by itself: reload the page until it is there, at most a hundred times."""
    for _ in range(100):
        if seen.count():
            break
        page.reload()
    expect(seen).to_be_visible()


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until `target` has the focus, which must be visible there."""
    expect(target).to_be_visible()
    for _ in range(120):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            break
    expect(target).to_be_focused()
    expect(target).to_have_css("outline-style", "solid")

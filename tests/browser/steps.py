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


def keep_picture(name: str, page: Page, *, height: int = 860) -> None:
    """Write docs/images/NAME.png, the first `height` pixels of what is seen, but only when UPDATE_SCREENSHOTS is set:
    an ordinary run leaves the tree alone."""
    if os.environ.get("UPDATE_SCREENSHOTS"):
        clip: FloatRect = {"x": 0, "y": 0, "width": 1280, "height": height}
        page.screenshot(path=IMAGES / f"{name}.png", animations="disabled", clip=clip)


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
    page.get_by_label("Points", exact=True).fill(str(points))
    if reason:
        page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name="Submit").click()


def settings_page(page: Page, house: House, account: str = "acme") -> None:
    """The helpdesk's settings, where its integrations and widgets can be deleted."""
    page.goto(f"{house.sandbox.url}/{account}/app/settings/integrations")


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until `target` has the focus, which must be visible there."""
    expect(target).to_be_visible()
    for _ in range(120):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            break
    expect(target).to_be_focused()
    expect(target).to_have_css("outline-style", "solid")

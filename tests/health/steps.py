"""What the tests of health do again and again."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from tests.house import Browser, House
from troubles import Trouble
from widget.connections import Connection

DAY_S = 24 * 3600


def probed(house: House, *, after_s: float = DAY_S + 60) -> list[Any]:
    """Let a day pass, sweep and run what is due; the lines about health that were logged."""
    house.clock.advance(after_s)
    with capture_logs() as lines:
        house.services.jobs.sweep()
        house.work()
    return [(line["outcome"], line["finding"], line.get("connection")) for line in lines if line["event"] == "health"]


def troubles_of(house: House, account: str = "acme") -> dict[str, Trouble]:
    """What is known to be wrong with the account, by the finding's id."""
    known = house.services.accounts.named(account)
    assert known is not None
    return {trouble.finding: trouble for trouble in house.services.troubles.of_account(known.id)}


def switch_off(house: House, connection: Connection) -> None:
    """What Gorgias does after a hundred failures in a row."""
    helpdesk = house.sandbox.helpdesk(connection.account_name)
    placed = house.services.connections.by_id(connection.id)
    assert placed is not None
    assert placed.placed.integration_id is not None
    for _ in range(100):
        helpdesk.count_failure(placed.placed.integration_id)


def tell_at(browser: Browser, url: str) -> str:
    """Type a notice address and save it; the page afterwards."""
    return browser.submit("/connections/notices", {"notice_url": url}, on="/connections/").text

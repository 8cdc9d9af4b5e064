"""What stands in the sandbox's helpdesk, as the tests of the placement look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from loyalty import ledger
from loyalty.awards import Rules
from sandbox.state import Helpdesk
from sandbox.widgets import Button, build, buttons
from tests.databases import Clock
from tests.house import House
from widget.connections import Connection
from widget.template import CONTEXTS

RULES = Rules(max_points_per_award=1_000, max_points_per_agent_per_day=10_000, max_points_per_day=50_000)


class RunningClock(Clock):
    """The real time, for what several threads or processes wait for; `jump` moves it on."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def advance(self, seconds: float) -> None:
        """Nothing: real time passes by itself."""

    def jump(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)


@dataclass(frozen=True)
class Found:
    """The objects of one account, all of them."""

    integrations: list[dict[str, Any]]
    widgets: list[dict[str, Any]]
    macros: list[dict[str, Any]]

    @property
    def ids(self) -> set[int]:
        return {found["id"] for found in (*self.integrations, *self.widgets, *self.macros)}


def found_in(house: House, account: str = "acme") -> Found:
    helpdesk = house.sandbox.helpdesk(account)
    return Found(helpdesk.integrations(), helpdesk.widgets(), helpdesk.macros())


def fresh(house: House, connection: Connection) -> Connection:
    """The connection as it is stored now."""
    found = house.services.connections.by_id(connection.id)
    assert found is not None
    return found


def assert_exactly_one_of_each(house: House, connection: Connection) -> None:
    """The account holds one integration, a widget for each context and one macro; all known here and all right."""
    found = found_in(house, connection.account_name)
    placed = fresh(house, connection).placed
    assert [i["id"] for i in found.integrations] == [placed.integration_id]
    assert {w["context"]: w["id"] for w in found.widgets} == {
        "ticket": placed.ticket_widget_id,
        "customer": placed.customer_widget_id,
    }
    assert len(found.widgets) == 2
    assert {w["integration_id"] for w in found.widgets} == {placed.integration_id}
    assert [m["id"] for m in found.macros] == [placed.macro_id]
    assert f"integrations[{placed.integration_id}]." in str(found.macros[0]["actions"])
    keys = house.services.connections.newest_keys(connection.id)
    assert found.integrations[0]["http"]["headers"] == {"X-Api-Key": keys.lookup}
    for widget in found.widgets:
        for button in raw_buttons(widget):
            assert button["action"]["headers"] == [{"key": "X-Api-Key", "value": keys.award}]
    assert placed.problem is None


def raw_buttons(widget: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The buttons of a stored widget."""
    found: list[dict[str, Any]] = widget["template"]["widgets"][0]["meta"]["custom"]["buttons"]
    return found


def second_store(house: House, connection: Connection) -> Connection:
    """Another connection of the same account, to a store of its own."""
    services = house.services
    with services.database.write() as tx:
        store = ledger.open_store(tx, identity="ledger:second", now=house.clock())
        opened = services.connections.open(tx, account_id=connection.account_id, store=store, rules=RULES)
    found = services.connections.by_id(opened)
    assert found is not None
    return found


def shown_buttons(
    helpdesk: Helpdesk, connection: Connection, *, context: str, customer_id: int, ticket_id: int | None = None
) -> dict[str, Button]:
    """The buttons an agent sees in the sidebar, by label."""
    assert context in CONTEXTS
    placed = connection.placed
    widget_id = placed.ticket_widget_id if context == "ticket" else placed.customer_widget_id
    assert widget_id is not None
    data = helpdesk.customer(customer_id)["integrations"].get(str(placed.integration_id))
    scope = {
        "ticket": None if ticket_id is None else helpdesk.ticket(ticket_id),
        "customer": helpdesk.customer(customer_id),
        "current_user": helpdesk.users()[0],
    }
    cards = build(helpdesk.widget(widget_id)["template"], data, context=scope)
    return {button.label: button for button in buttons(cards)}

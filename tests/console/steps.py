"""What the tests of the console do and look at again and again."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from app import create_app
from sandbox.faults import Fault
from storage.tables import metadata, snapshots, stores
from tests.house import Browser, House
from widget.connections import Connection

POINTS_EVENTS = r"/merchant_api/v1/points_events"
ANA = "ana@example.com"
DAY_S = 24 * 3600


def text_of(page: str) -> str:
    """What a person reads on a page: without tags, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split()).replace(" .", ".").replace(" ,", ",")


def page_of(browser: Browser, connection: Connection) -> str:
    """The connection's page, as read."""
    answer = browser.get(f"/connections/{connection.id}")
    assert answer.status_code == 200
    return text_of(answer.text)


def activity_of(browser: Browser, connection: Connection) -> str:
    """The connection's activity, as read."""
    answer = browser.get(f"/connections/{connection.id}/activity")
    assert answer.status_code == 200
    return text_of(answer.text)


def session_of(house: House, browser: Browser) -> str:
    """Everything in the browser's session cookie, which is signed and not sealed."""
    app = create_app(house.services)
    serializer = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
    return str(serializer.loads(browser.session.cookies["tallydesk_session"]))


def everything(house: House) -> dict[str, list[Any]]:
    """All rows of all tables but those of the dance and of the gate."""
    with house.services.database.read() as tx:
        return {
            table.name: [tuple(row) for row in tx.execute(select(table).order_by(*table.primary_key.columns))]
            for table in metadata.sorted_tables
            if table.name not in ("oauth_states", "gates")
        }


def count_of_snapshots(house: House, connection: Connection) -> int:
    with house.services.database.read() as tx:
        return tx.scalar(select(func.count()).where(snapshots.c.store_id == connection.store.id)) or 0


def store_row(house: House, connection: Connection) -> Any:
    with house.services.database.read() as tx:
        return tx.execute(select(stores).where(stores.c.id == connection.store.id)).one()


@dataclass(frozen=True, kw_only=True)
class InReview:
    """An award that waits for a person; `fault.commit()` lets Rivo do at last what it was asked."""

    operation_id: str
    fault: Fault


def put_in_review(
    house: House, connection: Connection, *, email: str = ANA, ticket_id: str = "7", **asked: Any
) -> InReview:
    """Award `points` (or `store_credit`) while Rivo breaks off, and let a day pass in which it shows nothing of it."""
    fault = house.sandbox.faults.add(POINTS_EVENTS, method="POST", account="rivo", kind="commit_late")
    answer = house.award(connection, {"email": email, "ticket_id": ticket_id, **(asked or {"points": 50})})
    assert answer.status_code == 202, answer.text
    house.clock.advance(DAY_S + 60)
    house.work()
    found = InReview(operation_id=answer.json()["operation_id"], fault=fault)
    assert state_of(house, found.operation_id) == "needs_review"
    return found


def state_of(house: House, operation_id: str) -> str:
    with house.services.database.read() as tx:
        awards = metadata.tables["awards"]
        return str(tx.scalar(select(awards.c.state).where(awards.c.operation_id == operation_id)))

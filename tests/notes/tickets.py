"""One ticket of a connected helpdesk, its customer a member, and the notes on it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from storage.tables import awards
from tests.house import Browser, House
from widget.connections import Connection

EMAIL = "mia@example.com"


class Ticket:
    """One ticket of acme whose customer is a member with 100 points."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.sandbox = house.sandbox
        self.helpdesk = house.sandbox.helpdesk("acme")
        self.browser: Browser
        self.connection: Connection
        self.browser, self.connection = house.connect()
        house.add_member(self.connection.store, EMAIL, points=100)
        self.customer_id: int = self.helpdesk.create_customer("Mia Wong", EMAIL)["id"]
        self.id: int = self.helpdesk.create_ticket(self.customer_id, "Where is it?", "Hello")["id"]
        self.path = f"/api/tickets/{self.id}/messages"
        house.sandbox.settle()

    def award(self, points: int = 50, **fields: Any) -> str:
        """Add points from this ticket; the operation id."""
        asked = {"email": EMAIL, "points": points, "ticket_id": str(self.id), **fields}
        answer = self.house.award(self.connection, asked)
        assert answer.status_code == 200, answer.text
        operation_id: str = answer.json()["operation_id"]
        return operation_id

    def notes(self) -> list[dict[str, Any]]:
        """The internal notes on the ticket."""
        return [m for m in self.helpdesk.messages(self.id) if m["channel"] == "internal-note"]

    def posts(self) -> int:
        """How often a note was sent to Gorgias, whatever became of it."""
        return len(self.sandbox.requests.filter(method="POST", path=self.path))

    def state(self, operation_id: str) -> tuple[str, str | None]:
        """Where the note of an award stands, and why it was given up."""
        with self.house.services.database.read() as tx:
            row = tx.execute(
                select(awards.c.note_state, awards.c.note_reason).where(awards.c.operation_id == operation_id)
            ).one()
        return row.note_state, row.note_reason

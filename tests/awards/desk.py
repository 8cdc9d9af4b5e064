"""A desk with one member, one card and one button, for tests that press it in every way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import requests
from sqlalchemy import func, select, update

from loyalty.awards import AwardRefused, Origin
from loyalty.ledger import verify
from loyalty.program import MemberStatus
from storage.tables import awards, connections, jobs, ledger_transactions
from tests.databases import Clock
from tests.house import House
from widget.connections import Connection
from widget.sentences import result_sentence

JANE = "jane@example.com"


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What an agent has before them: `press` is the button, `key` a freshly loaded card's."""

    house: House
    connection: Connection

    @property
    def clock(self) -> Clock:
        return self.house.clock

    def enrol(self, email: str = JANE, *, status: MemberStatus = MemberStatus.MEMBER, points: int = 0) -> None:
        self.house.add_member(self.connection.store, email, status=status, points=points)

    def press(self, points: Any = 50, *, email: str = JANE, ticket_id: Any = 7, **fields: Any) -> requests.Response:
        return self.house.award(self.connection, {"email": email, "points": points, "ticket_id": ticket_id, **fields})

    def told(self, points: Any = 50, **fields: Any) -> dict[str, Any]:
        """The answer to a press that must not be refused."""
        answer = self.press(points, **fields)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def refused(self, points: Any = 50, *, status: int, **fields: Any) -> dict[str, Any]:
        """The answer to a press that must be refused; nothing is written down."""
        before = self.made()
        answer = self.press(points, **fields)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        assert set(found) == {"status", "reason", "message"}
        assert found["status"] == "rejected"
        assert found["message"].endswith("Nothing was added.")
        assert self.made() == before
        return found

    def key(self, email: str = JANE) -> str:
        shown: str = self.house.lookup(self.connection, email).json()["award_key"]
        return shown

    def balance(self, email: str = JANE) -> int:
        return self.house.balance(self.connection, email)

    def rule(self, **values: Any) -> None:
        """Change a setting of the connection."""
        with self.house.services.database.write() as tx:
            tx.execute(update(connections).where(connections.c.id == self.connection.id).values(values))

    def undo(self, operation_id: str, *, connection: Connection | None = None) -> dict[str, Any] | str:
        """The undo's answer, or the reason word of its refusal."""
        origin = Origin(
            connection_id=(connection or self.connection).id,
            channel="console",
            agent_email="admin@example.com",
            agent_proven=True,
        )
        try:
            result = self.house.services.awards.undo(operation_id=operation_id, origin=origin)
        except AwardRefused as error:
            return error.reason.value
        return {
            "message": result_sentence(result),
            "points_balance": result.points_balance,
            "operation_id": result.operation_id,
        }

    def made(self) -> tuple[int, int, int]:
        """How many awards, ledger transactions and jobs there are; the books must add up."""
        with self.house.services.database.read() as tx:
            assert list(verify(tx)) == []
            counts = [tx.scalar(select(func.count()).select_from(t)) or 0 for t in (awards, ledger_transactions, jobs)]
        return counts[0], counts[1], counts[2]

    def rows(self) -> list[Any]:
        """The journal, oldest first."""
        with self.house.services.database.read() as tx:
            return list(tx.execute(select(awards).order_by(awards.c.created_at, awards.c.reverses.is_not(None))))

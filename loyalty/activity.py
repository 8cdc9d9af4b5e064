"""What happened to awards, newest first, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, select, tuple_

from loyalty.awards import is_operation_id
from loyalty.journal import AwardState, NoteState, SettledBy
from storage.database import Database
from storage.sealing import Sealer
from storage.tables import awards

PAGE = 50


@dataclass(frozen=True, kw_only=True)
class AwardRecord:
    """One award as written in the journal. `undone_by` and `reverses` are operation ids."""

    operation_id: str
    when: datetime
    state: AwardState
    points: int
    credit_cents: int
    member_email: str
    reason: str
    ticket_id: str
    agent_email: str | None
    agent_proven: bool
    channel: str
    balance_after: int | None
    reverses: str | None
    undone_by: str | None
    note_state: NoteState
    note_reason: str | None
    sends: int
    settled_by: SettledBy | None
    told: str
    marked_by: str | None

    @property
    def can_be_undone(self) -> bool:
        """Whether an undo would be accepted."""
        return self.state is AwardState.APPLIED and self.reverses is None and self.undone_by is None


def recent_awards(
    database: Database,
    *,
    sealer: Sealer,
    connection_id: int,
    before: str | None = None,
    limit: int = PAGE,
) -> list[AwardRecord]:
    """The connection's awards, newest first, at most `limit`: all, or those older than the operation `before`."""
    undo = awards.alias("undo")
    statement = (
        select(awards, undo.c.operation_id.label("undone_by"))
        .outerjoin(undo, and_(undo.c.reverses == awards.c.operation_id, undo.c.state != AwardState.REJECTED))
        .where(awards.c.connection_id == connection_id)
        .order_by(awards.c.created_at.desc(), awards.c.operation_id.desc())
        .limit(limit)
    )
    if before is not None and is_operation_id(before):
        # Time and id together: two awards of one moment must not fall between two pages.
        place = select(awards.c.created_at, awards.c.operation_id).where(
            awards.c.operation_id == before, awards.c.connection_id == connection_id
        )
        statement = statement.where(tuple_(awards.c.created_at, awards.c.operation_id) < place.scalar_subquery())
    with database.read() as tx:
        return [
            AwardRecord(
                operation_id=row.operation_id,
                when=row.created_at,
                state=AwardState(row.state),
                points=row.points,
                credit_cents=row.credit_cents,
                member_email=sealer.open(row.member_email_sealed),
                reason=row.reason,
                ticket_id=row.ticket_id,
                agent_email=None if row.agent_email_sealed is None else sealer.open(row.agent_email_sealed),
                agent_proven=row.agent_proof == "proven",
                channel=row.channel,
                balance_after=row.balance_after,
                reverses=row.reverses,
                undone_by=row.undone_by,
                note_state=NoteState(row.note_state),
                note_reason=row.note_reason,
                sends=row.sends,
                settled_by=None if row.settled_by is None else SettledBy(row.settled_by),
                told=row.told or "",
                marked_by=None if row.marked_by_sealed is None else sealer.open(row.marked_by_sealed),
            )
            for row in tx.execute(statement)
        ]

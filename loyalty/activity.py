"""What happened to awards, newest first, for people to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, select, tuple_

from loyalty.awards import is_operation_id
from loyalty.journal import AwardState, NoteState, SettledBy
from storage.database import Database
from storage.sealing import Sealer
from storage.tables import awards

PAGE = 50


@dataclass(frozen=True, kw_only=True)
class AwardRecord:
    """One award as written in the journal. `undone_by` and `reverses` are operation ids.

    `is_undone` says that the undo was applied; until then it has undone nothing.
    """

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
    is_undone: bool
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
        select(awards, undo.c.operation_id.label("undone_by"), undo.c.state.label("undo_state"))
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
                is_undone=row.undo_state == AwardState.APPLIED,
                note_state=NoteState(row.note_state),
                note_reason=row.note_reason,
                sends=row.sends,
                settled_by=None if row.settled_by is None else SettledBy(row.settled_by),
                told=row.told or "",
                marked_by=None if row.marked_by_sealed is None else sealer.open(row.marked_by_sealed),
            )
            for row in tx.execute(statement)
        ]


def count_in_review(database: Database, connection_ids: Iterable[int]) -> dict[int, int]:
    """How many awards wait for a person, by connection; those with none are left out."""
    statement = (
        select(awards.c.connection_id, func.count().label("waiting"))
        .where(awards.c.connection_id.in_(list(connection_ids)), awards.c.state == AwardState.NEEDS_REVIEW)
        .group_by(awards.c.connection_id)
    )
    with database.read() as tx:
        return {row.connection_id: row.waiting for row in tx.execute(statement)}


def newest_in_review(database: Database, connection_id: int) -> tuple[str, str | None] | None:
    """The operation id of the newest award that waits for a person, and the `before` of the page that shows it."""
    mine = awards.c.connection_id == connection_id
    place = tuple_(awards.c.created_at, awards.c.operation_id)
    with database.read() as tx:
        waiting = tx.execute(
            select(awards.c.created_at, awards.c.operation_id)
            .where(mine, awards.c.state == AwardState.NEEDS_REVIEW)
            .order_by(awards.c.created_at.desc(), awards.c.operation_id.desc())
            .limit(1)
        ).one_or_none()
        if waiting is None:
            return None
        newer = tx.scalars(
            select(awards.c.operation_id)
            .where(mine, place > (waiting.created_at, waiting.operation_id))
            .order_by(awards.c.created_at, awards.c.operation_id)
            .limit(PAGE)
        ).all()
    return waiting.operation_id, newer[0] if len(newer) == PAGE else None

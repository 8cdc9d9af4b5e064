"""What happened to awards, newest first, for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, and_, func, select, tuple_, type_coerce

from loyalty.awards import is_operation_id
from loyalty.journal import AwardState, NoteState, SettledBy, written_out
from storage.database import Database
from storage.sealing import Sealer
from storage.tables import awards, connections

PAGE = 50
BATCH = 500


@dataclass(frozen=True, kw_only=True)
class AwardRecord:
    """One award as written in the journal. `undone_by` and `reverses` are operation ids.

    `is_undone` says that the undo was applied; until then it has undone nothing. E-mails that were erased are empty.
    """

    operation_id: str
    when: datetime
    state: AwardState
    points: int
    credit_cents: int
    member_email: str
    member_hmac: str = field(repr=False)
    reason: str
    ticket_id: str
    agent_email: str | None
    agent_hmac: str = field(repr=False)
    agent_proven: bool
    channel: str
    balance_after: int | None
    reverses: str | None
    undone_by: str | None
    is_undone: bool
    note_state: NoteState
    note_reason: str | None
    sends: int
    settled_at: datetime | None
    settled_by: SettledBy | None
    told: str
    marked_by: str | None

    @property
    def can_be_undone(self) -> bool:
        """Whether an undo would be accepted."""
        known = bool(self.member_email)
        return known and self.state is AwardState.APPLIED and self.reverses is None and self.undone_by is None


@dataclass(frozen=True, kw_only=True)
class AwardFilter:
    """Which awards are wanted; what is None does not matter. `agent_hmac` is empty for agents who were not named.

    From `since` on, and before `until`.
    """

    states: tuple[AwardState, ...] | None = None
    member_hmac: str | None = field(default=None, repr=False)
    agent_hmac: str | None = field(default=None, repr=False)
    since: datetime | None = None
    until: datetime | None = None


EVERYTHING = AwardFilter()


@dataclass(frozen=True, kw_only=True)
class AwardPage:
    """One page of the list. `older` and `newer` are the operations beyond which the next ones lie, where there are."""

    records: Sequence[AwardRecord]
    older: str | None
    newer: str | None


def recent_awards(
    database: Database,
    *,
    sealer: Sealer,
    connection_id: int,
    wanted: AwardFilter = EVERYTHING,
    before: str | None = None,
    limit: int = PAGE,
) -> list[AwardRecord]:
    """The connection's awards, newest first, at most `limit`: all, or those older than the operation `before`."""
    statement = _newest_first(connection_id, wanted).limit(limit)
    if before is not None and is_operation_id(before):
        statement = statement.where(_place < _place_of(connection_id, before))
    with database.read() as tx:
        return [_record(row, sealer) for row in tx.execute(statement)]


def page_of_awards(
    database: Database,
    *,
    sealer: Sealer,
    connection_id: int,
    wanted: AwardFilter = EVERYTHING,
    before: str | None = None,
    after: str | None = None,
    limit: int = PAGE,
) -> AwardPage:
    """One page of the connection's awards, newest first: the newest, or the next ones older than the operation
    `before`, or newer than the operation `after`."""
    upwards = after is not None and is_operation_id(after)
    statement = _newest_first(connection_id, wanted)
    if upwards and after is not None:
        statement = statement.order_by(None).order_by(*_order(wanted))
        statement = statement.where(_place > _place_of(connection_id, after))
    elif before is not None and is_operation_id(before):
        statement = statement.where(_place < _place_of(connection_id, before))
    else:
        before = None
    with database.read() as tx:
        rows = tx.execute(statement.limit(limit + 1)).all()
    further = len(rows) > limit
    records = [_record(row, sealer) for row in rows[:limit]]
    if upwards:
        records.reverse()
    if not records:
        return AwardPage(records=records, older=None, newer=None)
    has_older, has_newer = (True, further) if upwards else (further, before is not None)
    return AwardPage(
        records=records,
        older=records[-1].operation_id if has_older else None,
        newer=records[0].operation_id if has_newer else None,
    )


def one_award(database: Database, *, sealer: Sealer, connection_id: int, operation_id: str) -> AwardRecord | None:
    """The award with this operation id, or None when the connection has none."""
    if not is_operation_id(operation_id):
        return None
    statement = _newest_first(connection_id, EVERYTHING).where(awards.c.operation_id == operation_id)
    with database.read() as tx:
        row = tx.execute(statement).one_or_none()
    return None if row is None else _record(row, sealer)


def all_awards(
    database: Database, *, sealer: Sealer, connection_id: int, wanted: AwardFilter, batch: int = BATCH
) -> Iterator[Sequence[AwardRecord]]:
    """Every award that is wanted, newest first, in batches: each is a short transaction of its own, so that a large
    export holds nobody up. An award that comes meanwhile is not among them."""
    before = None
    while True:
        records = recent_awards(
            database, sealer=sealer, connection_id=connection_id, wanted=wanted, before=before, limit=batch
        )
        if not records:
            return
        yield records
        before = records[-1].operation_id


def count_awards(database: Database, *, connection_id: int, wanted: AwardFilter) -> int:
    """How many awards are wanted."""
    with database.read(unhurried=True) as tx:
        return tx.scalar(select(func.count()).select_from(awards).where(*_conditions(connection_id, wanted))) or 0


def email_of_member(database: Database, *, sealer: Sealer, connection_id: int, member_hmac: str) -> str | None:
    """The e-mail of a member who was given something here; None when nobody of that HMAC was."""
    return _email(database, sealer, connection_id, AwardFilter(member_hmac=member_hmac), awards.c.member_email_sealed)


def email_of_agent(database: Database, *, sealer: Sealer, connection_id: int, agent_hmac: str) -> str | None:
    """The e-mail of an agent who gave something here; None when nobody of that HMAC did."""
    if not agent_hmac:
        # Who was not named has none: looking for it would read every award of theirs.
        return None
    return _email(database, sealer, connection_id, AwardFilter(agent_hmac=agent_hmac), awards.c.agent_email_sealed)


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
            .where(mine, _place > (waiting.created_at, waiting.operation_id))
            .order_by(awards.c.created_at, awards.c.operation_id)
            .limit(PAGE)
        ).all()
    return waiting.operation_id, newer[0] if len(newer) == PAGE else None


_undo = awards.alias("undo")
# Time and id together: two awards of one moment must not fall between two pages.
_place = tuple_(awards.c.created_at, awards.c.operation_id)
_REJECTED = written_out(AwardState.REJECTED)


def _newest_first(connection_id: int, wanted: AwardFilter) -> Select[Any]:
    return (
        select(awards, _undo.c.operation_id.label("undone_by"), _undo.c.state.label("undo_state"))
        .outerjoin(_undo, and_(_undo.c.reverses == awards.c.operation_id, _undo.c.state != _REJECTED))
        .where(*_conditions(connection_id, wanted))
        .order_by(*(column.desc() for column in _order(wanted)))
    )


def _order(wanted: AwardFilter) -> tuple[ColumnElement[Any], ...]:
    when: ColumnElement[Any] = type_coerce(awards.c.created_at, BigInteger)
    if wanted.states is not None and len(wanted.states) > 1:
        # Awards in several states are few, those under way: to walk through all by time would take seconds.
        when = when + 0
    return when, awards.c.operation_id


def _conditions(connection_id: int, wanted: AwardFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [awards.c.connection_id == connection_id]
    if wanted.states is not None:
        conditions.append(awards.c.state.in_(wanted.states))
    if wanted.member_hmac is not None:
        # With the store, by which members are indexed.
        store = select(connections.c.store_id).where(connections.c.id == connection_id).scalar_subquery()
        conditions += [awards.c.store_id == store, awards.c.member_hmac == wanted.member_hmac]
    if wanted.agent_hmac is not None:
        conditions.append(awards.c.agent_hmac == wanted.agent_hmac)
    if wanted.since is not None:
        conditions.append(awards.c.created_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(awards.c.created_at < wanted.until)
    return conditions


def _place_of(connection_id: int, operation_id: str) -> Any:
    """Where an award of the connection stands; what is compared with one that it does not have is nothing."""
    found = select(awards.c.created_at, awards.c.operation_id).where(
        awards.c.operation_id == operation_id, awards.c.connection_id == connection_id
    )
    return found.scalar_subquery()


def _email(
    database: Database, sealer: Sealer, connection_id: int, wanted: AwardFilter, sealed: ColumnElement[Any]
) -> str | None:
    statement = (
        select(sealed)
        .where(*_conditions(connection_id, wanted), sealed.is_not(None))
        .order_by(awards.c.created_at.desc())
        .limit(1)
    )
    with database.read() as tx:
        found = tx.scalar(statement)
    return None if found is None else sealer.open(found)


def _record(row: Any, sealer: Sealer) -> AwardRecord:
    return AwardRecord(
        operation_id=row.operation_id,
        when=row.created_at,
        state=AwardState(row.state),
        points=row.points,
        credit_cents=row.credit_cents,
        member_email=sealer.open(row.member_email_sealed),
        member_hmac=row.member_hmac,
        reason=row.reason,
        ticket_id=row.ticket_id,
        agent_email=None if row.agent_email_sealed is None else sealer.open(row.agent_email_sealed),
        agent_hmac=row.agent_hmac,
        agent_proven=row.agent_proof == "proven",
        channel=row.channel,
        balance_after=row.balance_after,
        reverses=row.reverses,
        undone_by=row.undone_by,
        is_undone=row.undo_state == AwardState.APPLIED,
        note_state=NoteState(row.note_state),
        note_reason=row.note_reason,
        sends=row.sends,
        settled_at=row.settled_at,
        settled_by=None if row.settled_by is None else SettledBy(row.settled_by),
        told=row.told or "",
        marked_by=None if row.marked_by_sealed is None else sealer.open(row.marked_by_sealed),
    )

"""One person is erased from every table, as far as nothing is under way that still needs to know them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update

from loyalty.journal import SETTLED
from loyalty.program import ProgramKind
from privacy.person import Person, rows_naming
from privacy.rows import Eraser
from storage.database import Database
from storage.tables import accounts, awards, changes, connections, members, snapshots, stores

BATCH = 500

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What was erased, in numbers, and where the person is to be erased by others.

    `open_awards` could not be erased yet: they are still being confirmed, wait for a decision, or are so fresh that
    the same press may come once more. Those that came while others were erased are among them.
    """

    ledger_members: int
    snapshots: int
    awards_received: int
    awards_made: int
    awards_decided: int
    changes: int
    helpdesks_connected: int
    open_awards: int
    helpdesks: tuple[str, ...]
    programs: tuple[str, ...]

    @property
    def total(self) -> int:
        """How many rows were changed or deleted."""
        return (
            self.ledger_members + self.snapshots + self.awards_received + self.awards_made + self.awards_decided
            + self.changes + self.helpdesks_connected
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Ids of the rows about a person."""

    members: Sequence[tuple[int, int, str]]
    snapshots: Sequence[int]
    received: Sequence[str]
    made: Sequence[str]
    decided: Sequence[str]
    changes: Sequence[int]
    connected: Sequence[int]
    helpdesks: tuple[str, ...]
    programs: tuple[str, ...]


def erase(database: Database, *, person: Person, eraser: Eraser, now: datetime, double_click_window_s: int) -> Erased:
    """Erase the person everywhere; to be repeated while there are `open_awards`. Raises CannotOpen.

    Goes in short transactions, so that awards go on meanwhile; an interrupted run is simply repeated.
    """
    window = timedelta(seconds=double_click_window_s)
    with database.read(unhurried=True) as tx:
        found = _find(tx, person, eraser, closed_before=now - window)
    # One for all awards: that they were one person's is no longer personal.
    pseudonym = eraser.pseudonym()
    for member_id, store_id, hmac in found.members:
        with database.write() as tx:
            # As awards are: whoever is just awarding this member has done so, or finds nobody.
            database.lock(tx, f"member {store_id} {hmac}")
            eraser.member(tx, member_id)
    for batch in _batches(found.snapshots):
        with database.write() as tx:
            tx.execute(delete(snapshots).where(snapshots.c.id.in_(batch)))
    for operation_ids in _batches(found.received):
        with database.write() as tx:
            eraser.members_of_awards(tx, operation_ids, pseudonym=pseudonym)
    for operation_ids in _batches(found.made):
        with database.write() as tx:
            eraser.agents_of_awards(tx, operation_ids, pseudonym=pseudonym)
    for operation_ids in _batches(found.decided):
        with database.write() as tx:
            eraser.marks_of_awards(tx, operation_ids)
    with database.write() as tx:
        nothing = eraser.sealer.seal("")
        tx.execute(update(changes).where(changes.c.id.in_(found.changes)).values(who_sealed=nothing))
        # Notes are posted in the name of the token's user from now on.
        tx.execute(update(accounts).where(accounts.c.id.in_(found.connected)).values(user_email_sealed=None))
    with database.read(unhurried=True) as tx:
        # Counted last: an award may have been made since the others were looked for.
        left = tx.scalar(select(func.count()).select_from(awards).where(or_(*_of(person)))) or 0
    return Erased(
        ledger_members=len(found.members),
        snapshots=len(found.snapshots),
        awards_received=len(found.received),
        awards_made=len(found.made),
        awards_decided=len(found.decided),
        changes=len(found.changes),
        helpdesks_connected=len(found.connected),
        open_awards=left,
        helpdesks=found.helpdesks,
        programs=found.programs,
    )


def _find(tx: Connection, person: Person, eraser: Eraser, *, closed_before: datetime) -> _Found:
    """Every row about the person."""
    sealer = eraser.sealer
    received, made = _of(person)
    # A press that comes twice is known by whom it is for and who made it.
    closed = awards.c.state.in_(SETTLED) & (awards.c.created_at <= closed_before)

    def ids(mine: ColumnElement[bool]) -> Sequence[str]:
        return tx.scalars(select(awards.c.operation_id).where(mine, closed)).all()

    found_in = select(snapshots.c.store_id).where(
        snapshots.c.email_hmac.in_(person.hmacs), snapshots.c.as_of.is_not(None)
    )
    helpdesks = tx.scalars(
        select(accounts.c.name)
        .distinct()
        .join(connections, connections.c.account_id == accounts.c.id)
        .where(
            or_(
                connections.c.id.in_(select(awards.c.connection_id).where(or_(received, made))),
                connections.c.store_id.in_(found_in),
            )
        )
        .order_by(accounts.c.name)
    ).all()
    programs = tx.scalars(
        select(stores.c.program)
        .distinct()
        .where(
            stores.c.program != ProgramKind.LEDGER,
            or_(stores.c.id.in_(select(awards.c.store_id).where(received)), stores.c.id.in_(found_in)),
        )
        .order_by(stores.c.program)
    ).all()
    return _Found(
        members=[
            (row.id, row.store_id, row.email_hmac)
            for row in tx.execute(
                select(members.c.id, members.c.store_id, members.c.email_hmac).where(
                    members.c.email_hmac.in_(person.hmacs)
                )
            )
        ],
        snapshots=tx.scalars(select(snapshots.c.id).where(snapshots.c.email_hmac.in_(person.hmacs))).all(),
        received=ids(received),
        made=ids(made),
        decided=[
            row.operation_id
            for row in rows_naming(
                tx, person, sealed=awards.c.marked_by_sealed, also=(awards.c.operation_id,), sealer=sealer
            )
        ],
        changes=[
            row.id for row in rows_naming(tx, person, sealed=changes.c.who_sealed, also=(changes.c.id,), sealer=sealer)
        ],
        connected=[
            row.id
            for row in rows_naming(
                tx, person, sealed=accounts.c.user_email_sealed, also=(accounts.c.id,), sealer=sealer
            )
        ],
        helpdesks=tuple(helpdesks),
        programs=tuple(programs),
    )


def _of(person: Person) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The awards that the person received, and those they made."""
    return awards.c.member_hmac.in_(person.hmacs), awards.c.agent_hmac.in_(person.hmacs)


def _batches(ids: Sequence[T]) -> Iterator[Sequence[T]]:
    rest = iter(ids)
    while batch := list(islice(rest, BATCH)):
        yield batch

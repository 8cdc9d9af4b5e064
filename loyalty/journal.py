"""Awards at rest: every one is written down before it is sent, and each step of its life is one short transaction.

    pending → sending → applied | rejected | unknown → applied | rejected | needs_review

On the embedded ledger an award is booked and written as applied in one transaction. For a program elsewhere nothing
of the network happens inside a transaction: `sending` is written first, under a lease, the outcome after. Only who
holds the lease may write the outcome, so that an award is never settled twice; evidence (the program's own webhook, a
person's word) needs none, and whoever comes later finds the award settled. The attempt that led to a step is written
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    exists,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)

from loyalty.attempts import Attempt, AttemptKind, AttemptOutcome, write_attempt
from loyalty.program import NewPointsEvent, ProgramKind, Store
from storage.database import Database
from storage.queue import defer
from storage.sealing import Sealer
from storage.statements import run, run_one
from storage.tables import UtcTime, awards, jobs, stores

# Jobs. What follows a settled award is decided above, where a helpdesk is known.
AWARD_SETTLED = "award_settled"
CONFIRM_AWARD = "confirm_award"

# Longer than the longest attempt while an agent waits, and of the worker: nobody takes over what is still under way.
AGENT_LEASE, WORKER_LEASE = timedelta(seconds=30), timedelta(seconds=90)
# From the end of an attempt to the first look at what became of it.
FIRST_LOOK = timedelta(seconds=2)


class AwardState(StrEnum):
    """Where an award stands. `unknown` is a state, not an error: it may have happened."""

    PENDING = "pending"
    SENDING = "sending"
    APPLIED = "applied"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    NEEDS_REVIEW = "needs_review"


def written_out(word: StrEnum) -> ColumnElement[str]:
    """`word` as a constant of SQL: by a parameter a database does not know that a partial index serves."""
    return literal(word.value, literal_execute=True)


SETTLED = (AwardState.APPLIED, AwardState.REJECTED)
# In the words of the index of these few.
IS_OPEN: ColumnElement[bool] = and_(*(awards.c.state != written_out(state) for state in SETTLED))
# Those that the worker goes on with by itself.
UNSETTLED = (AwardState.PENDING, AwardState.SENDING, AwardState.UNKNOWN)


class SettledBy(StrEnum):
    """How it became known what had happened to an award."""

    ANSWER = "answer"
    FOUND = "found"
    WEBHOOK = "webhook"
    PERSON = "person"
    TIME = "time"


class NoteState(StrEnum):
    """Where the internal note about an award stands."""

    NONE = "none"
    DUE = "due"
    POSTED = "posted"
    GIVEN_UP = "given_up"


# As IS_OPEN.
NOTE_IS_DUE: ColumnElement[bool] = awards.c.note_state == written_out(NoteState.DUE)


@dataclass(frozen=True, kw_only=True)
class Sending:
    """An award that its owner may send and settle. `sends` counts this attempt."""

    operation_id: str
    owner: str
    store: Store
    member_hmac: str
    event: NewPointsEvent
    sends: int
    lease_until: datetime


class Journal:
    """The awards of every store, and the steps they may take."""

    def __init__(self, database: Database, *, sealer: Sealer, now: Callable[[], datetime]) -> None:
        self._database = database
        self._sealer = sealer
        self._now = now

    def write_sending(self, tx: Connection, *, store: Store, email: str, owner: str, **values: Any) -> Sending:
        """Write a new award down as about to be sent by `owner`. `values` are the columns of NEW_AWARD.

        Should the owner vanish, it is `forgotten` when the lease has ended.
        """
        lease_until = self._now() + AGENT_LEASE
        held = {"state": AwardState.SENDING.value, "sends": 1, "lease_owner": owner, "lease_until": lease_until}
        run(tx, _NEW, **values, **{**_UNTOUCHED, **held})
        operation_id = values["operation_id"]
        return Sending(
            operation_id=operation_id,
            owner=owner,
            store=store,
            member_hmac=values["member_hmac"],
            event=NewPointsEvent(
                operation_id=operation_id,
                email=email,
                points=values["points"],
                store_credit=_credit(values["credit_cents"]),
                what=what_of(values["reason"]),
                reverses=values["reverses"],
                first_send=True,
                asked_at=values["created_at"],
            ),
            sends=1,
            lease_until=lease_until,
        )

    def write_applied(self, tx: Connection, *, balance: int | None, **values: Any) -> None:
        """Write down an award that is booked in this very transaction. `values` as for `write_sending`."""
        now = self._now()
        applied = {
            "state": AwardState.APPLIED.value,
            "balance_after": balance,
            "settled_at": now,
            "settled_by": SettledBy.ANSWER.value,
        }
        noted = {"note_state": NoteState.DUE.value, "note_due_at": now} if values["ticket_id"] else {}
        run(tx, _NEW, **values, **{**_UNTOUCHED, **applied, **noted})
        if noted:
            defer(tx, AWARD_SETTLED, values["operation_id"], run_at=now, sooner=True)

    def event_of(self, row: Any) -> NewPointsEvent:
        """What is to be sent for the award in `row`."""
        return NewPointsEvent(
            operation_id=row.operation_id,
            email=self._sealer.open(row.member_email_sealed),
            points=row.points,
            store_credit=_credit(row.credit_cents),
            what=what_of(row.reason),
            reverses=row.reverses,
            # The first attempt of all: nothing of it can be there yet.
            first_send=row.sends == 1 and row.attempt_ended_at is None,
            asked_at=row.created_at,
        )

    def applied(
        self, operation_id: str, *, balance: int | None, by: SettledBy, attempt: Attempt, owner: str | None = None
    ) -> bool:
        """The program has it. False when it was settled already, or is no longer the owner's."""
        with self._database.write() as tx:
            settled = self.settle(tx, operation_id, state=AwardState.APPLIED, balance=balance, by=by, owner=owner)
            # What its owner did has been done, whoever was faster; a webhook that settles nothing explains nothing.
            if settled or owner is not None:
                write_attempt(tx, operation_id, attempt)
        return settled

    def rejected(
        self,
        operation_id: str,
        *,
        told: str,
        by: SettledBy,
        owner: str | None = None,
        agent_was_told: bool = True,
        attempt: Attempt | None = None,
    ) -> bool:
        """The program does not have it and will not. False as for `applied`.

        `agent_was_told`: the agent hears it as the answer to their press, so that no note needs to tell them.
        """
        with self._database.write() as tx:
            if attempt is not None:
                write_attempt(tx, operation_id, attempt)
            return self.settle(
                tx,
                operation_id,
                state=AwardState.REJECTED,
                told=told,
                by=by,
                owner=owner,
                with_note=not agent_was_told,
            )

    def settle(
        self,
        tx: Connection,
        operation_id: str,
        *,
        state: AwardState,
        by: SettledBy,
        balance: int | None = None,
        told: str | None = None,
        marked_by: str | None = None,
        owner: str | None = None,
        only_from: AwardState | None = None,
        with_note: bool = True,
    ) -> bool:
        """Write the outcome, once; what follows from it is asked for in the same transaction."""
        statement, who = _SETTLE, {}
        if only_from is not None:
            statement, who = _SETTLE_FROM, {"only_from": only_from.value}
        elif owner is not None:
            statement, who = _SETTLE_HELD, {"owner": owner}
        rows = run(
            tx,
            statement,
            of=operation_id,
            outcome=state.value,
            balance=balance,
            at=self._now(),
            how=by.value,
            words=told,
            person=None if marked_by is None else self._sealer.seal(marked_by),
            with_note=with_note,
            **who,
        )
        if rows and rows[0].note_state == NoteState.DUE and with_note:
            defer(tx, AWARD_SETTLED, operation_id, run_at=self._now(), sooner=True)
        return bool(rows)

    def unknown(self, operation_id: str, *, owner: str, attempt: Attempt) -> datetime:
        """The attempt has ended without telling what it did. Returns when to look for it."""
        now = self._now()
        self._put_back(
            operation_id,
            owner=owner,
            look_at=now + FIRST_LOOK,
            attempt=attempt,
            state=AwardState.UNKNOWN,
            attempt_ended_at=now,
            looks=0,
        )
        return now + FIRST_LOOK

    def not_sent(
        self, operation_id: str, *, owner: str, look_at: datetime, attempt: Attempt, refused_for_now: bool = False
    ) -> bool:
        """The attempt did not take place; it is tried again at `look_at`. An award that was unknown stays unknown.

        `refused_for_now`: it reached the program, which answered that it had no time.
        """
        with self._database.write() as tx:
            write_attempt(tx, operation_id, attempt)
            row = tx.execute(
                select(awards.c.attempt_ended_at, awards.c.sends).where(
                    awards.c.operation_id == operation_id, *_held_by(owner)
                )
            ).one_or_none()
            if row is None:
                return False
            earlier_unknown = row.sends > 1
            ended: dict[str, Any] = {}
            if refused_for_now and not earlier_unknown:
                ended["attempt_ended_at"] = self._now()
            return self._write_back(
                tx,
                operation_id,
                owner=owner,
                look_at=look_at,
                state=AwardState.UNKNOWN if earlier_unknown else AwardState.PENDING,
                sends=row.sends - 1,
                **ended,
            )

    def look_later(
        self, operation_id: str, *, owner: str, look_at: datetime, found_absent: bool, attempt: Attempt
    ) -> bool:
        """Nothing new is known, or that the program does not have it yet; it is looked at again."""
        looks = {"looks": awards.c.looks + 1} if found_absent else {}
        return self._put_back(operation_id, owner=owner, look_at=look_at, attempt=attempt, **looks)

    def needs_review(self, operation_id: str, *, owner: str, attempt: Attempt) -> bool:
        """Only a person can tell what happened."""
        with self._database.write() as tx:
            write_attempt(tx, operation_id, attempt)
            ticket_id = tx.execute(
                update(awards)
                .where(awards.c.operation_id == operation_id, *_held_by(owner))
                .values(state=AwardState.NEEDS_REVIEW, lease_owner=None, lease_until=None)
                .returning(awards.c.ticket_id)
            ).one_or_none()
            if ticket_id is None:
                return False
            self._ask_for_note(tx, operation_id, ticket_id=ticket_id[0])
        return True

    def take(self, operation_id: str, *, owner: str, lease: timedelta) -> Any:
        """Hold an unsettled award for a look at it; its row as from `read`, or None when it is settled or somebody
        else's.

        An attempt whose owner vanished counts as ended now: nobody can tell when it really did.
        """
        now = self._now()
        with self._database.write() as tx:
            self._database.lock(tx, f"award {operation_id}")
            row = tx.execute(
                select(awards).where(
                    awards.c.operation_id == operation_id,
                    awards.c.state.in_((*UNSETTLED, AwardState.NEEDS_REVIEW)),
                    _is_free(now),
                )
            ).one_or_none()
            if row is None:
                return None
            abandoned = {"state": AwardState.UNKNOWN, "attempt_ended_at": now, "looks": 0}
            changed = tx.execute(
                update(awards)
                # Evidence may have settled it since it was read.
                .where(awards.c.operation_id == operation_id, awards.c.state == row.state)
                .values(
                    lease_owner=owner,
                    lease_until=now + lease,
                    **(abandoned if row.state == AwardState.SENDING else {}),
                )
            )
            if changed.rowcount != 1:
                return None
            if row.state == AwardState.SENDING:
                given_up = Attempt(kind=AttemptKind.SENT, outcome=AttemptOutcome.ABANDONED, at=now)
                write_attempt(tx, operation_id, given_up)
            return tx.execute(_WITH_PROGRAM.where(awards.c.operation_id == operation_id)).one()

    def release(self, operation_id: str, *, owner: str) -> None:
        """End a look that changed nothing."""
        with self._database.write() as tx:
            tx.execute(
                update(awards)
                .where(awards.c.operation_id == operation_id, *_held_by(owner))
                .values(lease_owner=None, lease_until=None)
            )

    def begin_again(self, operation_id: str, *, owner: str) -> Sending | None:
        """Send once more what `owner` holds; None when it is no longer the owner's."""
        lease_until = self._now() + WORKER_LEASE
        with self._database.write() as tx:
            rows = run(tx, _BEGIN, of=operation_id, owner=owner, until=lease_until)
            if not rows:
                return None
            store = store_of(tx, rows[0].store_id)
        return Sending(
            operation_id=operation_id,
            owner=owner,
            store=store,
            member_hmac=rows[0].member_hmac,
            event=self.event_of(rows[0]),
            sends=rows[0].sends,
            lease_until=lease_until,
        )

    def contradicted(self, operation_id: str, *, attempt: Attempt) -> None:
        """The program has what counts as rejected here: a person reads it beside the award."""
        with self._database.write() as tx:
            write_attempt(tx, operation_id, attempt)

    def read(self, operation_id: str) -> Any:
        """The award's row with its store's program, and the version of the key that the store has now; or None."""
        return next(iter(self._database.look_up(_READ, of=operation_id)), None)

    def forgotten(self, *, limit: int = 100) -> list[str]:
        """Unsettled awards that nobody holds and for which no job waits: for the sweep."""
        has_job = exists().where(jobs.c.name == CONFIRM_AWARD, jobs.c.ref == awards.c.operation_id)
        with self._database.read() as tx:
            return list(
                tx.scalars(
                    select(awards.c.operation_id)
                    .where(IS_OPEN, awards.c.state.in_(UNSETTLED), _is_free(self._now()), ~has_job)
                    .order_by(awards.c.created_at)
                    .limit(limit)
                )
            )

    def _put_back(self, operation_id: str, *, owner: str, look_at: datetime, attempt: Attempt, **values: Any) -> bool:
        with self._database.write() as tx:
            write_attempt(tx, operation_id, attempt)
            return self._write_back(tx, operation_id, owner=owner, look_at=look_at, **values)

    def _write_back(self, tx: Connection, operation_id: str, *, owner: str, look_at: datetime, **values: Any) -> bool:
        changed = tx.execute(
            update(awards)
            .where(awards.c.operation_id == operation_id, *_held_by(owner))
            .values(lease_owner=None, lease_until=None, **values)
        )
        if changed.rowcount != 1:
            return False
        defer(tx, CONFIRM_AWARD, operation_id, run_at=look_at, sooner=True)
        return True

    def _ask_for_note(self, tx: Connection, operation_id: str, *, ticket_id: str) -> None:
        if ticket_id:
            run(tx, _NOTE_DUE, of=operation_id, at=self._now())
            defer(tx, AWARD_SETTLED, operation_id, run_at=self._now(), sooner=True)


def what_of(reason: str) -> str:
    """What stands in the program's history for an award with this reason."""
    return reason or "Added by support"


def _credit(cents: int) -> Decimal | None:
    return Decimal(cents) / 100 if cents else None


def store_of(tx: Connection, store_id: int) -> Store:
    """The store with this id."""
    row = run_one(tx, _PROGRAM, of=store_id)
    return Store(id=store_id, program=ProgramKind(row.program))


_PROGRAM = select(stores.c.program).where(stores.c.id == bindparam("of"))


_WITH_PROGRAM = select(awards, stores.c.program, stores.c.key_version.label("present_key_version")).join(
    stores, stores.c.id == awards.c.store_id
)


_READ = _WITH_PROGRAM.where(awards.c.operation_id == bindparam("of"))

# What is known of an award when it is asked for.
NEW_AWARD = (
    "operation_id",
    "store_id",
    "connection_id",
    "member_hmac",
    "member_email_sealed",
    "points",
    "credit_cents",
    "reason",
    "channel",
    "ticket_id",
    "agent_hmac",
    "agent_email_sealed",
    "agent_proof",
    "award_key_nonce",
    "fingerprint",
    "reverses",
    "created_at",
)
_UNTOUCHED = {
    "sends": 0,
    "lease_owner": None,
    "lease_until": None,
    "balance_after": None,
    "settled_at": None,
    "settled_by": None,
    "note_state": NoteState.NONE.value,
    "note_due_at": None,
}
_NEW = insert(awards).values(
    key_version=select(stores.c.key_version).where(stores.c.id == bindparam("store_id")).scalar_subquery(),
    **{name: bindparam(name) for name in (*NEW_AWARD, "state", *_UNTOUCHED)},
)

_IS_IT = awards.c.operation_id == bindparam("of")
_IS_HELD = awards.c.lease_owner == bindparam("owner")
_BEGIN = (
    update(awards)
    .where(
        _IS_IT, _IS_HELD, or_(awards.c.state == AwardState.PENDING.value, awards.c.state == AwardState.UNKNOWN.value)
    )
    .values(
        state=AwardState.SENDING.value,
        sends=awards.c.sends + 1,
        lease_owner=bindparam("owner"),
        lease_until=bindparam("until"),
    )
    .returning(awards)
)
_NOTED = and_(bindparam("with_note", type_=Boolean), awards.c.ticket_id != "")
_OUTCOME = (
    update(awards)
    .where(_IS_IT)
    .values(
        state=bindparam("outcome"),
        balance_after=bindparam("balance"),
        settled_at=bindparam("at"),
        settled_by=bindparam("how"),
        told=bindparam("words"),
        marked_by_sealed=bindparam("person"),
        lease_owner=None,
        lease_until=None,
        note_state=case((_NOTED, NoteState.DUE.value), else_=awards.c.note_state),
        note_reason=case((_NOTED, null()), else_=awards.c.note_reason),
        note_attempts=case((_NOTED, 0), else_=awards.c.note_attempts),
        note_due_at=case((_NOTED, bindparam("at", type_=UtcTime)), else_=awards.c.note_due_at),
    )
    .returning(awards.c.note_state)
)
_SETTLE = _OUTCOME.where(IS_OPEN)
_SETTLE_HELD = _SETTLE.where(_IS_HELD)
_SETTLE_FROM = _OUTCOME.where(awards.c.state == bindparam("only_from"))
_NOTE_DUE = (
    update(awards)
    .where(_IS_IT)
    .values(note_state=NoteState.DUE.value, note_reason=None, note_attempts=0, note_due_at=bindparam("at"))
)


def _is_free(now: datetime) -> ColumnElement[bool]:
    """Nobody holds it. A lease far ahead was taken before the clock was set back."""
    lease = awards.c.lease_until
    return or_(lease.is_(None), lease <= now, lease > now + 2 * WORKER_LEASE)


def _held_by(owner: str | None) -> tuple[Any, ...]:
    return () if owner is None else (awards.c.lease_owner == owner,)

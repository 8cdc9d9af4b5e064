"""What erasing means for a row: the numbers stay, so that books and totals go on adding up; whoever it was about goes.

A sealed column that cannot be empty holds a sealed empty text then, an HMAC is replaced by a random one of nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, bindparam, case, select, update

from loyalty.journal import NoteState
from loyalty.ledger import Kind, keep_latest, new_referral_code
from storage.sealing import RandomBytes, Sealer
from storage.tables import award_attempts, awards, ledger_entries, ledger_transactions, members

# Of the same length as an HMAC, so that nobody can tell them apart.
PSEUDONYM_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Eraser:
    """Erases what is personal in rows of awards and members, within the caller's transaction."""

    sealer: Sealer
    random_bytes: RandomBytes
    now: Callable[[], datetime]

    def pseudonym(self) -> str:
        """The HMAC of nobody."""
        return self.random_bytes(PSEUDONYM_BYTES).hex()

    def members_of_awards(self, tx: Connection, operation_ids: Sequence[str], *, pseudonym: str) -> None:
        """Who received these awards, and every free text about them; the ticket too, for it names its customer."""
        tx.execute(
            update(awards)
            .where(awards.c.operation_id.in_(operation_ids))
            .values(
                member_hmac=pseudonym,
                member_email_sealed=self.sealer.seal(""),
                note_state=case((awards.c.note_state == NoteState.DUE, NoteState.NONE), else_=awards.c.note_state),
                **_WORDS,
            )
        )
        self._words_elsewhere(tx, operation_ids)

    def agents_of_awards(self, tx: Connection, operation_ids: Sequence[str], *, pseudonym: str) -> None:
        """Which agent made these awards."""
        tx.execute(
            update(awards)
            .where(awards.c.operation_id.in_(operation_ids))
            .values(agent_hmac=pseudonym, agent_email_sealed=self.sealer.seal(""), fingerprint="")
        )

    def marks_of_awards(self, tx: Connection, operation_ids: Sequence[str]) -> None:
        """Who decided these awards."""
        sealed = self.sealer.seal("")
        tx.execute(update(awards).where(awards.c.operation_id.in_(operation_ids)).values(marked_by_sealed=sealed))

    def whole_awards(self, tx: Connection, operation_ids: Sequence[str]) -> None:
        """All that is personal in these awards, each made somebody else's of whom nothing else is known."""
        if not operation_ids:
            return
        nothing = self.sealer.seal("")
        known_agent = awards.c.agent_hmac != ""
        tx.execute(
            update(awards)
            .where(awards.c.operation_id == bindparam("erased_id"))
            .values(
                member_hmac=bindparam("member"),
                member_email_sealed=nothing,
                agent_hmac=case((known_agent, bindparam("agent")), else_=""),
                agent_email_sealed=case((known_agent, nothing), else_=None),
                marked_by_sealed=case((awards.c.marked_by_sealed.is_not(None), nothing), else_=None),
                note_state=case((awards.c.note_state == NoteState.DUE, NoteState.NONE), else_=awards.c.note_state),
                erased_at=self.now(),
                **_WORDS,
            ),
            [
                {"erased_id": operation_id, "member": self.pseudonym(), "agent": self.pseudonym()}
                for operation_id in operation_ids
            ],
        )
        self._words_elsewhere(tx, operation_ids)

    def member(self, tx: Connection, member_id: int) -> None:
        """A member of the built-in ledger becomes somebody unknown, with the same points; their old link leads
        nowhere."""
        tx.execute(
            update(members)
            .where(members.c.id == member_id)
            .values(email_hmac=self.pseudonym(), referral_code=new_referral_code(self.random_bytes), **self._nobody())
        )
        booked = select(ledger_entries.c.transaction_id).where(ledger_entries.c.member_id == member_id)
        self._words_of_bookings(tx, ledger_transactions.c.id.in_(booked))
        keep_latest(tx, members.c.id == member_id)

    def faces_of_members(self, tx: Connection, member_ids: Sequence[int]) -> None:
        """Members of the built-in ledger whom only their own address finds again: nothing here tells it any more."""
        tx.execute(update(members).where(members.c.id.in_(member_ids)).values(**self._nobody()))

    def _nobody(self) -> dict[str, Any]:
        return {
            "email_sealed": self.sealer.seal(""),
            "customer_id": None,
            "date_of_birth_sealed": None,
            "erased_at": self.now(),
        }

    def _words_elsewhere(self, tx: Connection, operation_ids: Sequence[str]) -> None:
        """What was said about these awards in other tables."""
        tx.execute(update(award_attempts).where(award_attempts.c.operation_id.in_(operation_ids)).values(answer=None))
        same = and_(
            ledger_transactions.c.store_id == awards.c.store_id,
            ledger_transactions.c.operation_id == awards.c.operation_id,
        )
        told = tx.execute(
            select(ledger_transactions.c.id, ledger_transactions.c.member_id)
            .join(awards, same)
            .where(awards.c.operation_id.in_(operation_ids))
        ).all()
        if told:
            self._words_of_bookings(tx, ledger_transactions.c.id.in_([row.id for row in told]))
            keep_latest(tx, members.c.id.in_({row.member_id for row in told}))

    @staticmethod
    def _words_of_bookings(tx: Connection, which: ColumnElement[bool]) -> None:
        """What agents said of these, all that may be about a person."""
        booked = ledger_transactions.c
        tx.execute(
            update(ledger_transactions).where(which, booked.kind == Kind.AWARD, booked.what != "").values(what="")
        )


# The fingerprint is a hash over member, agent and reason: whoever has the keys could try addresses against it.
_WORDS = {"reason": "", "told": None, "ticket_id": "", "fingerprint": ""}

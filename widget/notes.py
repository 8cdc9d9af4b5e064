"""The internal note on the ticket after an award: who added how much, why, and under which operation id.

Never in the agent's way: a job posts it and tries again for a day. The operation id is the message's `external_id`, so
a note whose answer was lost is found again instead of posted twice. A new message also makes Gorgias fetch the card
anew.
Source: https://developers.gorgias.com/reference/create-ticket-message
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from html import escape
from typing import Any

from sqlalchemy import exists, select, update

from loyalty.journal import AWARD_SETTLED, NOTE_IS_DUE, AwardState, NoteState
from oauth.accounts import Accounts
from oauth.gorgias_api import GorgiasApi, GorgiasError, GorgiasReason
from schemas.gorgias import Unreadable, read_external_id
from storage.database import Database
from storage.sealing import Sealer
from storage.tables import awards, jobs
from widget.connections import Connections, ConnectionState
from widget.sentences import amount
from widget.sentences import points as counted_points

AGAIN_AFTER_S = (1, 2, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)
GIVE_UP_AFTER = timedelta(days=1)


class NoteOutcome(StrEnum):
    """How one attempt at a note ended; also why a note was given up."""

    POSTED = "posted"
    NOT_DUE = "not_due"
    AGAIN = "again"
    REFUSED = "refused"
    FORBIDDEN = "forbidden"
    TICKET_GONE = "ticket_gone"
    CONNECTION_REMOVED = "connection_removed"
    TOO_LATE = "too_late"


_FINAL = {
    GorgiasReason.REFUSED: NoteOutcome.REFUSED,
    GorgiasReason.FORBIDDEN: NoteOutcome.FORBIDDEN,
    GorgiasReason.NOT_FOUND: NoteOutcome.TICKET_GONE,
    GorgiasReason.NOT_CONNECTED: NoteOutcome.CONNECTION_REMOVED,
}


@dataclass(frozen=True, kw_only=True)
class NoteResult:
    """`again_at` is set when the note must be tried again."""

    outcome: NoteOutcome
    again_at: datetime | None = None


class Notes:
    """Posts the notes that are due."""

    def __init__(
        self,
        database: Database,
        *,
        connections: Connections,
        accounts: Accounts,
        api_for: Callable[[int, str], GorgiasApi],
        sealer: Sealer,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._connections = connections
        self._accounts = accounts
        self._api_for = api_for
        self._sealer = sealer
        self._now = now

    def post(self, operation_id: str) -> NoteResult:
        """One attempt at the note of this award. May run twice: the second finds the first one's note."""
        with self._database.write() as tx:
            award = tx.execute(
                update(awards)
                .where(awards.c.operation_id == operation_id, awards.c.note_state == NoteState.DUE)
                .values(note_attempts=awards.c.note_attempts + 1)
                .returning(awards)
            ).one_or_none()
        if award is None:
            return NoteResult(outcome=NoteOutcome.NOT_DUE)
        connection = self._connections.by_id(award.connection_id)
        if connection is None or connection.state is not ConnectionState.ACTIVE:
            return self._give_up(award, NoteOutcome.CONNECTION_REMOVED)
        api = self._api_for(connection.account_id, connection.account_name)
        path = f"/api/tickets/{award.ticket_id}/messages"
        try:
            lost_before = award.note_attempts > 1
            if not (lost_before and _is_posted(api, path, _external_id(award))):
                api.post(path, self._body(award, sender=self._accounts.user_email(connection.account_id)))
        except (GorgiasError, Unreadable) as error:
            return self._after(error, award)
        return self._posted(award)

    def _after(self, error: GorgiasError | Unreadable, award: Any) -> NoteResult:
        now = self._now()
        pause_s: float = AGAIN_AFTER_S[min(award.note_attempts, len(AGAIN_AFTER_S)) - 1]
        if isinstance(error, GorgiasError):
            if error.reason is GorgiasReason.CONFLICT:
                return self._posted(award)
            # Of the other refusals only 400 is about the note itself; 408 and the like pass.
            final = error.reason in _FINAL and (error.reason is not GorgiasReason.REFUSED or error.status == 400)
            if final:
                return self._give_up(award, _FINAL[error.reason])
            pause_s = max(pause_s, error.retry_after_s or 0)
        if now - (award.note_due_at or award.created_at) > GIVE_UP_AFTER:
            return self._give_up(award, NoteOutcome.TOO_LATE)
        return NoteResult(outcome=NoteOutcome.AGAIN, again_at=now + timedelta(seconds=pause_s))

    def _posted(self, award: Any) -> NoteResult:
        return self._save(award, NoteOutcome.POSTED, note_state=NoteState.POSTED, note_reason=None)

    def _give_up(self, award: Any, outcome: NoteOutcome) -> NoteResult:
        return self._save(award, outcome, note_state=NoteState.GIVEN_UP, note_reason=outcome)

    def _save(self, award: Any, outcome: NoteOutcome, **values: Any) -> NoteResult:
        """Write down how it ended. An award that was decided meanwhile has another note to come, at once."""
        same = (awards.c.operation_id == award.operation_id, awards.c.state == award.state)
        with self._database.write() as tx:
            saved = tx.execute(update(awards).where(*same).values(**values)).rowcount == 1
        return NoteResult(outcome=outcome) if saved else NoteResult(outcome=NoteOutcome.AGAIN, again_at=self._now())

    def _body(self, award: Any, *, sender: str) -> dict[str, Any]:
        text = note_text(
            state=AwardState(award.state),
            points=award.points,
            credit_cents=award.credit_cents,
            told=award.told or "",
            reason=award.reason,
            agent=None if award.agent_email_sealed is None else self._sealer.open(award.agent_email_sealed) or None,
            proven=award.agent_proof == "proven",
            balance=award.balance_after,
            operation_id=award.operation_id,
            reverses=award.reverses,
        )
        return {
            "channel": "internal-note",
            "via": "api",
            "from_agent": True,
            "public": False,
            # Without one Gorgias takes the user of the token.
            **({"sender": {"email": sender}} if sender else {}),
            "body_text": text,
            "body_html": escape(text).replace("\n", "<br>"),
            "external_id": _external_id(award),
        }

    def forgotten(self, *, older_than: datetime, limit: int = 100) -> list[str]:
        """Awards made before `older_than` whose note is due and for which no job waits: for the sweep."""
        has_job = exists().where(jobs.c.name == AWARD_SETTLED, jobs.c.ref == awards.c.operation_id)
        with self._database.read() as tx:
            return list(
                tx.scalars(
                    select(awards.c.operation_id)
                    .where(NOTE_IS_DUE, awards.c.created_at < older_than, ~has_job)
                    .order_by(awards.c.created_at)
                    .limit(limit)
                )
            )


def note_text(
    *,
    state: AwardState,
    points: int,
    reason: str,
    agent: str | None,
    proven: bool,
    balance: int | None,
    operation_id: str,
    reverses: str | None,
    credit_cents: int = 0,
    told: str = "",
) -> str:
    """The note, as plain text. `agent` is the name the button claimed unless `proven`; `reverses` is what is undone."""
    who = "An agent" if agent is None else agent if proven else f"{agent} (as Gorgias names them)"
    what = amount(points_=points, cents=credit_cents)
    taken = points < 0 or credit_cents < 0
    if state is AwardState.REJECTED:
        lines = [
            f"Loyalty: {what} {'were not taken back' if taken else 'asked for by ' + who + ' were not added'}. "
            f"{'The program says: ' + told if told else 'An admin looked it up.'}"
        ]
    elif state is AwardState.NEEDS_REVIEW:
        lines = [
            f"Loyalty: whether {what} asked for by {who} {'were taken back' if taken else 'were added'} could not be "
            "confirmed. An admin can look it up and decide under Activity in Tallydesk. Until then, do not repeat it."
        ]
    else:
        now = "" if balance is None else f" {'Points' if credit_cents else 'New'} balance: {counted_points(balance)}."
        lines = [f"Loyalty: {who} {'took back' if taken else 'added'} {what}.{now}"]
    if reason and reverses is None:
        lines.append(f"Reason: {reason}")
    if reverses is not None:
        lines.append(f"Undo of {reverses}")
    lines.append(f"Operation: {operation_id}")
    return "\n".join(lines)


def _external_id(award: Any) -> str:
    """What the note is found by: an award in review gets a second one when it is decided."""
    operation_id: str = award.operation_id
    return operation_id if award.state == AwardState.APPLIED else f"{operation_id}-{award.state}"


def _is_posted(api: GorgiasApi, path: str, external_id: str) -> bool:
    return any(read_external_id(message) == external_id for message in api.list(path))

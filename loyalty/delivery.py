"""Brings an award to a program elsewhere exactly once, although the program would count it as often as it is sent.

Not sent → may be sent. Taken → applied. Refused → rejected. Anything else is *unknown*: the program is asked whether
it has the operation id before anything is sent again, and nothing is sent before the program can no longer be working
on the attempt. What cannot be told after five attempts, or a day, is left to a person.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from time import monotonic
from typing import Any

import structlog

from loyalty.attempts import Attempt, AttemptKind, AttemptOutcome
from loyalty.journal import UNSETTLED, AwardState, Journal, Sending, SettledBy
from loyalty.members import Members
from loyalty.program import (
    LoyaltyProgram,
    OutcomeUnknown,
    PointsEvent,
    ProgramKind,
    ProgramReason,
    ProgramRefused,
    ProgramUnavailable,
    Store,
    UnknownMember,
)
from storage.sealing import RandomBytes

MAX_SENDS = 5
GIVE_UP_AFTER = timedelta(days=1)
# Of the ten seconds in which an agent has an answer, what is left for sending after the member was read.
SEND_WITHIN_S = 7.0
LOOK_WITHIN_S = 6.0
# How often an agent's award waits for the program, and what must be left of their time after the pause.
MOST_PAUSES, PAUSE_MARGIN_S = 2, 2.0
# Longer than a look or an attempt of the worker takes, with all its pages.
LOOK_LEASE = timedelta(seconds=90)
# Looks that find an award absent before it is sent again. All but one of the pauses between them fill the time in which
# the program may still commit, so that a clock that jumps once, and makes one pause vanish, does not cut it short.
ABSENT_LOOKS = 6
TRY_AGAIN = timedelta(seconds=10)
TRY_AGAIN_LATER = timedelta(seconds=60)
YOUNG = timedelta(minutes=5)

KEY_WAS_REFUSED = "The program refused the key of this store."
MEMBER_GONE = "The program does not know this customer."
NEVER_REACHED = "The program could not be reached for a day."

log = structlog.get_logger()


class Confirmation(StrEnum):
    """How one look at an unsettled award ended."""

    NOT_DUE = "not_due"
    APPLIED = "applied"
    FOUND = "found"
    REJECTED = "rejected"
    STILL_UNKNOWN = "still_unknown"
    ABSENT = "absent"
    PROGRAM_UNAVAILABLE = "program_unavailable"
    NEEDS_REVIEW = "needs_review"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an attempt or a look found, and when to look again, if at all. `error` is what the program objected."""

    outcome: Confirmation
    again_at: datetime | None = None
    points_balance: int | None = None
    error: Exception | None = None


class Delivery:
    """Sends awards to programs elsewhere and finds out what became of them."""

    def __init__(
        self,
        *,
        journal: Journal,
        programs: Mapping[ProgramKind, LoyaltyProgram],
        members: Members,
        now: Callable[[], datetime],
        random_bytes: RandomBytes,
        resend_after_s: float,
    ) -> None:
        self._journal = journal
        self._programs = programs
        self._members = members
        self._now = now
        self._random_bytes = random_bytes
        self._resend_after = timedelta(seconds=resend_after_s)

    def new_owner(self) -> str:
        """A name under which somebody holds an award."""
        return self._random_bytes(12).hex()

    def send_now(self, sending: Sending) -> Look:
        """Send what was just written down, while an agent waits."""
        return self._attempt(sending, within_s=SEND_WITHIN_S)

    def confirm(self, operation_id: str) -> Look:
        """One look at an unsettled award, by the worker: ask the program for it, and send it where that is safe."""
        owner = self.new_owner()
        row = self._journal.take(operation_id, owner=owner, lease=LOOK_LEASE)
        if row is None:
            return self._not_mine(operation_id)
        if row.state == AwardState.NEEDS_REVIEW:
            self._journal.release(operation_id, owner=owner)
            return Look(outcome=Confirmation.NOT_DUE)
        now = self._now()
        too_old = now - row.created_at > GIVE_UP_AFTER
        if too_old and row.attempt_ended_at is None:
            # Never sent at all, so there is nothing that a person would have to find out.
            self._journal.rejected(
                operation_id, told=NEVER_REACHED, by=SettledBy.TIME, owner=owner, agent_was_told=False
            )
            return Look(outcome=Confirmation.REJECTED)
        if row.state == AwardState.UNKNOWN and not self._may_resend(row, now=now):
            return self._look(row, owner=owner, last=too_old)
        # The key was replaced: found under the new one, it is there, but to send it again might give it twice, in two
        # stores. What certainly did not arrive is for the store that the connection shows now.
        moved = row.key_version != row.present_key_version and row.state == AwardState.UNKNOWN
        if moved or too_old or row.sends >= MAX_SENDS:
            return self._look(row, owner=owner, last=True)
        sending = self._journal.begin_again(operation_id, owner=owner)
        return self._not_mine(operation_id) if sending is None else self._attempt(sending, within_s=None)

    def look_again(self, operation_id: str) -> Look:
        """Ask the program for the award now, while a person waits; nothing is sent."""
        owner = self.new_owner()
        row = self._journal.take(operation_id, owner=owner, lease=LOOK_LEASE)
        if row is None:
            return self._not_mine(operation_id)
        try:
            return self._look(row, owner=owner, last=False, within_s=LOOK_WITHIN_S)
        finally:
            self._journal.release(operation_id, owner=owner)

    def seen(self, store: Store, *, operation_id: str, points: int, credit_cents: int) -> bool:
        """The program itself told of the points event of an award; True when that settled it."""
        row = self._journal.read(operation_id)
        if row is None or (row.store_id, row.points, row.credit_cents) != (store.id, points, credit_cents):
            return False
        told = Attempt(kind=AttemptKind.WEBHOOK, outcome=AttemptOutcome.APPLIED, at=self._now())
        if not self._journal.applied(operation_id, balance=None, by=SettledBy.WEBHOOK, attempt=told):
            if row.state == AwardState.REJECTED:
                # Decided otherwise, by the program's answer or by a person: theirs to put right.
                self._journal.contradicted(
                    operation_id, attempt=replace(told, outcome=AttemptOutcome.REJECTED_BUT_THERE)
                )
                log.error("award", outcome=AttemptOutcome.REJECTED_BUT_THERE, operation_id=operation_id)
            return False
        self._members.outdate(store, member_hmac=row.member_hmac)
        return True

    def _may_resend(self, row: Any, *, now: datetime) -> bool:
        """Whether the program can no longer be working on the last attempt."""
        looks: int = row.looks
        ended_at: datetime = row.attempt_ended_at
        return looks >= ABSENT_LOOKS and now >= ended_at + self._resend_after

    def _not_mine(self, operation_id: str) -> Look:
        row = self._journal.read(operation_id)
        if row is None or row.state not in UNSETTLED:
            return Look(outcome=Confirmation.NOT_DUE)
        return Look(outcome=Confirmation.NOT_DUE, again_at=row.lease_until or self._now() + TRY_AGAIN)

    def _look(self, row: Any, *, owner: str, last: bool, within_s: float | None = None) -> Look:
        """Look for the points event without sending; `last`: when it is absent, a person has to decide."""
        operation_id = row.operation_id
        store = Store(id=row.store_id, program=ProgramKind(row.program))
        begun = self._begin(AttemptKind.LOOKED)
        try:
            event = self._programs[store.program].find_points(
                store, event=self._journal.event_of(row), within_s=within_s
            )
        except ProgramUnavailable as error:
            attempt = begun.ended(error.reason, str(error))
            if last and self._now() - row.created_at > GIVE_UP_AFTER:
                self._journal.needs_review(operation_id, owner=owner, attempt=attempt)
                return Look(outcome=Confirmation.NEEDS_REVIEW)
            again_at = self._later(row.created_at, error)
            self._journal.look_later(operation_id, owner=owner, look_at=again_at, found_absent=False, attempt=attempt)
            return Look(outcome=Confirmation.PROGRAM_UNAVAILABLE, again_at=again_at, error=error)
        if event is not None:
            attempt = begun.ended(AttemptOutcome.FOUND, _balance(event))
            return self._applied(
                store, row.member_hmac, operation_id, event, by=SettledBy.FOUND, owner=owner, attempt=attempt
            )
        attempt = begun.ended(AttemptOutcome.ABSENT)
        if last:
            self._journal.needs_review(operation_id, owner=owner, attempt=attempt)
            return Look(outcome=Confirmation.NEEDS_REVIEW)
        again_at = self._now() + self._resend_after / (ABSENT_LOOKS - 1)
        self._journal.look_later(operation_id, owner=owner, look_at=again_at, found_absent=True, attempt=attempt)
        return Look(outcome=Confirmation.ABSENT, again_at=again_at)

    def _attempt(self, sending: Sending, *, within_s: float | None) -> Look:
        """Send once and write down what came of it. `within_s` as for LoyaltyProgram."""
        operation_id, owner = sending.operation_id, sending.owner
        agent_waits = within_s is not None
        begun = self._begin(AttemptKind.SENT)
        try:
            event = self._send(sending, within_s=within_s)
        except OutcomeUnknown as error:
            log.warning("award", outcome=Confirmation.STILL_UNKNOWN, reason=error.reason, operation_id=operation_id)
            look_at = self._journal.unknown(operation_id, owner=owner, attempt=begun.ended(error.reason, str(error)))
            return Look(outcome=Confirmation.STILL_UNKNOWN, again_at=look_at, error=error)
        except ProgramUnavailable as error:
            attempt = begun.ended(error.reason, str(error))
            if agent_waits and error.reason is ProgramReason.KEY_REFUSED:
                return self._rejected(sending, KEY_WAS_REFUSED, error, agent_was_told=True, attempt=attempt)
            look_at = self._later(sending.event.asked_at or self._now(), error)
            self._journal.not_sent(
                operation_id,
                owner=owner,
                look_at=look_at,
                attempt=attempt,
                refused_for_now=error.reason is ProgramReason.BUSY,
            )
            return Look(outcome=Confirmation.PROGRAM_UNAVAILABLE, again_at=look_at, error=error)
        except UnknownMember as error:
            attempt = begun.ended(AttemptOutcome.MEMBER_NOT_FOUND)
            if sending.sends > 1:
                # They were known when it was first sent, which may have counted: not ours to deny.
                self._journal.needs_review(operation_id, owner=owner, attempt=attempt)
                return Look(outcome=Confirmation.NEEDS_REVIEW)
            return self._rejected(sending, MEMBER_GONE, error, agent_was_told=agent_waits, attempt=attempt)
        except ProgramRefused as error:
            attempt = begun.ended(error.reason, str(error))
            return self._rejected(sending, error.told or str(error), error, agent_was_told=agent_waits, attempt=attempt)
        return self._applied(
            sending.store,
            sending.member_hmac,
            operation_id,
            event,
            by=SettledBy.ANSWER,
            owner=owner,
            attempt=begun.ended(AttemptOutcome.APPLIED, _balance(event)),
        )

    def _send(self, sending: Sending, *, within_s: float | None) -> PointsEvent:
        """The program's answer. Where it asks for a pause that the agent can bear, it is asked again."""
        program = self._programs[sending.store.program]
        event = sending.event
        began = monotonic()
        refusal: ProgramUnavailable | None = None
        for _ in range(MOST_PAUSES + 1):
            # Whoever takes over may send it from now on.
            if self._now() >= sending.lease_until:
                break
            left_s = None if within_s is None else within_s - (monotonic() - began)
            try:
                return program.add_points(sending.store, event=event, within_s=left_s)
            except OutcomeUnknown:
                raise
            except ProgramUnavailable as error:
                # Once it was told to wait, the award has been at the program: that is what must be remembered.
                if refusal is None or error.reason is ProgramReason.BUSY:
                    refusal = error
                bearable = left_s is not None and (error.retry_after_s or 0.0) + PAUSE_MARGIN_S < left_s
                if error.reason is not ProgramReason.BUSY or not bearable:
                    break
                # The gate keeps the pause.
                event = replace(event, first_send=False)
        raise refusal or ProgramUnavailable(ProgramReason.NOT_REACHED, "There was no time left to send it.")

    def _applied(
        self,
        store: Store,
        member_hmac: str,
        operation_id: str,
        event: PointsEvent,
        *,
        by: SettledBy,
        owner: str,
        attempt: Attempt,
    ) -> Look:
        balance = event.points_balance
        if not self._journal.applied(operation_id, balance=balance, by=by, owner=owner, attempt=attempt):
            # Settled meanwhile by somebody else: the program's own webhook, or a person.
            row = self._journal.read(operation_id)
            if row is None or row.state != AwardState.APPLIED:
                log.error("award", outcome=AttemptOutcome.REJECTED_BUT_THERE, operation_id=operation_id)
                return Look(outcome=Confirmation.REJECTED)
        self._members.took(store, member_hmac=member_hmac, member=event.member)
        return Look(
            outcome=Confirmation.FOUND if by is SettledBy.FOUND else Confirmation.APPLIED,
            points_balance=event.points_balance,
        )

    def _rejected(
        self, sending: Sending, told: str, error: Exception, *, agent_was_told: bool, attempt: Attempt
    ) -> Look:
        self._journal.rejected(
            sending.operation_id,
            told=told[:200],
            by=SettledBy.ANSWER,
            owner=sending.owner,
            agent_was_told=agent_was_told,
            attempt=attempt,
        )
        # Whatever the card says of this member, the program has just said something else.
        self._members.outdate(sending.store, member_hmac=sending.member_hmac)
        return Look(outcome=Confirmation.REJECTED, error=error)

    def _begin(self, kind: AttemptKind) -> _Begun:
        return _Begun(kind=kind, at=self._now(), began=monotonic())

    def _later(self, created_at: datetime, error: ProgramUnavailable) -> datetime:
        now = self._now()
        pause = TRY_AGAIN if now - created_at < YOUNG else TRY_AGAIN_LATER
        asked = timedelta(seconds=error.retry_after_s or 0)
        return now + max(pause, asked)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """An attempt under way."""

    kind: AttemptKind
    at: datetime
    began: float

    def ended(self, outcome: str, answer: str = "") -> Attempt:
        """The attempt as it is kept."""
        took_ms = round((monotonic() - self.began) * 1000)
        return Attempt(kind=self.kind, outcome=outcome, at=self.at, took_ms=took_ms, answer=answer)


def _balance(event: PointsEvent) -> str:
    """What the program told afterwards."""
    if event.points_balance is None:
        return "The balance could not be read."
    return f"The balance is {event.points_balance:,} now."

"""The journal that makes an award happen once.

Every award is written down before it is sent, under an operation id of ours, and its outcome after. On the embedded
ledger intent, entries and outcome are one transaction. A double click is recognised by the card's one-time key, or,
where the helpdesk does not echo it, by a short window over connection, ticket, member, points and agent.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import b32encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, insert, select, update

from loyalty.award_key import AwardKey
from loyalty.program import (
    LoyaltyProgram,
    Member,
    MemberStatus,
    NewPointsEvent,
    PointsEvent,
    ProgramKind,
    Store,
    UnknownMember,
)
from storage.database import Database
from storage.queue import defer
from storage.sealing import Hasher, RandomBytes, Sealer
from storage.tables import awards, stores

# The job that follows a settled award; what it does is decided above, where a helpdesk is known.
AWARD_SETTLED = "award_settled"


class AwardState(StrEnum):
    """Where an award stands. `unknown` is a state, not an error: it may have happened."""

    PENDING = "pending"
    SENDING = "sending"
    APPLIED = "applied"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    NEEDS_REVIEW = "needs_review"


SETTLED = (AwardState.APPLIED, AwardState.REJECTED)


class NoteState(StrEnum):
    """Where the internal note about an award stands."""

    NONE = "none"
    DUE = "due"
    POSTED = "posted"
    GIVEN_UP = "given_up"


class Status(StrEnum):
    """What the agent is told."""

    APPLIED = "applied"
    ALREADY_APPLIED = "already_applied"
    BEING_CONFIRMED = "being_confirmed"
    REJECTED = "rejected"


class Refusal(StrEnum):
    """Why an award was not accepted."""

    MEMBER_MISSING = "member_missing"
    MEMBER_NOT_FOUND = "member_not_found"
    MEMBER_MISMATCH = "member_mismatch"
    MEMBER_EXCLUDED = "member_excluded"
    MEMBER_GUEST = "member_guest"
    POINTS_ABOVE_AWARD_CAP = "points_above_award_cap"
    POINTS_ABOVE_AGENT_CAP = "points_above_agent_cap"
    POINTS_ABOVE_CONNECTION_CAP = "points_above_connection_cap"
    REASON_NOT_ALLOWED = "reason_not_allowed"
    KEY_REUSED = "key_reused"
    NOT_APPLIED = "not_applied"
    ALREADY_UNDONE = "already_undone"
    AWARD_NOT_FOUND = "award_not_found"


class AwardRefused(Exception):
    """Nothing was added. `reason` is the word; the rest are the facts that a sentence about it needs.

    `points` were asked for or are already used up, `limit` is what is allowed, `wait_s` is when to try again.
    """

    def __init__(
        self,
        reason: Refusal,
        *,
        points: int = 0,
        limit: int = 0,
        wait_s: int = 0,
        allowed_reasons: tuple[str, ...] = (),
        agent_known: bool = True,
    ) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.points = points
        self.limit = limit
        self.wait_s = wait_s
        self.allowed_reasons = allowed_reasons
        self.agent_known = agent_known


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an award comes from. `agent_proven` tells a signed-in agent from a name the button merely claims."""

    connection_id: int
    channel: str
    ticket_id: str = ""
    agent_email: str | None = None
    agent_proven: bool = False


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a connection allows. Points per award, per agent and UTC day, per connection and UTC day."""

    max_points_per_award: int
    max_points_per_agent_per_day: int
    max_points_per_day: int
    reasons: tuple[str, ...] = ()
    allow_guests: bool = False


@dataclass(frozen=True, kw_only=True)
class AwardRequest:
    """What was asked. `emails` are readings of one customer's address, most likely first; `points` is at least 1."""

    emails: tuple[str, ...]
    points: int
    origin: Origin
    reason: str = ""
    key: AwardKey | None = None


@dataclass(frozen=True, kw_only=True)
class AwardResult:
    """What became of it: `points` (negative for an undo) and the last balance known.

    `wait_s` is set on a repetition: after so many seconds the same request counts as a new award.
    """

    status: Status
    points: int
    points_balance: int
    operation_id: str
    wait_s: int = 0


class Awards:
    """Awards and undoes, for every store."""

    def __init__(
        self,
        database: Database,
        *,
        programs: Mapping[ProgramKind, LoyaltyProgram],
        sealer: Sealer,
        hasher: Hasher,
        now: Callable[[], datetime],
        random_bytes: RandomBytes,
        double_click_window_s: int,
    ) -> None:
        self._database = database
        self._programs = programs
        self._sealer = sealer
        self._hasher = hasher
        self._now = now
        self._random_bytes = random_bytes
        self._window = timedelta(seconds=double_click_window_s)

    def award(self, store: Store, *, request: AwardRequest, rules: Rules) -> AwardResult:
        """Add points once. Raises AwardRefused when nothing was added."""
        member = self._find_member(store, request)
        member_hmac = self._hasher.email(member.email)
        asked = _Asked(
            member_hmac=member_hmac,
            agent_hmac=self._agent_hmac(request.origin),
            fingerprint=self._fingerprint(request, member_hmac),
            request=request,
        )
        now = self._now()
        with self._database.write() as tx:
            self._database.lock(tx, f"connection {request.origin.connection_id}")
            self._database.lock(tx, f"member {store.id} {member_hmac}")
            earlier, key_is_free = self._earlier(tx, asked, now=now)
            if earlier is None:
                _check_request(request, rules)
                _check_member(member, rules)
                self._check_caps(tx, asked, rules=rules, now=now)
                event = self._book(
                    tx,
                    store,
                    email=member.email,
                    asked=asked,
                    what=request.reason or "Added by support",
                    award_key_nonce=request.key.nonce if request.key and key_is_free else None,
                    now=now,
                )
        if earlier is not None:
            # Read again: what the first press added was not there yet when both read the member at once.
            member = self._find_member(store, request)
            return AwardResult(
                status=Status.ALREADY_APPLIED if earlier.state in SETTLED else Status.BEING_CONFIRMED,
                points=earlier.points,
                points_balance=member.points_balance,
                operation_id=earlier.operation_id,
                wait_s=self._wait_s(earlier, now=now),
            )
        return AwardResult(
            status=Status.APPLIED,
            points=request.points,
            points_balance=event.points_balance,
            operation_id=event.operation_id,
        )

    def undo(self, *, operation_id: str, origin: Origin) -> AwardResult:
        """Take an applied award back, once, by an award of its own with negative points. Raises AwardRefused."""
        if not is_operation_id(operation_id):
            raise AwardRefused(Refusal.AWARD_NOT_FOUND)
        now = self._now()
        with self._database.write() as tx:
            self._database.lock(tx, f"connection {origin.connection_id}")
            row = tx.execute(
                select(awards).where(
                    awards.c.operation_id == operation_id,
                    awards.c.connection_id == origin.connection_id,
                )
            ).one_or_none()
            if row is None:
                raise AwardRefused(Refusal.AWARD_NOT_FOUND)
            if row.state != AwardState.APPLIED or row.reverses is not None:
                raise AwardRefused(Refusal.NOT_APPLIED)
            if tx.scalar(select(awards.c.operation_id).where(awards.c.reverses == operation_id)) is not None:
                raise AwardRefused(Refusal.ALREADY_UNDONE)
            self._database.lock(tx, f"member {row.store_id} {row.member_hmac}")
            # Its note belongs on the ticket of the award it takes back.
            origin = replace(origin, ticket_id=row.ticket_id)
            store = Store(id=row.store_id, program=_program_of(tx, row.store_id))
            email = self._sealer.open(row.member_email_sealed)
            reason = "Undo"
            request = AwardRequest(emails=(email,), points=-row.points, origin=origin, reason=reason)
            event = self._book(
                tx,
                store,
                email=email,
                asked=_Asked(
                    member_hmac=row.member_hmac,
                    agent_hmac=self._agent_hmac(origin),
                    fingerprint=self._fingerprint(request, row.member_hmac),
                    request=request,
                ),
                what=reason,
                reverses=operation_id,
                now=now,
            )
        return AwardResult(
            status=Status.APPLIED,
            points=-row.points,
            points_balance=event.points_balance,
            operation_id=event.operation_id,
        )

    def _find_member(self, store: Store, request: AwardRequest) -> Member:
        program = self._programs[store.program]
        emails = request.emails
        if not emails:
            email = None if request.key is None else program.email_of(store, member_hmac=request.key.member_hmac)
            if email is None:
                raise AwardRefused(Refusal.MEMBER_MISSING)
            emails = (email,)
        elif request.key is not None:
            # Of several readings the card's is the one that was shown.
            emails = tuple(email for email in emails if self._hasher.email(email) == request.key.member_hmac)
            if not emails:
                raise AwardRefused(Refusal.MEMBER_MISMATCH)
        for email in emails:
            member = program.member(store, email=email)
            if member is not None:
                return member
        raise AwardRefused(Refusal.MEMBER_NOT_FOUND)

    def _earlier(self, tx: Connection, asked: _Asked, *, now: datetime) -> tuple[Any, bool]:
        """The earlier award that this request repeats, or None; and whether its key may still be recorded.

        An award that was rejected or undone added nothing: it stands in nobody's way.
        """
        request = asked.request
        if request.key is not None:
            used = tx.execute(
                select(awards, _STANDS.label("stands")).where(
                    awards.c.connection_id == request.origin.connection_id,
                    awards.c.award_key_nonce == request.key.nonce,
                )
            ).one_or_none()
            if used is None:
                return None, True
            if used.stands and (now - used.created_at < self._window or used.state not in SETTLED):
                if used.fingerprint != asked.fingerprint:
                    raise AwardRefused(Refusal.KEY_REUSED, points=used.points, wait_s=self._wait_s(used, now=now))
                return used, False
        earlier = tx.execute(
            select(awards)
            .where(
                awards.c.connection_id == request.origin.connection_id,
                awards.c.ticket_id == request.origin.ticket_id,
                awards.c.member_hmac == asked.member_hmac,
                awards.c.points == request.points,
                awards.c.agent_hmac == asked.agent_hmac,
                awards.c.reverses.is_(None),
                (awards.c.created_at > now - self._window) | awards.c.state.not_in(SETTLED),
                _STANDS,
            )
            .order_by(awards.c.created_at.desc())
            .limit(1)
        ).one_or_none()
        return earlier, False

    def _wait_s(self, earlier: Any, *, now: datetime) -> int:
        """Seconds until the window of `earlier` has passed, at least 1."""
        left: timedelta = earlier.created_at + self._window - now
        return max(1, math.ceil(left.total_seconds()))

    def _check_caps(self, tx: Connection, asked: _Asked, *, rules: Rules, now: datetime) -> None:
        """Refuse what would exceed a day's cap. Unsettled awards count; undone ones do not; the day is UTC's."""
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        request = asked.request
        today = select(func.coalesce(func.sum(awards.c.points), 0)).where(
            awards.c.connection_id == request.origin.connection_id,
            awards.c.created_at >= midnight,
            awards.c.reverses.is_(None),
            _STANDS,
        )
        by_agent = int(tx.scalar(today.where(awards.c.agent_hmac == asked.agent_hmac)) or 0)
        if by_agent + request.points > rules.max_points_per_agent_per_day:
            raise AwardRefused(
                Refusal.POINTS_ABOVE_AGENT_CAP,
                points=by_agent,
                limit=rules.max_points_per_agent_per_day,
                agent_known=request.origin.agent_email is not None,
            )
        by_connection = int(tx.scalar(today) or 0)
        if by_connection + request.points > rules.max_points_per_day:
            raise AwardRefused(
                Refusal.POINTS_ABOVE_CONNECTION_CAP, points=by_connection, limit=rules.max_points_per_day
            )

    def _book(
        self,
        tx: Connection,
        store: Store,
        *,
        email: str,
        asked: _Asked,
        what: str,
        now: datetime,
        award_key_nonce: str | None = None,
        reverses: str | None = None,
    ) -> PointsEvent:
        """Intent, points event and outcome, in one transaction."""
        operation_id = self._new_operation_id()
        self._write_intent(
            tx,
            store,
            operation_id=operation_id,
            email=email,
            asked=asked,
            award_key_nonce=award_key_nonce,
            reverses=reverses,
            now=now,
        )
        points = NewPointsEvent(
            operation_id=operation_id, email=email, points=asked.request.points, what=what, reverses=reverses
        )
        try:
            event = self._programs[store.program].add_points(store, event=points, within=tx)
        except UnknownMember as error:
            # Gone between reading and booking; leaving the transaction undoes the intent too.
            raise AwardRefused(Refusal.MEMBER_NOT_FOUND) from error
        self._settle(tx, operation_id, balance=event.points_balance, now=now)
        return event

    def _write_intent(
        self,
        tx: Connection,
        store: Store,
        *,
        operation_id: str,
        email: str,
        asked: _Asked,
        now: datetime,
        award_key_nonce: str | None,
        reverses: str | None,
    ) -> None:
        origin = asked.request.origin
        agent = origin.agent_email
        tx.execute(
            insert(awards).values(
                operation_id=operation_id,
                store_id=store.id,
                connection_id=origin.connection_id,
                state=AwardState.PENDING,
                member_hmac=asked.member_hmac,
                member_email_sealed=self._sealer.seal(email),
                points=asked.request.points,
                reason=asked.request.reason,
                channel=origin.channel,
                ticket_id=origin.ticket_id,
                agent_hmac=asked.agent_hmac,
                agent_email_sealed=None if agent is None else self._sealer.seal(agent),
                agent_proof="proven" if origin.agent_proven else "claimed",
                award_key_nonce=award_key_nonce,
                fingerprint=asked.fingerprint,
                reverses=reverses,
                created_at=now,
                note_state=NoteState.NONE,
            )
        )

    def _settle(self, tx: Connection, operation_id: str, *, balance: int, now: datetime) -> None:
        """The program took the award; what follows from it is asked for in the same transaction."""
        ticket_id = tx.execute(
            update(awards)
            .where(awards.c.operation_id == operation_id)
            .values(state=AwardState.APPLIED, balance_after=balance, settled_at=now)
            .returning(awards.c.ticket_id)
        ).scalar_one()
        if ticket_id:
            tx.execute(update(awards).where(awards.c.operation_id == operation_id).values(note_state=NoteState.DUE))
            defer(tx, AWARD_SETTLED, operation_id, run_at=now)

    def _agent_hmac(self, origin: Origin) -> str:
        return "" if origin.agent_email is None else self._hasher.email(origin.agent_email)

    def _fingerprint(self, request: AwardRequest, member_hmac: str) -> str:
        body = [
            member_hmac,
            request.points,
            request.reason,
            request.origin.ticket_id,
            self._agent_hmac(request.origin),
        ]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()

    def _new_operation_id(self) -> str:
        return "td_" + b32encode(self._random_bytes(15)).decode().lower()


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request with what identifies it at rest."""

    request: AwardRequest
    member_hmac: str
    agent_hmac: str
    fingerprint: str


def is_operation_id(text: str) -> bool:
    """Whether `text` has the form of an operation id."""
    return re.fullmatch(r"td_[a-z2-7]{24}", text) is not None


def _check_request(request: AwardRequest, rules: Rules) -> None:
    if request.points > rules.max_points_per_award:
        raise AwardRefused(Refusal.POINTS_ABOVE_AWARD_CAP, points=request.points, limit=rules.max_points_per_award)
    if rules.reasons and request.reason and request.reason not in rules.reasons:
        raise AwardRefused(Refusal.REASON_NOT_ALLOWED, allowed_reasons=rules.reasons)


def _check_member(member: Member, rules: Rules) -> None:
    if member.status is MemberStatus.EXCLUDED:
        raise AwardRefused(Refusal.MEMBER_EXCLUDED)
    if member.status is MemberStatus.GUEST and not rules.allow_guests:
        raise AwardRefused(Refusal.MEMBER_GUEST)


def _program_of(tx: Connection, store_id: int) -> ProgramKind:
    return ProgramKind(tx.execute(select(stores.c.program).where(stores.c.id == store_id)).scalar_one())


_undo = awards.alias("undo")
# Neither rejected nor undone: such an award counts towards limits and makes another press a repetition.
_STANDS: ColumnElement[bool] = and_(
    awards.c.state != AwardState.REJECTED, ~exists().where(_undo.c.reverses == awards.c.operation_id)
)

"""Awards as agents ask for them: who may have how much, what is a repetition, and what becomes of the rest.

Every award is written into the journal before it is sent, under an operation id of ours. On the embedded ledger intent,
entries and outcome are one transaction; to a program elsewhere it is delivered after. A double click is recognised by
the card's one-time key, or, where the helpdesk does not echo it, by a short window over connection, ticket, member,
points and agent.
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
from operator import attrgetter
from typing import Any

import structlog
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.exc import SQLAlchemyError

from loyalty.attempts import Attempt, AttemptKind, AttemptOutcome, write_attempt
from loyalty.award_key import AwardKey
from loyalty.delivery import LOOK_WITHIN_S, Confirmation, Delivery, Look
from loyalty.journal import IS_OPEN, SETTLED, AwardState, Journal, Sending, SettledBy, what_of, written_out
from loyalty.members import Members
from loyalty.program import (
    LoyaltyProgram,
    Member,
    MemberStatus,
    NewPointsEvent,
    ProgramKind,
    ProgramUnavailable,
    Store,
    UnknownMember,
)
from storage.database import Database
from storage.sealing import CannotOpen, Hasher, RandomBytes, Sealer
from storage.statements import ask, run
from storage.tables import awards

log = structlog.get_logger()


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
    CREDIT_NOT_ALLOWED = "credit_not_allowed"
    CREDIT_ABOVE_AWARD_CAP = "credit_above_award_cap"
    CREDIT_ABOVE_CONNECTION_CAP = "credit_above_connection_cap"
    PROGRAM_REFUSED = "program_refused"
    NOT_IN_REVIEW = "not_in_review"
    NOT_UNDER_THIS_KEY = "not_under_this_key"
    ERASED = "erased"


class AwardRefused(Exception):
    """Nothing was added. `reason` is the word; the rest are the facts that a sentence about it needs.

    `points` were asked for or are already used up, `limit` is what is allowed (both in hundredths where the reason is
    about store credit), `wait_s` is when to try again, `told` is what the program says. `undo`: an undo was asked for.
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
        told: str = "",
        undo: bool = False,
    ) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.points = points
        self.limit = limit
        self.wait_s = wait_s
        self.allowed_reasons = allowed_reasons
        self.agent_known = agent_known
        self.told = told
        self.undo = undo


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
    """What a connection allows. Points per award, per agent and UTC day, per connection and UTC day.

    Store credit in hundredths, per award and per connection and UTC day; 0 allows none.
    """

    max_points_per_award: int
    max_points_per_agent_per_day: int
    max_points_per_day: int
    reasons: tuple[str, ...] = ()
    allow_guests: bool = False
    max_credit_cents_per_award: int = 0
    max_credit_cents_per_day: int = 0


@dataclass(frozen=True, kw_only=True)
class AwardRequest:
    """What was asked. `emails` are readings of one customer's address, most likely first.

    Either `points` or `credit_cents` is at least 1, the other 0; an undo has the negative.
    """

    emails: tuple[str, ...]
    points: int
    origin: Origin
    credit_cents: int = 0
    reason: str = ""
    key: AwardKey | None = None


@dataclass(frozen=True, kw_only=True)
class AwardResult:
    """What became of it: `points` or `credit_cents` (negative for an undo) and the last balance known (None: none is).

    `balance_is_new` says that the balance was read after. `wait_s` is set on a repetition: after so many seconds the
    same request counts as a new award. `in_review`: it waits for a person's word.
    """

    status: Status
    points: int
    points_balance: int | None
    operation_id: str
    credit_cents: int = 0
    balance_is_new: bool = True
    wait_s: int = 0
    in_review: bool = False


class Awards:
    """Awards and undoes, for every store."""

    def __init__(
        self,
        database: Database,
        *,
        programs: Mapping[ProgramKind, LoyaltyProgram],
        members: Members,
        journal: Journal,
        delivery: Delivery,
        sealer: Sealer,
        hasher: Hasher,
        now: Callable[[], datetime],
        random_bytes: RandomBytes,
        double_click_window_s: int,
    ) -> None:
        self._database = database
        self._programs = programs
        self._members = members
        self._journal = journal
        self._delivery = delivery
        self._sealer = sealer
        self._hasher = hasher
        self._now = now
        self._random_bytes = random_bytes
        self._window = timedelta(seconds=double_click_window_s)

    def award(self, store: Store, *, request: AwardRequest, rules: Rules) -> AwardResult:
        """Add points once. Raises AwardRefused, or ProgramUnavailable, when nothing was added."""
        if not self._programs[store.program].remote:
            # The built-in ledger keeps points alone.
            rules = replace(rules, max_credit_cents_per_award=0)
        try:
            member = self._find_member(store, request)
        except (ProgramUnavailable, AwardRefused) as error:
            unread = error.reason is Refusal.MEMBER_NOT_FOUND or isinstance(error, ProgramUnavailable)
            repeated = self._repeated(store, request, now=self._now()) if unread else None
            if repeated is None:
                raise
            log.info("award", outcome="repeated_unread", reason=error.reason)
            return repeated
        trouble = self._trouble_of(store)
        member_hmac = self._hasher.email(member.email)
        asked = self._ask(store, request, member_hmac=member_hmac, email=member.email)
        locks = f"connection {request.origin.connection_id}", f"member {store.id} {member_hmac}"
        with self._database.write(*locks) as tx:
            # Not before the turn has come: an award is as old as what was known when it was written down.
            now = self._now()
            given_today = self._given_today(tx, asked, now=now)
            earlier, key_is_free = self._earlier(tx, asked, now=now)
            if earlier is None:
                _check_request(request, rules)
                _check_member(member, rules)
                (today,) = given_today()
                _check_caps(request, rules, today=today)
                if trouble is not None:
                    # A press that cannot be sent leaves no trace.
                    raise trouble
                booked = self._book(
                    tx,
                    store,
                    email=member.email,
                    asked=asked,
                    award_key_nonce=request.key.nonce if request.key and key_is_free else None,
                    now=now,
                )
        if earlier is not None:
            # Read again: what the first press added was not there yet when both read the member at once.
            member = self._find_member(store, request)
            # What a program elsewhere said before the first press is no balance of after it.
            is_new = not self._programs[store.program].remote or earlier.balance_after is not None
            return self._repetition(earlier, balance=member.points_balance, is_new=is_new, now=now)
        return self._deliver(booked, asked, balance=member.points_balance)

    def _repetition(self, earlier: Any, *, balance: int | None, is_new: bool, now: datetime) -> AwardResult:
        return AwardResult(
            status=Status.ALREADY_APPLIED if earlier.state in SETTLED else Status.BEING_CONFIRMED,
            points=earlier.points,
            credit_cents=earlier.credit_cents,
            points_balance=balance,
            balance_is_new=is_new,
            operation_id=earlier.operation_id,
            wait_s=self._wait_s(earlier, now=now),
            in_review=earlier.state == AwardState.NEEDS_REVIEW,
        )

    def _repeated(self, store: Store, request: AwardRequest, *, now: datetime) -> AwardResult | None:
        """The earlier award that this repeats, while the member cannot be read: nobody may hear then that nothing was
        added."""
        hmacs = [self._hasher.email(email) for email in request.emails]
        if not hmacs and request.key is not None:
            hmacs = [request.key.member_hmac]
        for member_hmac in hmacs:
            asked = self._ask(store, request, member_hmac=member_hmac, email="")
            with self._database.read() as tx:
                earlier, _ = self._earlier(tx, asked, now=now)
            if earlier is not None:
                return self._repetition(earlier, balance=earlier.balance_after, is_new=False, now=now)
        return None

    def undo(self, *, operation_id: str, origin: Origin) -> AwardResult:
        """Take an applied award back, once, by an award of its own with negative points.

        Raises AwardRefused, or ProgramUnavailable, when nothing was changed.
        """
        if not is_operation_id(operation_id):
            raise AwardRefused(Refusal.AWARD_NOT_FOUND)
        award = self._journal.read(operation_id)
        if award is None or award.connection_id != origin.connection_id:
            raise AwardRefused(Refusal.AWARD_NOT_FOUND)
        store = Store(id=award.store_id, program=ProgramKind(award.program))
        program = self._programs[store.program]
        self._require_member(award)
        program.check_ready(store)
        if award.key_version != award.present_key_version:
            # The key was replaced since: what is taken back must have been given in the store that it opens now.
            event = self._journal.event_of(award)
            if program.find_points(store, event=event, within_s=LOOK_WITHIN_S) is None:
                raise AwardRefused(Refusal.NOT_UNDER_THIS_KEY)
        with self._database.write(f"connection {origin.connection_id}") as tx:
            now = self._now()
            row = tx.execute(select(awards).where(awards.c.operation_id == operation_id)).one()
            if row.state != AwardState.APPLIED or row.reverses is not None:
                raise AwardRefused(Refusal.NOT_APPLIED)
            if tx.scalar(select(_undo.c.operation_id).where(_undo.c.reverses == operation_id, _NOT_REJECTED_UNDO)):
                raise AwardRefused(Refusal.ALREADY_UNDONE)
            self._database.lock(tx, f"member {row.store_id} {row.member_hmac}")
            # Its note belongs on the ticket of the award it takes back.
            origin = replace(origin, ticket_id=row.ticket_id)
            email = self._require_member(row)
            request = AwardRequest(
                emails=(email,), points=-row.points, credit_cents=-row.credit_cents, origin=origin, reason="Undo"
            )
            asked = self._ask(store, request, member_hmac=row.member_hmac, email=email)
            booked = self._book(tx, store, email=email, asked=asked, reverses=operation_id, now=now)
        return self._deliver(booked, asked, balance=None)

    def look_again(self, *, operation_id: str, connection_id: int) -> Look:
        """Ask the program once more what became of an award that waits for a person. Raises AwardRefused."""
        self._require_member(self._in_review(operation_id, connection_id))
        return self._delivery.look_again(operation_id)

    def mark(self, *, operation_id: str, connection_id: int, applied: bool, by: str) -> None:
        """A person, by their e-mail, says what became of an award in review. Raises AwardRefused."""
        row = self._in_review(operation_id, connection_id)
        with self._database.write() as tx:
            state = AwardState.APPLIED if applied else AwardState.REJECTED
            marked = self._journal.settle(
                tx, operation_id, state=state, by=SettledBy.PERSON, marked_by=by, only_from=AwardState.NEEDS_REVIEW
            )
            if marked:
                word = AttemptOutcome.MARKED_APPLIED if applied else AttemptOutcome.MARKED_NOT_APPLIED
                write_attempt(tx, operation_id, Attempt(kind=AttemptKind.PERSON, outcome=word, at=self._now()))
        if not marked:
            raise AwardRefused(Refusal.NOT_IN_REVIEW)
        store = Store(id=row.store_id, program=ProgramKind(row.program))
        self._members.outdate(store, member_hmac=row.member_hmac)

    def _send(self, sending: Sending) -> tuple[Look | None, Any]:
        """What sending brought, and where it was not applied the journal's row after it; nothing where trouble of our
        own came between.

        The award is written down by then and may have been sent: whatever goes wrong, it is being confirmed.
        """
        try:
            look = self._delivery.send_now(sending)
            applied = look.outcome is Confirmation.APPLIED
            return look, None if applied else self._journal.read(sending.operation_id)
        except (SQLAlchemyError, CannotOpen) as error:
            log.error("award", outcome="storage_trouble", kind=type(error).__name__, operation_id=sending.operation_id)
        except Exception:
            log.exception("award", outcome="crashed", operation_id=sending.operation_id)
        return None, None

    def _trouble_of(self, store: Store) -> ProgramUnavailable | None:
        """What is known to stand in the way of any award just now."""
        try:
            self._programs[store.program].check_ready(store)
        except ProgramUnavailable as error:
            return error
        return None

    def _require_member(self, row: Any) -> str:
        """The e-mail of the award's member. Raises AwardRefused when it was erased."""
        email = self._sealer.open(row.member_email_sealed)
        if not email:
            raise AwardRefused(Refusal.ERASED)
        return email

    def _in_review(self, operation_id: str, connection_id: int) -> Any:
        row = self._journal.read(operation_id) if is_operation_id(operation_id) else None
        if row is None or row.connection_id != connection_id:
            raise AwardRefused(Refusal.AWARD_NOT_FOUND)
        if row.state != AwardState.NEEDS_REVIEW:
            raise AwardRefused(Refusal.NOT_IN_REVIEW)
        return row

    def _deliver(self, booked: _Booked, asked: _Asked, *, balance: int | None) -> AwardResult:
        """The result of what was booked: at once where the program is ours, after sending where it lives elsewhere."""
        request = asked.request
        operation_id = booked.operation_id
        status, is_new = Status.APPLIED, True
        if booked.sending is None:
            balance = booked.points_balance
        else:
            status, is_new = Status.BEING_CONFIRMED, False
            look, row = self._send(booked.sending)
            if look is not None:
                # Somebody else may have settled what this attempt could not.
                state = AwardState.APPLIED if look.outcome is Confirmation.APPLIED else row and row.state
                if state == AwardState.REJECTED:
                    raise _refusal_of(look.error, told=row.told or "", undo=row.reverses is not None)
                if state == AwardState.APPLIED:
                    status, is_new = Status.APPLIED, look.points_balance is not None
                    balance = look.points_balance if is_new else balance
        return AwardResult(
            status=status,
            points=request.points,
            credit_cents=request.credit_cents,
            points_balance=balance,
            balance_is_new=is_new,
            operation_id=operation_id,
        )

    def _find_member(self, store: Store, request: AwardRequest) -> Member:
        emails = request.emails
        if not emails:
            email = None if request.key is None else self._members.email_of(store, member_hmac=request.key.member_hmac)
            if email is None:
                raise AwardRefused(Refusal.MEMBER_MISSING)
            emails = (email,)
        elif request.key is not None:
            # Of several readings the card's is the one that was shown.
            emails = tuple(email for email in emails if self._hasher.email(email) == request.key.member_hmac)
            if not emails:
                raise AwardRefused(Refusal.MEMBER_MISMATCH)
        member = self._members.first(store, emails=emails)
        if member is None:
            raise AwardRefused(Refusal.MEMBER_NOT_FOUND)
        return member

    def _earlier(self, tx: Connection, asked: _Asked, *, now: datetime) -> tuple[Any, bool]:
        """The earlier award that this request repeats, or None; and whether its key may still be recorded.

        An award that was rejected or undone added nothing: it stands in nobody's way.
        """
        request = asked.request
        if request.key is not None:
            rows = run(tx, _USED, connection_id=request.origin.connection_id, nonce=request.key.nonce)
            if not rows:
                return None, True
            used = rows[0]
            if used.stands and (now - used.created_at < self._window or used.state not in SETTLED):
                if used.fingerprint != asked.fingerprint:
                    raise AwardRefused(Refusal.KEY_REUSED, points=used.points, wait_s=self._wait_s(used, now=now))
                return used, False
        rows = run(
            tx,
            _ALIKE,
            store_id=asked.store_id,
            connection_id=request.origin.connection_id,
            ticket_id=request.origin.ticket_id,
            member_hmac=asked.member_hmac,
            points=request.points,
            credit_cents=request.credit_cents,
            agent_hmac=asked.agent_hmac,
            since=now - self._window,
        )
        return max(rows, key=attrgetter("created_at"), default=None), False

    def _wait_s(self, earlier: Any, *, now: datetime) -> int:
        """Seconds until the window of `earlier` has passed, at least 1."""
        left: timedelta = earlier.created_at + self._window - now
        return max(1, math.ceil(left.total_seconds()))

    def _given_today(self, tx: Connection, asked: _Asked, *, now: datetime) -> Callable[[], list[Any]]:
        """The sums of the connection's UTC day. Unsettled awards count; undone ones do not."""
        return ask(
            tx,
            _TODAY,
            connection_id=asked.request.origin.connection_id,
            agent_hmac=asked.agent_hmac,
            midnight=now.replace(hour=0, minute=0, second=0, microsecond=0),
        )

    def _book(
        self,
        tx: Connection,
        store: Store,
        *,
        email: str,
        asked: _Asked,
        now: datetime,
        award_key_nonce: str | None = None,
        reverses: str | None = None,
    ) -> _Booked:
        """The intent; for a program of ours also points event and outcome, all in one transaction."""
        operation_id = "td_" + b32encode(self._random_bytes(15)).decode().lower()
        request = asked.request
        award = {
            "operation_id": operation_id,
            "store_id": store.id,
            "connection_id": request.origin.connection_id,
            "member_hmac": asked.member_hmac,
            "member_email_sealed": asked.member_email_sealed,
            "points": request.points,
            "credit_cents": request.credit_cents,
            "reason": request.reason,
            "channel": request.origin.channel,
            "ticket_id": request.origin.ticket_id,
            "agent_hmac": asked.agent_hmac,
            "agent_email_sealed": asked.agent_email_sealed,
            "agent_proof": "proven" if request.origin.agent_proven else "claimed",
            "award_key_nonce": award_key_nonce,
            "fingerprint": asked.fingerprint,
            "reverses": reverses,
            "created_at": now,
        }
        program = self._programs[store.program]
        if program.remote:
            owner = self._delivery.new_owner()
            sending = self._journal.write_sending(tx, store=store, email=email, owner=owner, **award)
            return _Booked(operation_id=operation_id, sending=sending)
        event = NewPointsEvent(
            operation_id=operation_id,
            email=email,
            points=request.points,
            what=what_of(request.reason),
            reverses=reverses,
            first_send=True,
        )
        try:
            done = program.add_points(store, event=event, within=tx)
        except UnknownMember as error:
            # Gone between reading and booking.
            raise AwardRefused(Refusal.MEMBER_NOT_FOUND) from error
        self._journal.write_applied(tx, balance=done.points_balance, **award)
        return _Booked(operation_id=operation_id, points_balance=done.points_balance)

    def _ask(self, store: Store, request: AwardRequest, *, member_hmac: str, email: str) -> _Asked:
        """The request as it is kept. Sealed before a transaction begins: others wait for its end."""
        agent = request.origin.agent_email
        return _Asked(
            request=request,
            store_id=store.id,
            member_hmac=member_hmac,
            member_email_sealed=self._sealer.seal(email),
            agent_hmac=self._agent_hmac(request.origin),
            agent_email_sealed=None if agent is None else self._sealer.seal(agent),
            fingerprint=self._fingerprint(request, member_hmac),
        )

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
        if request.credit_cents:
            body.append(request.credit_cents)
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request with what identifies it at rest."""

    request: AwardRequest
    store_id: int
    member_hmac: str
    member_email_sealed: str
    agent_hmac: str
    agent_email_sealed: str | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class _Booked:
    """An award that was written down: done with (`points_balance`), or to be sent."""

    operation_id: str
    points_balance: int | None = None
    sending: Sending | None = None


def is_operation_id(text: str) -> bool:
    """Whether `text` has the form of an operation id."""
    return re.fullmatch(r"td_[a-z2-7]{24}", text) is not None


def _refusal_of(error: Exception | None, *, told: str, undo: bool) -> Exception:
    """What an agent hears about an award that the program did not take."""
    if isinstance(error, ProgramUnavailable):
        return error
    if isinstance(error, UnknownMember):
        return AwardRefused(Refusal.MEMBER_NOT_FOUND, undo=undo)
    return AwardRefused(Refusal.PROGRAM_REFUSED, told=told, undo=undo)


def _check_request(request: AwardRequest, rules: Rules) -> None:
    cents = request.credit_cents
    if cents and not rules.max_credit_cents_per_award:
        raise AwardRefused(Refusal.CREDIT_NOT_ALLOWED)
    if cents > rules.max_credit_cents_per_award:
        raise AwardRefused(Refusal.CREDIT_ABOVE_AWARD_CAP, points=cents, limit=rules.max_credit_cents_per_award)
    if request.points > rules.max_points_per_award:
        raise AwardRefused(Refusal.POINTS_ABOVE_AWARD_CAP, points=request.points, limit=rules.max_points_per_award)
    if rules.reasons and request.reason and request.reason not in rules.reasons:
        raise AwardRefused(Refusal.REASON_NOT_ALLOWED, allowed_reasons=rules.reasons)


def _check_member(member: Member, rules: Rules) -> None:
    if member.status is MemberStatus.EXCLUDED:
        raise AwardRefused(Refusal.MEMBER_EXCLUDED)
    if member.status is MemberStatus.GUEST and not rules.allow_guests:
        raise AwardRefused(Refusal.MEMBER_GUEST)


def _check_caps(request: AwardRequest, rules: Rules, *, today: Any) -> None:
    """Refuse what would exceed a day's cap, after the sums of `today`."""
    if request.credit_cents:
        if today.credit_cents + request.credit_cents > rules.max_credit_cents_per_day:
            raise AwardRefused(
                Refusal.CREDIT_ABOVE_CONNECTION_CAP,
                points=int(today.credit_cents),
                limit=rules.max_credit_cents_per_day,
            )
        return
    if today.by_agent + request.points > rules.max_points_per_agent_per_day:
        raise AwardRefused(
            Refusal.POINTS_ABOVE_AGENT_CAP,
            points=int(today.by_agent),
            limit=rules.max_points_per_agent_per_day,
            agent_known=request.origin.agent_email is not None,
        )
    if today.points + request.points > rules.max_points_per_day:
        raise AwardRefused(
            Refusal.POINTS_ABOVE_CONNECTION_CAP, points=int(today.points), limit=rules.max_points_per_day
        )


_undo = awards.alias("undo")
_NOT_REJECTED_UNDO = _undo.c.state != AwardState.REJECTED
# Neither rejected nor undone: such an award counts towards limits and makes another press a repetition. An undo that is
# still being confirmed has undone nothing yet.
_STANDS: ColumnElement[bool] = and_(
    awards.c.state != AwardState.REJECTED,
    ~exists().where(
        _undo.c.reverses == awards.c.operation_id,
        _undo.c.state == AwardState.APPLIED,
        # Says nothing new, but in the words of the partial index: SQLite does not use it otherwise.
        _undo.c.state != written_out(AwardState.REJECTED),
    ),
)
# Not `IS NULL`, for which SQLite would walk through all awards that are no undo instead of one connection's day.
_IS_NO_UNDO: ColumnElement[bool] = func.coalesce(awards.c.reverses, "") == ""

_USED = select(awards, _STANDS.label("stands")).where(
    awards.c.connection_id == bindparam("connection_id"), awards.c.award_key_nonce == bindparam("nonce")
)

_same = select(awards).where(
    awards.c.member_hmac == bindparam("member_hmac"),
    awards.c.ticket_id == bindparam("ticket_id"),
    awards.c.points == bindparam("points"),
    awards.c.credit_cents == bindparam("credit_cents"),
    func.coalesce(awards.c.agent_hmac, "") == bindparam("agent_hmac"),
    _IS_NO_UNDO,
    _STANDS,
)
# Each half found by an index of its own: the member's awards of the last minute, and what is open in the connection.
_ALIKE = union_all(
    _same.where(
        awards.c.store_id == bindparam("store_id"),
        awards.c.created_at > bindparam("since"),
        awards.c.connection_id + 0 == bindparam("connection_id"),
    ),
    _same.where(awards.c.connection_id == bindparam("connection_id"), IS_OPEN),
)

_first = awards.alias("first")
_given = awards.alias("given")
_whose = func.coalesce(_first.c.agent_hmac, _given.c.agent_hmac)
# The day's awards of a connection: points, those of one agent, and store credit in hundredths. An undo takes back what
# counted, if that was today, from whoever had given it; while it is being confirmed it has taken nothing.
_TODAY = (
    select(
        func.coalesce(func.sum(_given.c.points), 0).label("points"),
        func.coalesce(func.sum(case((_whose == bindparam("agent_hmac"), _given.c.points))), 0).label("by_agent"),
        func.coalesce(func.sum(_given.c.credit_cents), 0).label("credit_cents"),
    )
    .select_from(_given.outerjoin(_first, _first.c.operation_id == _given.c.reverses))
    .where(
        _given.c.connection_id == bindparam("connection_id"),
        _given.c.created_at >= bindparam("midnight"),
        _given.c.state != AwardState.REJECTED.value,
        or_(
            func.coalesce(_given.c.reverses, "") == "",
            and_(_given.c.state == AwardState.APPLIED.value, _first.c.created_at >= bindparam("midnight")),
        ),
    )
)

"""The Rivo client: one call at a time through the store's gate, over `outbound.Client`.

It sends what `rivo_wire` builds and gives back what `rivo_wire` reads. Each call holds to `call.within_s` from its turn
at the gate to the last byte of the answer, and is never repeated by itself: whoever calls knows whether it may be.
Every method raises ProgramUnavailable, OutcomeUnknown and ProgramRefused; after the second, and only then, a write may
have been done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from time import monotonic
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

import outbound
from loyalty import rivo_wire as wire
from loyalty.gate import BACKGROUND, Call, Gate, Lane
from loyalty.program import (
    NotOffered,
    OutcomeUnknown,
    ProgramError,
    ProgramReason,
    ProgramRefused,
    ProgramUnavailable,
    UnknownMember,
)
from loyalty.rivo_wire import (
    Cancellation,
    CreatedEvent,
    Customer,
    EarningRule,
    Fields,
    Membership,
    NewRivoEvent,
    NothingCame,
    Page,
    Paging,
    PointsEventRecord,
    Redemption,
    Request,
    Reward,
    VipTier,
)
from telemetry import PROGRAM_CALLS

log = structlog.get_logger()

T = TypeVar("T")

MAX_CURSOR_PAGES = 4_000  # a million customers
# How far clocks may differ, ours and Rivo's, when an event is looked for by time: a clock that is wrong by hours must
# not hide one, and what a member got in a day more is a page at most.
CLOCKS_DIFFER = timedelta(days=1)

FIND_WITHIN_S = 30.0

_FAILED = (
    ProgramReason.NOT_REACHED,
    ProgramReason.NO_ANSWER,
    ProgramReason.SERVER_ERROR,
    ProgramReason.UNREADABLE,
)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Whose data is asked for: the store's key, of `rivo_wire.clean_key`, and the name of its gate."""

    key: str = field(repr=False)
    gate: str


class RivoClient:
    """Rivo's merchant API, for all stores.

    https://developer-docs.rivo.io/reference
    """

    def __init__(
        self,
        base_url: str,
        *,
        client: outbound.Client,
        gate: Gate,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._client = client
        self._gate = gate
        self._now = now

    # -- reading

    def try_key(self, access: Access, *, call: Call = BACKGROUND) -> None:
        """Whether the key opens a store: returns, or raises; KEY_REFUSED when it does not."""

        def read(told: Any) -> None:
            if wire.read_page(told, asked=wire.first_page(Paging.OFFSET), read=wire.read_vip_tier) is None:
                raise _unreadable()

        self._ask(access, wire.try_key(), read=read, call=call)

    def customer(self, access: Access, identifier: str | int, *, call: Call = BACKGROUND) -> Customer | None:
        """The customer with this e-mail or Shopify id, or None. One with another e-mail than asked for is nobody."""
        found = self._ask(access, wire.customer(identifier), read=_one(wire.read_customer), call=call)
        if found is not None and not wire.same_customer(found, identifier):
            log.warning("program", program="rivo", outcome="another_customer", told_email=bool(found.email))
            return None
        return found

    def customers(
        self,
        access: Access,
        *,
        paging: Paging = Paging.CURSOR,
        page_size: int = wire.PAGE_SIZE,
        call: Call = BACKGROUND,
    ) -> Iterator[Customer]:
        """Every customer, page after page; `call` holds for each page. The offset ends after 125,000 with an error."""
        return self._list(
            access, wire.customers(), paging=paging, read=wire.read_customer, page_size=page_size, call=call
        )

    def vip_tiers(self, access: Access, *, call: Call = BACKGROUND) -> Iterator[VipTier]:
        """Every VIP tier."""
        return self._list(access, wire.vip_tiers(), read=wire.read_vip_tier, call=call)

    def vip_tier(self, access: Access, tier_id: int, *, call: Call = BACKGROUND) -> VipTier | None:
        """One VIP tier, or None."""
        return self._ask(access, wire.vip_tier(tier_id), read=_one(wire.read_vip_tier), call=call)

    def rewards(self, access: Access, *, purchase_type: str | None = None, call: Call = BACKGROUND) -> Iterator[Reward]:
        """Every reward, or those of one purchase type."""
        found = self._list(access, wire.rewards(purchase_type=purchase_type), read=wire.read_reward, call=call)
        # A row that does not say its type was chosen by Rivo.
        return (reward for reward in found if purchase_type is None or reward.purchase_type in ("", purchase_type))

    def earning_rules(self, access: Access, *, call: Call = BACKGROUND) -> Iterator[EarningRule]:
        """Every earning rule that has a title."""
        return self._list(access, wire.earning_rules(), read=wire.read_earning_rule, call=call)

    def points_events(
        self,
        access: Access,
        *,
        customer: str | int | None = None,
        newest_first: bool = True,
        page_size: int = wire.PAGE_SIZE,
        within_s: float | None = None,
        call: Call = BACKGROUND,
    ) -> Iterator[PointsEventRecord]:
        """The points events, of one customer or of all, hidden and revoked ones too.

        The order is what was asked for, not what is certain. A list that is not there at all is ProgramRefused: it
        must not be taken for an empty one. `within_s` holds for all pages together; beyond it, ProgramUnavailable.
        """
        return self._list(
            access,
            wire.points_events(of=customer, newest_first=newest_first),
            paging=Paging.OFFSET if newest_first else Paging.CURSOR,
            read=wire.read_points_event,
            must_exist=True,
            page_size=page_size,
            within_s=within_s,
            call=call,
        )

    def find_points_event(
        self,
        access: Access,
        operation_id: str,
        *,
        customer: str | int,
        since: datetime,
        taken: bool = False,
        call: Call = BACKGROUND,
    ) -> PointsEventRecord | None:
        """The customer's points event whose internal note carries the operation id; None when it is certainly absent.

        One that certainly goes the other way (`taken`: points were to be taken) is somebody's correction that quotes
        the note. The amount is not compared: should Rivo have changed it, it is there all the same.

        Looks from the newest back to `since`. It stops there only while the rows prove to come newest first and tell
        when they were created; otherwise it reads the whole list. A list that takes longer than an agent waits, or in
        the background than FIND_WITHIN_S, is ProgramUnavailable: who holds the award holds it for a limited time.
        """
        within_s = call.within_s if call.lane is Lane.AGENT else FIND_WITHIN_S
        before: tuple[datetime, int] | None = None
        in_order, rows = True, 0
        for record in self.points_events(access, customer=customer, within_s=within_s, call=call):
            if wire.carries(record, operation_id) and not wire.is_opposite(record, taken=taken):
                return record
            if not in_order or record.created_at is None or record.id is None:
                in_order = False
                continue
            place = (record.created_at, record.id)
            rows += 1
            in_order = before is None or (place[0] <= before[0] and place[1] < before[1])
            before = place
            # One row alone does not show which way the list goes.
            if in_order and rows > 1 and place[0] < since - CLOCKS_DIFFER:
                return None
        return None

    def redemptions(
        self, access: Access, *, customer: str | int, used: bool | None = None, call: Call = BACKGROUND
    ) -> Iterator[Redemption]:
        """A customer's redemptions, all or only those whose code was used, or was not."""
        found = self._list(access, wire.redemptions(of=customer, used=used), read=wire.read_redemption, call=call)
        return (redemption for redemption in found if used is None or redemption.used is used)

    def membership(self, access: Access, identifier: str | int, *, call: Call = BACKGROUND) -> Membership | None:
        """A customer's paid membership. No endpoint is known that tells it; `rivo_wire.read_membership` reads the
        shape that a vendor shows. Raises NotOffered."""
        raise NotOffered("Rivo has no known way to read a membership.")

    # -- writing

    def create_points_event(self, access: Access, event: NewRivoEvent, *, call: Call = BACKGROUND) -> CreatedEvent:
        """Write a points event: called twice, it is written twice. Raises UnknownMember as well."""
        return self._ask(access, wire.create_points_event(event), read=wire.read_created_event, call=call)

    def create_redemption(
        self,
        access: Access,
        *,
        customer: str | int,
        reward_id: int,
        points: int | None = None,
        credits: Decimal | None = None,
        call: Call = BACKGROUND,
    ) -> Redemption | None:
        """Spend points or store credit on a reward; amounts are for rewards of any size. Not idempotent.

        None when it was done and Rivo did not tell what; `redemptions` will. Raises UnknownMember as well.
        """
        request = wire.create_redemption(of=customer, reward_id=reward_id, points=points, credits=credits)
        return self._ask(access, request, read=wire.read_redemption, call=call)

    def set_date_of_birth(
        self, access: Access, identifier: str | int, *, month: int, day: int, call: Call = BACKGROUND
    ) -> Customer | None:
        """Set a customer's date of birth: the customer afterwards, None when Rivo did not tell. Raises UnknownMember
        as well."""
        request = wire.set_date_of_birth(identifier, month=month, day=day)
        return self._ask(access, request, read=wire.read_customer, call=call)

    def cancel_membership(self, access: Access, identifier: str | int, *, call: Call = BACKGROUND) -> Cancellation:
        """Cancel a customer's membership, when the store's policy says. Raises UnknownMember as well."""
        return self._ask(access, wire.cancel_membership(identifier), read=wire.read_cancellation, call=call)

    # -- within

    def _list(
        self,
        access: Access,
        request: Request,
        *,
        read: Callable[[Any], T | None],
        paging: Paging = Paging.OFFSET,
        page_size: int = wire.PAGE_SIZE,
        must_exist: bool = False,
        within_s: float | None = None,
        call: Call,
    ) -> Iterator[T]:
        give_up_at = None if within_s is None else monotonic() + within_s
        first = asked = wire.first_page(paging, size=page_size)

        def read_page(told: Any) -> Page[T] | None:
            if told is None:
                return None
            page = wire.read_page(told, asked=asked, read=read)
            if page is None:
                raise _unreadable()
            return page

        for _ in range(wire.LAST_PAGE if paging is Paging.OFFSET else MAX_CURSOR_PAGES):
            if give_up_at is not None:
                left_s = give_up_at - monotonic()
                if left_s <= 0:
                    raise ProgramUnavailable(ProgramReason.NO_ANSWER, "Rivo's list takes too long to read.")
                call = replace(call, within_s=min(call.within_s, left_s))
            page = self._ask(access, _with_page(request, asked), read=read_page, call=call)
            if page is None:
                if must_exist or asked != first:
                    raise ProgramRefused("", status=404)
                return
            yield from page.items
            if page.next is None:
                return
            asked = page.next
        raise OutcomeUnknown(ProgramReason.UNREADABLE, "Rivo's list is longer than its pages reach.")

    def _ask(self, access: Access, request: Request, *, read: Callable[[Any], T], call: Call) -> T:
        """Send a request when its turn has come, and read what `rivo_wire.judge` makes of it. Counts every way out."""
        try:
            found = self._call(access, request, read=read, call=call)
        except UnknownMember:
            _count(request, "unknown_member")
            raise
        except ProgramError as error:
            _count(request, error.reason.value)
            raise
        _count(request, "ok")
        return found

    def _call(self, access: Access, request: Request, *, read: Callable[[Any], T], call: Call) -> T:
        give_up_at = monotonic() + call.within_s
        entry = self._gate.enter(access.gate, call=call)
        left_s = min(entry.left_s, give_up_at - monotonic())
        if left_s <= 0:
            raise ProgramUnavailable(
                ProgramReason.BUDGET_SPENT, "The program has been called as often as it allows.", retry_after_s=0.0
            )
        came, why = self._exchange(access, request, within_s=left_s)
        try:
            found = read(wire.judge(came, writes=request.writes, now=self._now(), why=why))
        except ProgramUnavailable as error:
            if error.reason is ProgramReason.BUSY:
                self._tell(self._gate.pause, access.gate, seconds=error.retry_after_s or wire.DEFAULT_PAUSE_S)
            elif error.reason in _FAILED:
                self._tell(self._gate.failed, access.gate)
            else:
                self._tell(self._gate.succeeded, access.gate, entry=entry)
            raise
        except (ProgramRefused, UnknownMember):
            self._tell(self._gate.succeeded, access.gate, entry=entry)
            raise
        self._tell(self._gate.succeeded, access.gate, entry=entry)
        return found

    def _exchange(self, access: Access, request: Request, *, within_s: float) -> tuple[wire.Answer | NothingCame, str]:
        """What came, and where nothing did, why."""
        headers = {"Authorization": access.key, "Accept": "application/json", "User-Agent": "Tallydesk"}
        body = request.body()
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            came = self._client.exchange(
                request.method,
                self._base_url + request.target(),
                headers=headers,
                body=body,
                within_s=within_s,
            )
        except outbound.NotSent as error:
            return NothingCame.NOT_SENT, str(error)
        except outbound.NoAnswer as error:
            return NothingCame.NO_ANSWER, str(error)
        except outbound.TooLarge:
            return NothingCame.TOO_LARGE, ""
        return (
            wire.Answer(
                status=came.status,
                phrase=came.reason,
                body=came.body,
                retry_after=came.headers.get("Retry-After"),
                ended=came.ended,
            ),
            "",
        )

    @staticmethod
    def _tell(report: Callable[..., None], gate: str, **more: Any) -> None:
        """Report to the gate. What came of the call counts for more than the gate's books: a write that was done must
        not end as an error because our database was busy."""
        try:
            report(gate, **more)
        except SQLAlchemyError:
            log.warning("program", program="rivo", outcome="gate_not_told")


def _one(read: Callable[[Any], T | None]) -> Callable[[Any], T | None]:
    """Reads an answer about one thing: None when there is none, OutcomeUnknown for anything else."""

    def read_one(told: Any) -> T | None:
        if wire.shows_nobody(told):
            return None
        found = read(told)
        if found is None:
            raise _unreadable()
        return found

    return read_one


def _unreadable() -> OutcomeUnknown:
    return OutcomeUnknown(ProgramReason.UNREADABLE, "Rivo gave an answer in a shape we cannot read.")


def _with_page(request: Request, page: Fields) -> Request:
    return replace(request, query=request.query + page)


def _count(request: Request, outcome: str) -> None:
    PROGRAM_CALLS.labels("rivo", request.call, outcome).inc()

"""Rivo behind the port: what the house asks of a program, in terms of Rivo's calls.

Rivo counts a points event as often as it is sent
(https://developer-docs.rivo.io/reference/adjust-customer-points has nothing that would tell two apart), so our
operation id travels in its internal note, and is looked for there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from time import monotonic

import structlog
from sqlalchemy import Connection

from loyalty.gate import BACKGROUND, Call, Gate, Lane
from loyalty.program import (
    SHOWN_ACTIVITY,
    Activity,
    Member,
    MemberStatus,
    NewPointsEvent,
    OutcomeUnknown,
    PointsEvent,
    ProgramReason,
    ProgramRefused,
    ProgramUnavailable,
    Store,
)
from loyalty.rivo import Access, RivoClient
from loyalty.rivo_wire import (
    Customer,
    NewRivoEvent,
    PointsEventRecord,
    internal_note,
    read_internal_note,
    shown,
)
from loyalty.snapshots import Snapshots
from loyalty.stores import StoreKey, Stores
from storage.tables import EPOCH

# Looked through for the latest five, since hidden and revoked events stay in the list.
EVENTS_READ = 50
ACTIVITY_WITHIN_S = 15.0
READ_BACK_S = 2.0
# An open set at Rivo; whoever is in none of the known states cannot be given points without asking.
STATUSES = {"member": MemberStatus.MEMBER, "guest": MemberStatus.GUEST, "excluded": MemberStatus.EXCLUDED}

log = structlog.get_logger()


class Rivo:
    """The loyalty program of stores that have a Rivo key."""

    remote = True

    def __init__(
        self,
        client: RivoClient,
        *,
        gate: Gate,
        stores: Stores,
        snapshots: Snapshots,
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._gate = gate
        self._stores = stores
        self._snapshots = snapshots
        self._now = now

    def try_key(self, key: str, *, gate: str) -> None:
        """Whether Rivo takes `key`, by a small call. Raises ProgramUnavailable, ProgramRefused."""
        self._client.try_key(Access(key=key, gate=gate), call=Call(lane=Lane.AGENT, within_s=6.0))

    def member(
        self, store: Store, *, email: str, with_date_of_birth: bool = False, within_s: float | None = None
    ) -> Member | None:
        """The member as Rivo has them now, or None. Background work brings the recent activity with it."""
        with self._access(store) as access:
            began = self._now()
            customer = self._client.customer(access, email, call=_call(within_s))
            if customer is None:
                return None
            activity: tuple[Activity, ...] = ()
            if within_s is None:
                events = self._client.points_events(
                    access, customer=email, page_size=EVENTS_READ, within_s=ACTIVITY_WITHIN_S, call=BACKGROUND
                )
                activity = _latest(_of(customer, events))
        return _member(customer, email=email, as_of=began, activity=activity, with_date_of_birth=with_date_of_birth)

    def email_of(self, store: Store, *, member_hmac: str) -> str | None:
        """The e-mail of the member with this HMAC, if a card ever showed them."""
        return self._snapshots.email_of(store, member_hmac=member_hmac)

    def add_points(
        self, store: Store, *, event: NewPointsEvent, within: Connection | None = None, within_s: float | None = None
    ) -> PointsEvent:
        """Create the points event, unless Rivo has it already. Errors as in LoyaltyProgram."""
        began = monotonic()
        if not event.first_send:
            found = self.find_points(store, event=event, within_s=within_s)
            if found is not None:
                return found
        with self._access(store) as access:
            self._client.create_points_event(
                access,
                NewRivoEvent(
                    customer_identifier=event.email,
                    points=None if event.store_credit is not None else event.points,
                    credits=event.store_credit,
                    internal_note=internal_note(event.operation_id, event.what),
                ),
                call=_call(_left(within_s, began)),
            )
        return self._after(store, event, within_s=_left(within_s, began))

    def find_points(self, store: Store, *, event: NewPointsEvent, within_s: float | None = None) -> PointsEvent | None:
        """Look through the member's points events, newest first, for the operation id."""
        began = monotonic()
        try:
            with self._access(store) as access:
                found = self._client.find_points_event(
                    access,
                    event.operation_id,
                    customer=event.email,
                    since=event.asked_at or EPOCH,
                    taken=(event.store_credit or event.points) < 0,
                    call=_call(within_s),
                )
        except (OutcomeUnknown, ProgramRefused) as error:
            # A look changes nothing, and a refusal is about the list, not the award: it cannot be told whether it is
            # there, and that is all.
            raise ProgramUnavailable(error.reason, str(error)) from error
        return None if found is None else self._after(store, event, within_s=_left(within_s, began))

    def check_ready(self, store: Store) -> None:
        """Raises ProgramUnavailable while the key is refused or the breaker is open."""
        self._gate.check(self._stores.gate_through(store))

    def _after(self, store: Store, event: NewPointsEvent, *, within_s: float | None) -> PointsEvent:
        """What Rivo says of the member now. The award is there already: trouble here must not deny it.

        The answer to the POST is not taken for it: how far the tally in it is that of afterwards is not documented.
        """
        member = None
        if within_s is None or within_s > 0.2:
            try:
                with self._access(store) as access:
                    began = self._now()
                    call = _call(None if within_s is None else min(within_s, READ_BACK_S))
                    customer = self._client.customer(access, event.email, call=call)
                if customer is not None:
                    member = _member(customer, email=event.email, as_of=began)
            except (ProgramUnavailable, ProgramRefused) as error:
                log.info("read_back", outcome=error.reason)
        return PointsEvent(
            operation_id=event.operation_id,
            points_balance=None if member is None else member.points_balance,
            member=member,
        )

    @contextmanager
    def _access(self, store: Store) -> Iterator[Access]:
        """The store's key. When Rivo refuses it, that is remembered, and nothing is asked until it is replaced."""
        key = self._stores.key_of(store)
        try:
            yield Access(key=key.key, gate=key.gate)
        except ProgramUnavailable as error:
            if error.reason is ProgramReason.KEY_REFUSED:
                self._remember_refusal(store, key)
            raise

    def _remember_refusal(self, store: Store, key: StoreKey) -> None:
        if self._stores.refused(store, version=key.version):
            log.error("rivo", outcome=ProgramReason.KEY_REFUSED, store=store.id)


def _call(within_s: float | None) -> Call:
    return BACKGROUND if within_s is None else Call(lane=Lane.AGENT, within_s=within_s)


def _left(within_s: float | None, began: float) -> float | None:
    return None if within_s is None else within_s - (monotonic() - began)


def _of(customer: Customer, events: Iterator[PointsEventRecord]) -> Iterator[PointsEventRecord]:
    """Without the events that say they are somebody else's.

    UNKNOWN whether Rivo always honours the filter by customer: it was seen to, and is not documented. Rows that do not
    say whose they are count as asked for.
    """
    for event in events:
        other_email = event.customer_email and event.customer_email != customer.email
        other_id = event.customer_id is not None and customer.id is not None and event.customer_id != customer.id
        if not (other_email or other_id):
            yield event


def _latest(events: Iterator[PointsEventRecord]) -> tuple[Activity, ...]:
    counting = [event for event in islice(events, EVENTS_READ) if not (event.hidden or event.revoked) and event.points]
    activity = []
    for event in counting:
        note = read_internal_note(event.internal_note)
        if event.applied_at is not None:
            activity.append(
                Activity(
                    when=event.applied_at,
                    # Rivo's admin writes notes too, and may put a person's address into one.
                    what=event.what if note is None else shown(note[1]),
                    points=event.points,
                    operation_id=None if note is None else shown(note[0])[:40],
                )
            )
    activity.sort(key=lambda entry: entry.when, reverse=True)
    return tuple(activity[:SHOWN_ACTIVITY])


def _member(
    customer: Customer,
    *,
    email: str,
    as_of: datetime,
    activity: tuple[Activity, ...] = (),
    with_date_of_birth: bool = False,
) -> Member:
    return Member(
        email=email,
        status=STATUSES.get(customer.status, MemberStatus.GUEST),
        points_balance=customer.points_tally or 0,
        lifetime_points=customer.lifetime_earnings_tally,
        vip_tier_name=customer.vip_tier_name or None,
        referral_url=customer.referral_url or None,
        store_credit_balance=customer.credits_tally,
        points_expire_at=customer.points_expire_at or None,
        date_of_birth=(customer.date_of_birth or None) if with_date_of_birth else None,
        recent_activity=activity,
        as_of=as_of,
    )

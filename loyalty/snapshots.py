"""Members as last read from a program elsewhere, with the time: what the card shows, and no more.

A person's e-mail is found by its HMAC and kept sealed. Of somebody whom the program does not know nothing is kept but
that fact, for a short while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Any

from sqlalchemy import and_, bindparam, delete, or_, select, update

from loyalty.journal import AwardState, what_of
from loyalty.program import SHOWN_ACTIVITY, Activity, Member, MemberStatus, Store
from storage.database import INSERTS, Database
from storage.sealing import Sealer
from storage.statements import change, run
from storage.tables import EPOCH, MICROSECOND, awards, snapshots, stores

# What lies further ahead than clocks of hosts differ was written before the clock was set back.
MOST_AHEAD = timedelta(minutes=1)


class Known(StrEnum):
    """What the program said of an e-mail."""

    FOUND = "found"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is known of one e-mail. `member` is None when the program did not know it.

    `outdated` says that the program is known to have something newer.
    """

    known: Known
    as_of: datetime
    outdated: bool
    member: Member | None


class Snapshots:
    """The snapshots of every store."""

    def __init__(self, database: Database, *, sealer: Sealer, now: Callable[[], datetime]) -> None:
        self._database = database
        self._sealer = sealer
        self._now = now

    def find(self, store: Store, *, email: str, member_hmac: str, with_date_of_birth: bool = False) -> Snapshot | None:
        """The snapshot of this e-mail, or None."""
        row = next(iter(self._database.look_up(_SHOWN, store_id=store.id, email_hmac=member_hmac)), None)
        if row is None or row.state is None:
            return None
        member, known = None, Known(row.state)
        if known is Known.FOUND:
            born = None
            if with_date_of_birth and row.date_of_birth_sealed is not None:
                born = self._sealer.open(row.date_of_birth_sealed)
            member = _member(row.shown, email=email, as_of=row.as_of, born=born)
        return Snapshot(
            known=known,
            as_of=row.as_of,
            outdated=row.outdated_at is not None and row.as_of <= row.outdated_at <= self._now() + MOST_AHEAD,
            member=member,
        )

    def email_of(self, store: Store, *, member_hmac: str) -> str | None:
        """The e-mail with this HMAC, or None when no member with it was ever read."""
        row = next(iter(self._database.look_up(_FIND, store_id=store.id, email_hmac=member_hmac)), None)
        return None if row is None or row.email_sealed is None else self._sealer.open(row.email_sealed)

    def keep(
        self,
        store: Store,
        *,
        member_hmac: str,
        member: Member,
        with_activity: bool,
        with_date_of_birth: bool = False,
        owner: str | None = None,
    ) -> Member | None:
        """Keep what was read, unless something newer is kept already: the member as kept, or None when nothing was.

        What was not read, activity or date of birth, stays as it was known before. Our own awards are in the activity
        as soon as they are applied. Nothing is kept where `forget` has been since: an `owner` must still hold its
        claim, and without one only what is there already is brought up to date.
        """
        values: dict[str, Any] = {"email_sealed": self._sealer.seal(member.email)}
        # What no card shows is not kept: whoever asks for a card says whether it does.
        born = None if member.date_of_birth is None or not with_date_of_birth else str(member.date_of_birth)
        if with_date_of_birth or owner is not None:
            values["date_of_birth_sealed"] = None if born is None else self._sealer.seal(born)

        def keep(read: Callable[..., list[Any]], write: Callable[..., int]) -> Member | None:
            activity = member.recent_activity
            if not with_activity:
                for row in read(_SHOWN_HELD, store_id=store.id, email_hmac=member_hmac):
                    activity = activity if row.shown is None else _activity(row.shown["activity"])
            own = _own(read(_OWN_AWARDS, store_id=store.id, member_hmac=member_hmac))
            shown = _shown(member, _merged(activity, own))
            put = {"state": Known.FOUND.value, "shown": shown, "as_of": member.as_of, **values}
            kept = self._put(write, store, member_hmac, owner=owner, **put)
            return _member(shown, email=member.email, as_of=member.as_of, born=born) if kept else None

        if owner is not None:
            # No transaction: nobody else reads for this e-mail meanwhile, and an award that is applied keeps something
            # newer, by which this is refused.
            return keep(self._database.look_up, self._database.note)
        with self._database.write(f"member {store.id} {member_hmac}", may_be_lost=True) as tx:
            return keep(partial(run, tx), partial(change, tx))

    def keep_not_found(self, store: Store, *, member_hmac: str, as_of: datetime, owner: str) -> bool:
        """The program does not know this e-mail; whatever was kept of it is erased. `owner` as for `keep`; whether it
        was."""
        return self._put(
            self._database.note,
            store,
            member_hmac,
            state=Known.NOT_FOUND.value,
            email_sealed=None,
            shown=None,
            date_of_birth_sealed=None,
            as_of=as_of,
            owner=owner,
        )

    def outdate(self, store: Store, *, member_hmac: str) -> None:
        """The program has something newer than what is kept."""
        with self._database.write() as tx:
            tx.execute(
                update(snapshots)
                .where(snapshots.c.store_id == store.id, snapshots.c.email_hmac == member_hmac)
                .values(outdated_at=self._now())
            )

    def claim(
        self,
        store: Store,
        *,
        member_hmac: str,
        seen: Snapshot | None,
        owner: str,
        lease: timedelta,
        look_first: bool = False,
    ) -> bool:
        """Become the one who asks the program about this e-mail; False when somebody is asking, or has asked since the
        snapshot was `seen`.

        Whoever comes again looks first, and takes no lock while the claim of another holds.
        """
        now = self._now()
        # A lease far ahead was taken before the clock was set back.
        far = now + 2 * lease
        if look_first:
            held = self._lease(store, member_hmac)
            if held is not None and held.lease_until is not None and now < held.lease_until <= far:
                return False
        where = {"owner": owner, "until": now + lease, "now": now, "far": far}
        if seen is None:
            claim = _CLAIM[self._database.dialect]
            return bool(self._database.note(claim, store_id=store.id, email_hmac=member_hmac, **where))
        # Only what is still there: what was forgotten since is not known any more.
        claim_seen = {"of_store": store.id, "of_member": member_hmac, "seen": seen.as_of, **where}
        return bool(self._database.note(_CLAIM_SEEN, **claim_seen))

    def release(self, store: Store, *, member_hmac: str, owner: str) -> None:
        """Let others ask. Whose answer was kept has done so with it."""
        self._database.note(_RELEASE, of_store=store.id, of_member=member_hmac, owner=owner)

    def forget(self, store: Store) -> int:
        """Erase every snapshot of the store; how many there were."""
        with self._database.write() as tx:
            return tx.execute(delete(snapshots).where(snapshots.c.store_id == store.id)).rowcount

    def forget_dates_of_birth(self, store: Store) -> None:
        """The card no longer shows them, so they are kept no longer."""
        with self._database.write() as tx:
            tx.execute(update(snapshots).where(snapshots.c.store_id == store.id).values(date_of_birth_sealed=None))

    def sweep(self, *, found_before: datetime, not_found_before: datetime, limit: int = 1_000) -> int:
        """Erase what was last read before these times; how many, at most `limit`."""
        old = (
            select(snapshots.c.id)
            .where(
                or_(
                    snapshots.c.touched_at < found_before,
                    (snapshots.c.touched_at < not_found_before) & snapshots.c.state.is_distinct_from(Known.FOUND),
                )
            )
            .limit(limit)
        )
        with self._database.write() as tx:
            return tx.execute(delete(snapshots).where(snapshots.c.id.in_(old))).rowcount

    def _put(
        self, write: Callable[..., int], store: Store, member_hmac: str, *, owner: str | None, **values: Any
    ) -> bool:
        """Whether something was written."""
        now = self._now()
        statement = _PUT_BORN if "date_of_birth_sealed" in values else _PUT
        held = {}
        if owner is not None:
            statement, held = _PUT_HELD, {"owner": owner}
        where = {"of_store": store.id, "of_member": member_hmac, "ahead": now + MOST_AHEAD, **held}
        return bool(write(statement, **where, now=now, **{f"new_{name}": value for name, value in values.items()}))

    def _lease(self, store: Store, member_hmac: str) -> Any:
        return next(iter(self._database.look_up(_LEASE, store_id=store.id, email_hmac=member_hmac)), None)


_FIND = select(
    snapshots.c.state,
    snapshots.c.email_sealed,
    snapshots.c.shown,
    snapshots.c.date_of_birth_sealed,
    snapshots.c.as_of,
    snapshots.c.outdated_at,
).where(
    snapshots.c.store_id == bindparam("store_id"),
    snapshots.c.email_hmac == bindparam("email_hmac"),
)


# Without the address, which whoever looks for a card has.
_SHOWN = _FIND.with_only_columns(
    snapshots.c.state,
    snapshots.c.shown,
    snapshots.c.date_of_birth_sealed,
    snapshots.c.as_of,
    snapshots.c.outdated_at,
)

# Nobody else writes it before the transaction ends. SQLite writers are alone anyway.
_SHOWN_HELD = _SHOWN.with_for_update()

_LEASE = select(snapshots.c.lease_until, snapshots.c.lease_owner).where(
    snapshots.c.store_id == bindparam("store_id"),
    snapshots.c.email_hmac == bindparam("email_hmac"),
)

_OF_MEMBER = update(snapshots).where(
    snapshots.c.store_id == bindparam("of_store"), snapshots.c.email_hmac == bindparam("of_member")
)
# Its holder may claim it again: a note may run twice.
_FREE = or_(
    snapshots.c.lease_until.is_(None),
    snapshots.c.lease_until <= bindparam("now"),
    snapshots.c.lease_until > bindparam("far"),
    snapshots.c.lease_owner == bindparam("owner"),
)
# By the name of the dialect: ON CONFLICT is said by each for itself.
_CLAIM = {
    dialect: new(snapshots)
    .values(
        store_id=bindparam("store_id"),
        email_hmac=bindparam("email_hmac"),
        lease_owner=bindparam("owner"),
        lease_until=bindparam("until"),
        touched_at=bindparam("now"),
    )
    .on_conflict_do_update(
        index_elements=[snapshots.c.store_id, snapshots.c.email_hmac],
        set_={"lease_owner": bindparam("owner"), "lease_until": bindparam("until")},
        where=and_(snapshots.c.as_of.is_(None), _FREE),
    )
    for dialect, new in INSERTS.items()
}
_CLAIM_SEEN = _OF_MEMBER.where(snapshots.c.as_of == bindparam("seen"), _FREE).values(
    lease_owner=bindparam("owner"), lease_until=bindparam("until")
)
_RELEASE = _OF_MEMBER.where(snapshots.c.lease_owner == bindparam("owner")).values(lease_owner=None, lease_until=None)

# Unless something newer is kept. A time ahead of ours is from before the clock was set back.
_PUT = _OF_MEMBER.where(
    or_(
        snapshots.c.as_of.is_(None),
        snapshots.c.as_of <= bindparam("new_as_of"),
        snapshots.c.as_of > bindparam("ahead"),
    )
).values(
    touched_at=bindparam("now"),
    **{name: bindparam(f"new_{name}") for name in ("state", "email_sealed", "shown", "as_of")},
)
_PUT_BORN = _PUT.values(date_of_birth_sealed=bindparam("new_date_of_birth_sealed"))
# Whoever asked has its answer: the next may ask.
_PUT_HELD = _PUT_BORN.where(snapshots.c.lease_owner == bindparam("owner")).values(lease_owner=None, lease_until=None)


def _own(rows: list[Any]) -> tuple[Activity, ...]:
    """Awards of ours, as activity."""
    return tuple(
        Activity(
            when=row.settled_at,
            what=what_of(row.reason),
            points=row.points,
            operation_id=row.operation_id,
        )
        for row in rows
    )


# The latest that were applied for a member.
_OWN_AWARDS = (
    select(awards.c.operation_id, awards.c.points, awards.c.reason, awards.c.settled_at)
    .where(
        awards.c.store_id == bindparam("store_id"),
        awards.c.member_hmac == bindparam("member_hmac"),
        awards.c.state == AwardState.APPLIED.value,
        awards.c.credit_cents == 0,
        # What was added under another key may be in another store.
        awards.c.key_version
        == select(stores.c.key_version).where(stores.c.id == bindparam("store_id")).scalar_subquery(),
    )
    .order_by(awards.c.created_at.desc())
    .limit(SHOWN_ACTIVITY)
)


def _merged(told: tuple[Activity, ...], own: tuple[Activity, ...]) -> tuple[Activity, ...]:
    """What the program told, with those awards of ours that it has not told yet; newest first."""
    known = {activity.operation_id for activity in told}
    news = [activity for activity in own if activity.operation_id not in known]
    merged = sorted([*news, *told], key=lambda activity: activity.when, reverse=True)
    return tuple(merged[:SHOWN_ACTIVITY])


def _shown(member: Member, activity: tuple[Activity, ...]) -> dict[str, Any]:
    credit = member.store_credit_balance
    return {
        "status": member.status,
        "points": member.points_balance,
        "lifetime": member.lifetime_points,
        "tier": member.vip_tier_name,
        "referral": member.referral_url,
        "credit": None if credit is None else str(credit),
        "expires": member.points_expire_at,
        "activity": [
            [(entry.when - EPOCH) // MICROSECOND, entry.what, entry.points, entry.operation_id] for entry in activity
        ],
    }


def _member(shown: dict[str, Any], *, email: str, as_of: datetime, born: str | None) -> Member:
    return Member(
        email=email,
        status=MemberStatus(shown["status"]),
        points_balance=shown["points"],
        lifetime_points=shown["lifetime"],
        vip_tier_name=shown["tier"],
        referral_url=shown["referral"],
        store_credit_balance=None if shown["credit"] is None else Decimal(shown["credit"]),
        points_expire_at=shown["expires"],
        date_of_birth=None if born is None else _date_or_text(born),
        recent_activity=_activity(shown["activity"]),
        as_of=as_of,
    )


def _activity(rows: list[list[Any]]) -> tuple[Activity, ...]:
    return tuple(
        [
            Activity(when=EPOCH + timedelta(microseconds=when), what=what, points=points, operation_id=operation_id)
            for when, what, points, operation_id in rows
        ]
    )


def _date_or_text(text: str) -> date | str:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text

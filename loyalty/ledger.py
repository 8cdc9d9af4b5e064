"""The embedded program: an append-only double-entry ledger in Tallydesk's own database.

Every change is one transaction of two entries, a debit and a credit of the same points: points owed to members are the
program's liability, so an award debits the program and credits the member. Entries are never changed (the database
refuses); undoing is a new transaction that points at the old one. `members.balance` and `members.lifetime_points` are
kept sums, and `members.latest_activity` keeps what a card shows of a member's history: all of it is proven against the
books by `verify`.
"""

from __future__ import annotations

import re
from base64 import b32encode
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Connection,
    ScalarSelect,
    String,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal_column,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from loyalty.journal import what_of
from loyalty.program import (
    SHOWN_ACTIVITY,
    Activity,
    Member,
    MemberStatus,
    NewPointsEvent,
    NotOffered,
    PointsEvent,
    ProgramKind,
    Store,
    UnknownMember,
)
from storage.database import INSERTS, Database, insert_into
from storage.sealing import Hasher, RandomBytes, Sealer
from storage.statements import run, run_one
from storage.tables import EPOCH, UtcTime, ledger_entries, ledger_transactions, members, stores

# Lifetime points from which a member holds the tier; the last one reached counts.
TIERS = ((0, "Bronze"), (500, "Silver"), (2_000, "Gold"), (10_000, "Platinum"))

# The store that exists before any account: only a laptop makes it, and the first connection takes it over.
UNCLAIMED = "ledger:unclaimed"


class Kind(StrEnum):
    """Why a transaction was booked."""

    OPENING = "opening"
    OPENING_SPENT = "opening_spent"
    AWARD = "award"
    REVERSAL = "reversal"


# The kinds that move lifetime points; spending what was earned does not.
EARNING_KINDS = (Kind.OPENING, Kind.AWARD, Kind.REVERSAL)

_MEMBER = select(
    members.c.id,
    members.c.email_sealed,
    members.c.status,
    members.c.balance,
    members.c.lifetime_points,
    members.c.referral_code,
    members.c.date_of_birth_sealed,
).where(
    members.c.store_id == bindparam("store_id"),
    members.c.email_hmac == bindparam("email_hmac"),
)

_SHOWN = _MEMBER.with_only_columns(
    members.c.status,
    members.c.balance,
    members.c.lifetime_points,
    members.c.referral_code,
    members.c.date_of_birth_sealed,
    members.c.latest_activity,
)

_OPERATION = select(ledger_transactions.c.id).where(
    ledger_transactions.c.store_id == bindparam("store_id"),
    ledger_transactions.c.operation_id == bindparam("operation_id"),
)


def identity_for(account: str) -> str:
    """What makes a ledger the ledger of `account`: each helpdesk account has one."""
    return f"ledger:{account}"


def tier_for(lifetime_points: int) -> str:
    """The name of the tier that `lifetime_points` reach."""
    reached = TIERS[0][1]
    for threshold, name in TIERS:
        if lifetime_points >= threshold:
            reached = name
    return reached


def open_store(tx: Connection, *, identity: str, now: datetime) -> Store:
    """The ledger store of this identity, made when there is none; two callers at once get the same one."""
    unclaimed = update(stores).where(stores.c.identity == UNCLAIMED).values(identity=identity)
    find = select(stores.c.id).where(stores.c.identity == identity)
    store_id = tx.scalar(find)
    if store_id is None:
        tx.execute(unclaimed)
        tx.execute(
            insert_into(tx, stores)
            .values(program=ProgramKind.LEDGER, identity=identity, created_at=now)
            .on_conflict_do_nothing()
        )
        store_id = tx.scalars(find).one()
    return Store(id=store_id, program=ProgramKind.LEDGER)


def only_store(tx: Connection) -> Store | None:
    """The one ledger store there is; None when there is none, or several."""
    ids = tx.scalars(select(stores.c.id).where(stores.c.program == ProgramKind.LEDGER).limit(2)).all()
    return Store(id=ids[0], program=ProgramKind.LEDGER) if len(ids) == 1 else None


def storefront_of(database: Database, *, referral_code: str) -> str | None:
    """The address of the shop that a referral link belongs to: empty when it has set none, None for no such link."""
    if not re.fullmatch(r"[a-z2-7]{16}", referral_code):
        return None
    with database.read() as tx:
        row = tx.execute(
            select(stores.c.storefront_url)
            .join(members, members.c.store_id == stores.c.id)
            .where(members.c.referral_code == referral_code)
        ).one_or_none()
    return None if row is None else row.storefront_url or ""


def read_storefront(database: Database, store: Store) -> str:
    """The address of the store's shop; empty when it has set none."""
    with database.read() as tx:
        return tx.scalar(select(stores.c.storefront_url).where(stores.c.id == store.id)) or ""


def save_storefront(database: Database, store: Store, *, url: str) -> None:
    """Keep the address of the store's shop, where its referral links lead."""
    with database.write() as tx:
        tx.execute(update(stores).where(stores.c.id == store.id).values(storefront_url=url or None))


def new_referral_code(random_bytes: RandomBytes) -> str:
    """Sixteen letters and digits that name a member in a referral link and give nothing away."""
    return b32encode(random_bytes(10)).decode().lower()


class Ledger:
    """The loyalty program of every store that has no other."""

    remote = False

    def __init__(
        self,
        database: Database,
        *,
        sealer: Sealer,
        hasher: Hasher,
        public_url: str,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._hasher = hasher
        self._public_url = public_url
        self._now = now

    def member(
        self, store: Store, *, email: str, with_date_of_birth: bool = False, within_s: float | None = None
    ) -> Member | None:
        """The member with this e-mail as the ledger stands now, or None."""
        rows = self._database.look_up(_SHOWN, store_id=store.id, email_hmac=self._hasher.email(email))
        return self._read_member(rows[0], email=email, with_date_of_birth=with_date_of_birth) if rows else None

    def email_of(self, store: Store, *, member_hmac: str) -> str | None:
        """The e-mail of the member with this HMAC, or None."""
        with self._database.read() as tx:
            row = tx.execute(_MEMBER, {"store_id": store.id, "email_hmac": member_hmac}).one_or_none()
        # Empty where it was erased: only whoever brings the address finds this member.
        return None if row is None else self._sealer.open(row.email_sealed) or None

    def add_points(
        self, store: Store, *, event: NewPointsEvent, within: Connection | None = None, within_s: float | None = None
    ) -> PointsEvent:
        """Book the event in the caller's transaction, which must be given. Raises UnknownMember, NotOffered."""
        if event.store_credit is not None:
            raise NotOffered("The built-in ledger keeps points only, no store credit.")
        if within is None:
            raise TypeError("the ledger books within its caller's transaction")
        tx = within
        whose = {"store_id": store.id, "email_hmac": self._hasher.email(event.email)}
        # An id that was made for this very event is booked nowhere yet; were it, the database would refuse it.
        if not event.first_send and run(tx, _OPERATION, store_id=store.id, operation_id=event.operation_id):
            return PointsEvent(operation_id=event.operation_id, points_balance=run_one(tx, _MEMBER, **whose).balance)
        reverses_id = None
        if event.reverses is not None:
            reversed_ = run_one(tx, _OPERATION, store_id=store.id, operation_id=event.reverses)
            reverses_id = reversed_.id
        kind = Kind.AWARD if reverses_id is None else Kind.REVERSAL
        now = self._now()
        moved = run(
            tx,
            _MOVE_WHOSE[tx.dialect.name],
            moved=event.points,
            earned=event.points,
            what=event.what,
            at=now,
            **whose,
        )
        if not moved:
            raise UnknownMember
        member = moved[0]
        _enter(
            tx,
            store_id=store.id,
            member_id=member.id,
            operation_id=event.operation_id,
            kind=kind,
            points=event.points,
            what=event.what,
            reverses_id=reverses_id,
            now=now,
        )
        if member.erased_at is not None:
            # Forgotten after a disconnect, and back.
            known_again = {"email_sealed": self._sealer.seal(event.email), "erased_at": None}
            tx.execute(update(members).where(members.c.id == member.id).values(known_again))
        return PointsEvent(operation_id=event.operation_id, points_balance=member.balance)

    def find_points(self, store: Store, *, event: NewPointsEvent, within_s: float | None = None) -> PointsEvent | None:
        """The booked event of this operation id, with the balance as it is now."""
        with self._database.read() as tx:
            member = tx.execute(
                _MEMBER, {"store_id": store.id, "email_hmac": self._hasher.email(event.email)}
            ).one_or_none()
            booked = tx.scalar(_OPERATION, {"store_id": store.id, "operation_id": event.operation_id})
        if member is None or booked is None:
            return None
        return PointsEvent(operation_id=event.operation_id, points_balance=member.balance)

    def check_ready(self, store: Store) -> None:
        """Always ready: what would stop it stops Tallydesk itself."""

    def _read_member(self, row: Any, *, email: str, with_date_of_birth: bool) -> Member:
        status = MemberStatus(row.status)
        born = row.date_of_birth_sealed if with_date_of_birth else None
        return Member(
            email=email,
            status=status,
            points_balance=row.balance,
            lifetime_points=row.lifetime_points,
            vip_tier_name=tier_for(row.lifetime_points) if status is MemberStatus.MEMBER else None,
            referral_url=f"{self._public_url}/r/{row.referral_code}" if status is MemberStatus.MEMBER else None,
            date_of_birth=None if born is None else date.fromisoformat(self._sealer.open(born)),
            recent_activity=tuple(
                [
                    Activity(when=EPOCH + timedelta(microseconds=when), what=what_of(what), points=points)
                    for when, what, points in reversed(row.latest_activity)
                ]
            ),
            as_of=self._now(),
        )


def book(
    tx: Connection,
    *,
    store_id: int,
    member_id: int,
    operation_id: str,
    kind: Kind,
    points: int,
    what: str,
    now: datetime,
    reverses_id: int | None = None,
) -> int:
    """Book one transaction of two entries and move the kept sums; returns the new balance.

    Positive `points` go to the member, negative ones are taken. Raises IntegrityError when the operation id is booked.
    """
    _enter(
        tx,
        store_id=store_id,
        member_id=member_id,
        operation_id=operation_id,
        kind=kind,
        points=points,
        what=what,
        now=now,
        reverses_id=reverses_id,
    )
    earned = points if kind in EARNING_KINDS else 0
    move = _MOVE[tx.dialect.name]
    balance: int = run_one(tx, move, of=member_id, moved=points, earned=earned, what=what, at=now).balance
    return balance


def _enter(
    tx: Connection,
    *,
    store_id: int,
    member_id: int,
    operation_id: str,
    kind: Kind,
    points: int,
    what: str,
    now: datetime,
    reverses_id: int | None,
) -> None:
    """The transaction and its two entries."""
    transaction = run_one(
        tx,
        _BOOK,
        store_id=store_id,
        member_id=member_id,
        operation_id=operation_id,
        kind=kind.value,
        what=what,
        points=points,
        reverses_id=reverses_id,
        created_at=now,
    )
    member_side, program_side = ("credit", "debit") if points > 0 else ("debit", "credit")
    run(
        tx,
        _BOOK_ENTRIES,
        transaction=transaction.id,
        program=None,
        program_side=program_side,
        member=member_id,
        member_side=member_side,
        sum=abs(points),
    )


_BOOK = (
    insert(ledger_transactions)
    .values(
        {
            name: bindparam(name)
            for name in (
                *("store_id", "member_id", "operation_id", "kind"),
                *("what", "points", "reverses_id", "created_at"),
            )
        }
    )
    .returning(ledger_transactions.c.id)
)
_BOOK_ENTRIES = insert(ledger_entries).values(
    [
        {
            "transaction_id": bindparam("transaction"),
            "member_id": bindparam(side),
            "side": bindparam(f"{side}_side"),
            "points": bindparam("sum"),
        }
        for side in ("program", "member")
    ]
)
_AT, _POINTS = bindparam("at", type_=UtcTime), bindparam("moved", type_=BigInteger)


def _with_one_more(dialect: str) -> ColumnElement[Any]:
    """The kept activity and what is booked now; the oldest goes where a card shows no more."""
    entry = _AT, bindparam("what", type_=String), _POINTS
    if dialect == "sqlite":
        kept = members.c.latest_activity
        is_full = func.json_array_length(kept) >= SHOWN_ACTIVITY
        longer = func.json_insert(kept, "$[#]", func.json_array(*entry))
        # The last place is not there yet where it is not full: nothing is removed.
        return func.json_remove(longer, case((is_full, "$[0]"), else_=f"$[{SHOWN_ACTIVITY}]"))
    binary = type_coerce(members.c.latest_activity, JSONB)
    is_full = func.jsonb_array_length(binary) >= SHOWN_ACTIVITY
    younger = case((is_full, binary.op("-")(literal_column("0"))), else_=binary)
    return younger.op("||")(func.jsonb_build_array(func.jsonb_build_array(*entry)))


# By the name of the dialect: each has its own words for JSON.
_MOVED = {
    dialect: update(members).values(
        balance=members.c.balance + _POINTS,
        lifetime_points=members.c.lifetime_points + bindparam("earned"),
        latest_activity=_with_one_more(dialect),
        updated_at=_AT,
    )
    for dialect in INSERTS
}
_MOVE = {
    dialect: moved.where(members.c.id == bindparam("of")).returning(members.c.balance)
    for dialect, moved in _MOVED.items()
}
# Found and moved at once.
_MOVE_WHOSE = {
    dialect: moved.where(
        members.c.store_id == bindparam("store_id"), members.c.email_hmac == bindparam("email_hmac")
    ).returning(members.c.id, members.c.balance, members.c.erased_at)
    for dialect, moved in _MOVED.items()
}


def _booked_latest(dialect: str) -> ScalarSelect[Any]:
    """What `members.latest_activity` is to say, from the books."""
    transaction = ledger_transactions.c
    # A sum, by which no index is in order: PostgreSQL would rather walk through all entries from the newest on.
    newest_first = (ledger_entries.c.transaction_id + 0).desc()
    ids = (
        select(ledger_entries.c.transaction_id)
        .where(ledger_entries.c.member_id == members.c.id)
        .order_by(newest_first)
        .limit(SHOWN_ACTIVITY)
        .correlate(members)
        .subquery("ids")
    )
    latest = (
        select(transaction.id, transaction.created_at, transaction.what, transaction.points)
        .join(ids, ids.c.transaction_id == transaction.id)
        .subquery("latest")
    )
    if dialect == "sqlite":
        in_order = select(latest).order_by(latest.c.id).correlate(members).subquery("in_order")
        entry = func.json_array(in_order.c.created_at, in_order.c.what, in_order.c.points)
        return select(func.json_group_array(entry, type_=JSON)).correlate(members).scalar_subquery()
    entry = func.jsonb_build_array(latest.c.created_at, latest.c.what, latest.c.points)
    entries = func.jsonb_agg(aggregate_order_by(entry, latest.c.id))
    return select(func.coalesce(entries, cast([], JSONB), type_=JSONB)).correlate(members).scalar_subquery()


_BOOKED_LATEST = {dialect: _booked_latest(dialect) for dialect in INSERTS}


def keep_latest(tx: Connection, *whose: ColumnElement[bool]) -> None:
    """Bring the kept activity of members to what is booked now; `whose` are conditions on `members`."""
    # Held before their books are read: PostgreSQL would wait in the update, and yet read what was booked before it.
    held = select(members.c.id).where(*whose).order_by(members.c.id).with_for_update(key_share=True)
    if ids := tx.scalars(held).all():
        booked = _BOOKED_LATEST[tx.dialect.name]
        tx.execute(update(members).where(members.c.id.in_(ids)).values(latest_activity=booked))


def verify(tx: Connection) -> Iterator[str]:
    """Prove the books: one sentence for each transaction or member that does not add up; nothing when all is well."""
    entry = ledger_entries.c
    debit = func.coalesce(func.sum(case((entry.side == "debit", entry.points))), 0)
    credit = func.coalesce(func.sum(case((entry.side == "credit", entry.points))), 0)

    transaction = ledger_transactions.c
    unbalanced = (
        select(
            transaction.id,
            debit.label("debit"),
            credit.label("credit"),
            func.count(entry.id).label("entries"),
        )
        .select_from(ledger_transactions.outerjoin(ledger_entries, entry.transaction_id == transaction.id))
        .group_by(transaction.id)
        .having(or_(debit != credit, func.count(entry.id) != 2))
    )
    for row in tx.execute(unbalanced):
        yield (
            f"Transaction {row.id} does not balance: debits {row.debit}, credits {row.credit}, {row.entries} entries."
        )

    signed = case((entry.side == "credit", entry.points), else_=-entry.points)
    mistold = (
        select(transaction.id, transaction.points, signed.label("booked"))
        .join(ledger_entries, and_(entry.transaction_id == transaction.id, entry.member_id == transaction.member_id))
        .where(transaction.points != signed)
    )
    for row in tx.execute(mistold):
        yield f"Transaction {row.id} says {row.points} points, its entry {row.booked}."

    balance = func.coalesce(func.sum(signed), 0)
    lifetime = func.coalesce(func.sum(case((transaction.kind.in_(EARNING_KINDS), signed), else_=0)), 0)
    drifted = (
        select(
            members.c.id,
            members.c.balance,
            members.c.lifetime_points,
            balance.label("booked_balance"),
            lifetime.label("booked_lifetime"),
        )
        .select_from(
            members.outerjoin(ledger_entries, entry.member_id == members.c.id).outerjoin(
                ledger_transactions, transaction.id == entry.transaction_id
            )
        )
        .group_by(members.c.id, members.c.balance, members.c.lifetime_points)
        .having(or_(balance != members.c.balance, lifetime != members.c.lifetime_points))
    )
    for row in tx.execute(drifted):
        yield (
            f"Member {row.id} is off: balance {row.balance}, entries say {row.booked_balance}; "
            f"lifetime {row.lifetime_points}, entries say {row.booked_lifetime}."
        )

    booked_latest = _BOOKED_LATEST[tx.dialect.name]
    mistold_latest = select(members.c.id, members.c.latest_activity, booked_latest.label("booked")).where(
        members.c.latest_activity.is_distinct_from(booked_latest)
    )
    for row in tx.execute(mistold_latest):
        # The same may be written in two ways.
        if row.latest_activity != row.booked:
            yield f"Member {row.id} shows other activity than was booked last."


def totals(tx: Connection) -> tuple[int, int, int]:
    """Σ debits, Σ credits and the number of transactions, over all stores."""
    entry = ledger_entries.c
    row = tx.execute(
        select(
            func.coalesce(func.sum(case((entry.side == "debit", entry.points))), 0),
            func.coalesce(func.sum(case((entry.side == "credit", entry.points))), 0),
        )
    ).one()
    count = tx.scalar(select(func.count()).select_from(ledger_transactions)) or 0
    return int(row[0]), int(row[1]), count

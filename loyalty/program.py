"""The port every loyalty program stands behind: what can be asked of it and how it may fail.

An adapter (the embedded ledger, Rivo) implements `LoyaltyProgram` and passes the contract suite in
`tests/contract/`. Nothing here knows an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from sqlalchemy import Connection


class ProgramKind(StrEnum):
    """The programs a store can have."""

    LEDGER = "ledger"


class MemberStatus(StrEnum):
    """A customer as the program knows them."""

    MEMBER = "member"
    GUEST = "guest"
    EXCLUDED = "excluded"


@dataclass(frozen=True, kw_only=True)
class Store:
    """One loyalty program with its members, ledger and awards."""

    id: int
    program: ProgramKind


@dataclass(frozen=True, kw_only=True)
class Activity:
    """One thing that changed a member's points. `points` is negative when they were taken away."""

    when: datetime
    what: str
    points: int


@dataclass(frozen=True, kw_only=True)
class Member:
    """A member as read from the program at `as_of`. None means that the program does not offer the value."""

    email: str
    status: MemberStatus
    points_balance: int
    as_of: datetime
    lifetime_points: int | None = None
    vip_tier_name: str | None = None
    referral_url: str | None = None
    store_credit_balance: Decimal | None = None
    points_expire_at: str | None = None
    date_of_birth: date | None = None
    recent_activity: tuple[Activity, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NewPointsEvent:
    """Points to add (or, negative, to take) under an operation id of ours; `reverses` names the operation undone."""

    operation_id: str
    email: str
    points: int
    what: str
    reverses: str | None = None


@dataclass(frozen=True, kw_only=True)
class PointsEvent:
    """What the program did: the balance it reports afterwards."""

    operation_id: str
    points_balance: int


class UnknownMember(Exception):
    """The program has no such member."""


class LoyaltyProgram(Protocol):
    """A loyalty program. E-mails are normalised by the caller."""

    def member(self, store: Store, *, email: str, with_date_of_birth: bool = False) -> Member | None:
        """The member with this e-mail, or None. The date of birth is read only where it is asked for."""

    def email_of(self, store: Store, *, member_hmac: str) -> str | None:
        """The e-mail behind the keyed HMAC of an award key, or None when the member is gone."""

    def add_points(self, store: Store, *, event: NewPointsEvent, within: Connection) -> PointsEvent:
        """Write a points event. An operation id counts once: asked again, the first event's effect is told.

        `within` is the caller's transaction: a program that lives in our database commits with it.
        Raises UnknownMember.
        """

"""The port every loyalty program stands behind: what can be asked of it and how it may fail.

An adapter (the embedded ledger, Rivo) implements `LoyaltyProgram` and passes the contract suite in
`tests/contract/`. Nothing here knows an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, Protocol

from sqlalchemy import Connection

# As many as a card shows.
SHOWN_ACTIVITY = 5


class ProgramKind(StrEnum):
    """The programs a store can have."""

    LEDGER = "ledger"
    RIVO = "rivo"


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


class Activity(NamedTuple):
    """One thing that changed a member's points. `points` is negative when they were taken away.

    `operation_id` is set where it is known that an award of ours did it. A tuple, because there are five in a card.
    """

    when: datetime
    what: str
    points: int
    operation_id: str | None = None


class Member(NamedTuple):
    """A member as read from the program at `as_of`. None means that the program does not offer the value.

    A tuple, which is made in a third of the time: there is one in every card.
    """

    email: str
    status: MemberStatus
    points_balance: int
    as_of: datetime
    lifetime_points: int | None = None
    vip_tier_name: str | None = None
    referral_url: str | None = None
    store_credit_balance: Decimal | None = None
    points_expire_at: str | None = None
    # Text such as `05-31` where the program keeps no year.
    date_of_birth: date | str | None = None
    recent_activity: tuple[Activity, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NewPointsEvent:
    """Points to add (or, negative, to take) under an operation id of ours; `reverses` names the operation undone.

    `store_credit`, where it is not None, is given instead of points, which are 0 then. `first_send` says that this
    operation id was never sent before; without it, a program that cannot recognise our ids looks for it first, as far
    back as `asked_at` (None: to the beginning).
    """

    operation_id: str
    email: str
    points: int
    what: str
    reverses: str | None = None
    store_credit: Decimal | None = None
    first_send: bool = False
    asked_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class PointsEvent:
    """What the program did: the balance it reports afterwards (None: it could not be asked), and all it told."""

    operation_id: str
    points_balance: int | None
    member: Member | None = field(default=None, compare=False)


class ProgramReason(StrEnum):
    """Why a program did not do what it was asked."""

    NOT_REACHED = "not_reached"
    """Nothing was sent: no such host, refused, or no connection in time."""
    BUSY = "busy"
    """It answered 429: too many calls."""
    BUDGET_SPENT = "budget_spent"
    """We have called it as often as we may, and the caller could not wait."""
    BREAKER_OPEN = "breaker_open"
    """It failed several times in a row; it is left alone for a while."""
    KEY_REFUSED = "key_refused"
    """It refuses our key; only a merchant can mend that."""
    NO_ANSWER = "no_answer"
    """Something may have been sent, and no answer came: timeout, reset, cut off."""
    SERVER_ERROR = "server_error"
    """It answered 5xx."""
    UNREADABLE = "unreadable"
    """It answered something that is not what it promises, such as a page of HTML."""
    REFUSED = "refused"
    """It understood and refused (4xx), in its own words."""


class ProgramError(Exception):
    """A program did not do what it was asked; the text is a sentence for the operator.

    `retry_after_s` is set when the program, or our budget, says how long to wait.
    """

    def __init__(self, reason: ProgramReason, sentence: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ProgramUnavailable(ProgramError):
    """Nothing was done, and asking again later may help (after KEY_REFUSED: once the key is replaced)."""


class OutcomeUnknown(ProgramUnavailable):
    """It may have been done: NO_ANSWER, SERVER_ERROR or UNREADABLE. For a read that is the same as unavailable."""


class ProgramRefused(ProgramError):
    """The program refused for good. `told` are its own words, or empty; without e-mail addresses, at most 200
    characters."""

    def __init__(self, told: str, *, status: int) -> None:
        super().__init__(ProgramReason.REFUSED, f"The program answered {status}{f': {told}' if told else ''}.")
        self.told = told
        self.status = status


class UnknownMember(Exception):
    """The program has no such member."""


class NotOffered(Exception):
    """The program has no way to do this; the text says what is missing."""


class LoyaltyProgram(Protocol):
    """A loyalty program. E-mails are normalised by the caller."""

    @property
    def remote(self) -> bool:
        """Whether it lives elsewhere: asking takes time and can fail with ProgramError; nothing is in our database."""

    def member(
        self, store: Store, *, email: str, with_date_of_birth: bool = False, within_s: float | None = None
    ) -> Member | None:
        """The member with this e-mail as the program knows them now, or None.

        The date of birth is read only where it is asked for. `within_s` says that an agent waits, at most so long:
        a remote program then leaves out the recent activity, which would take another call; None is background work.
        Raises ProgramUnavailable, ProgramRefused.
        """

    def email_of(self, store: Store, *, member_hmac: str) -> str | None:
        """The e-mail behind the keyed HMAC of an award key, or None when the member is gone or was never seen."""

    def add_points(
        self, store: Store, *, event: NewPointsEvent, within: Connection | None = None, within_s: float | None = None
    ) -> PointsEvent:
        """Write a points event. An operation id counts once: asked again, the first event's effect is told.

        `within` is the caller's transaction: a program that lives in our database commits with it, a remote one needs
        none. `within_s` as for `member`.
        Raises UnknownMember; ProgramUnavailable (nothing was added), OutcomeUnknown, ProgramRefused.
        """

    def find_points(self, store: Store, *, event: NewPointsEvent, within_s: float | None = None) -> PointsEvent | None:
        """Look for the points event of an operation id, back to `asked_at`; None when the program certainly has none.

        Raises ProgramUnavailable when that cannot be told.
        """

    def check_ready(self, store: Store) -> None:
        """Raises ProgramUnavailable when it is known without asking that nothing would be done now."""

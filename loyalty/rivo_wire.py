"""Rivo's API as data: requests to send, answers judged and read. No I/O.

What Rivo documents carries a link; where its documentation is silent or contradicts what others have seen, either
answer works, and the place says UNKNOWN. No reader raises for a surprising shape: what it cannot read is None or empty.

Facts: https://developer-docs.rivo.io/reference, https://developer-docs.rivo.io/reference/pagination
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import orjson

from loyalty.program import (
    OutcomeUnknown,
    ProgramReason,
    ProgramRefused,
    ProgramUnavailable,
    UnknownMember,
)
from schemas.email import normalise
from schemas.link import web_address
from schemas.widget import without_addresses

PAGE_SIZE = 250  # https://developer-docs.rivo.io/reference/pagination: 25 unless asked, at most 250
LAST_PAGE = 500  # the same page: where offset paging ends
MOST_ROWS = 1_000  # of a page, whatever was asked for
MAX_TEXT = 200
# UNKNOWN how much Rivo keeps of a note. Ours begins with what must not be lost.
MAX_NOTE = 250
MAX_POINTS = 2_147_483_647  # int32, https://developer-docs.rivo.io/reference/adjust-customer-points
DEFAULT_PAUSE_S = 1.0  # the limit is for each second; UNKNOWN whether a 429 says how long to wait
MAX_PAUSE_S = 60.0

T = TypeVar("T")


# ----------------------------------------------------------------------------------------------- Keys


def clean_key(text: str) -> str:
    """An API key as it goes into a header. Raises ValueError with a sentence for the person who pasted it.

    UNKNOWN what a key looks like: nothing else is checked than that it can be sent.
    """
    key = text.strip()
    if not key:
        raise ValueError("Paste the REST API key from Rivo: Settings, Developer Toolkit, REST API Keys.")
    if any(c.isspace() for c in key):
        raise ValueError("A Rivo key has no spaces or line breaks: paste the key alone, without a word such as Bearer.")
    if len(key) > 4_000 or any(not c.isprintable() or ord(c) > 0xFF for c in key):
        raise ValueError("This cannot be a Rivo key: copy it once more from Rivo, with the Copy button beside it.")
    return key


# ------------------------------------------------------------------------------------------- Requests


Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request. `call` is its word in metrics; `form` is None where there is no body."""

    call: str
    method: str
    path: str
    query: Fields = ()
    form: Fields | None = None

    @property
    def writes(self) -> bool:
        return self.method != "GET"

    def target(self) -> str:
        """Path and query, to be put behind the base URL as text."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path

    def body(self) -> bytes | None:
        """Form data, as https://developer-docs.rivo.io/reference/adjust-customer-points shows it."""
        return None if self.form is None else urlencode(self.form).encode()


class Paging(StrEnum):
    """Rivo's two ways to page. The cursor is recommended and always goes by ascending id."""

    CURSOR = "cursor"
    OFFSET = "offset"


@dataclass(frozen=True, kw_only=True)
class NewRivoEvent:
    """A points event to create: points or store credit, negative to take away. Raises ValueError for anything else."""

    customer_identifier: str | int
    points: int | None = None
    credits: Decimal | None = None
    internal_note: str
    external_note: str | None = None
    skip_email: bool | None = None
    source: str = "manual"
    custom_action_name: str | None = None
    applied_at: datetime | None = None

    def __post_init__(self) -> None:
        check_amounts(points=self.points, credits=self.credits, optional=self.source != "manual")


def check_amounts(*, points: int | None, credits: Decimal | None, optional: bool) -> None:
    """Points or store credit, never both, never zero. Raises ValueError."""
    if points is not None and credits is not None:
        raise ValueError("points or store credit, not both")
    if points is None and credits is None and not optional:
        raise ValueError("neither points nor store credit")
    if points is not None and (isinstance(points, bool) or not 0 < abs(points) <= MAX_POINTS):
        raise ValueError("points must be a whole number that Rivo can hold, and not zero")
    if credits is not None and not (credits.is_finite() and credits and credits == round(credits, 2)):
        raise ValueError("store credit must be an amount with at most two decimals, and not zero")


def segment(identifier: str | int) -> str:
    """A customer's e-mail or Shopify id as one segment of a path."""
    text = str(identifier)
    # "." and ".." are taken out of a path by whoever forwards it, quoted or not.
    if not text.strip("."):
        raise ValueError("no identifier")
    return quote(text, safe="")


def try_key() -> Request:
    """The cheapest call that cannot be a 404: Rivo has no endpoint for the store itself."""
    return Request(call="try_key", method="GET", path="/vip_tiers", query=(("pagination[per_page]", "1"),))


def customer(identifier: str | int) -> Request:
    return Request(call="customer", method="GET", path=f"/customers/{segment(identifier)}")


def customers() -> Request:
    return Request(call="customers", method="GET", path="/customers")


def vip_tiers() -> Request:
    """https://developer-docs.rivo.io/reference/vip_tiers"""
    return Request(call="vip_tiers", method="GET", path="/vip_tiers")


def vip_tier(tier_id: int) -> Request:
    """https://developer-docs.rivo.io/reference/vip-tier"""
    return Request(call="vip_tier", method="GET", path=f"/vip_tiers/{segment(tier_id)}")


def rewards(*, purchase_type: str | None = None) -> Request:
    # UNKNOWN how the filter is spelled; a filter that Rivo does not know is ignored, so the rows are looked at as well.
    query = (("filters[purchase_type]", purchase_type),) if purchase_type is not None else ()
    return Request(call="rewards", method="GET", path="/rewards", query=query)


def earning_rules() -> Request:
    return Request(call="earning_rules", method="GET", path="/earning_rules")


def points_events(*, of: str | int | None = None, newest_first: bool) -> Request:
    """https://developer-docs.rivo.io/reference/points_events

    Only the direction is asked for: UNKNOWN by which names the fields to sort by go here, and what another one does.
    """
    query: Fields = ()
    if of is not None:
        query += (("filters[customer_identifier]", str(of)),)
    if newest_first:
        query += (("sort[order_direction]", "desc"),)
    return Request(call="points_events", method="GET", path="/points_events", query=query)


def redemptions(*, of: str | int, used: bool | None = None) -> Request:
    query: Fields = (("filters[customer_identifier]", str(of)),)
    if used is not None:
        query += (("filters[used]", _flag(used)),)
    query += (("sort[order_type]", "applied_at"), ("sort[order_direction]", "desc"))
    return Request(call="redemptions", method="GET", path="/points_redemptions", query=query)


def create_points_event(event: NewRivoEvent) -> Request:
    """https://developer-docs.rivo.io/reference/adjust-customer-points"""
    form: list[tuple[str, str | None]] = [
        ("customer_identifier", str(event.customer_identifier)),
        ("source", event.source),
        ("points_amount", None if event.points is None else str(event.points)),
        ("credits_amount", None if event.credits is None else f"{event.credits:.2f}"),
        ("internal_note", event.internal_note),
        ("external_note", event.external_note),
        ("skip_email", None if event.skip_email is None else _flag(event.skip_email)),
        ("custom_action_name", event.custom_action_name),
        ("applied_at", None if event.applied_at is None else _moment(event.applied_at)),
    ]
    return Request(call="create_points_event", method="POST", path="/points_events", form=_given(form))


def create_redemption(
    *, of: str | int, reward_id: int, points: int | None = None, credits: Decimal | None = None
) -> Request:
    """An amount belongs to a reward of any size only. Raises ValueError for one that is none."""
    check_amounts(points=points, credits=credits, optional=True)
    form: list[tuple[str, str | None]] = [
        ("customer_identifier", str(of)),
        ("reward_id", str(reward_id)),
        ("points_amount", None if points is None else str(points)),
        ("credits_amount", None if credits is None else f"{credits:.2f}"),
    ]
    return Request(call="create_redemption", method="POST", path="/points_redemptions", form=_given(form))


def set_date_of_birth(identifier: str | int, *, month: int, day: int) -> Request:
    """UNKNOWN in which form a date of birth is written: sent as it is read, `05-31`. Raises ValueError for no date."""
    born = date(2000, month, day)  # a leap year
    return Request(
        call="set_date_of_birth",
        method="PUT",
        path=f"/customers/{segment(identifier)}",
        form=(("dob", f"{born:%m-%d}"),),
    )


def cancel_membership(identifier: str | int) -> Request:
    """https://developer-docs.rivo.io/reference/cancel-customer-membership.md

    UNKNOWN: the name and the values of the parameter that says when. The store's own policy decides.
    """
    return Request(call="cancel_membership", method="DELETE", path=f"/memberships/{segment(identifier)}/cancel")


def _given(form: list[tuple[str, str | None]]) -> Fields:
    return tuple((name, value) for name, value in form if value is not None)


def _flag(on: bool) -> str:
    return "true" if on else "false"


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---------------------------------------------------------------------------------- Outcome of a call


class NothingCame(StrEnum):
    """Why there is no answer to judge."""

    NOT_SENT = "not_sent"
    """No byte of the request was written."""
    NO_ANSWER = "no_answer"
    """It may have been written, and no whole answer came in time."""
    TOO_LARGE = "too_large"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer. `ended` says that the end of its body was announced, so that an empty one is not a cut one."""

    status: int
    phrase: str = ""
    body: bytes = b""
    retry_after: str | None = None
    ended: bool = True


def judge(came: Answer | NothingCame, *, writes: bool, now: datetime, why: str = "") -> Any:
    """What became of a call: the JSON of a good answer, or None where there is nothing (404 to a read, no body to a
    write).

    The rule for a write: done only when Rivo says so in its own form, not done only when that is certain, and
    OutcomeUnknown for everything between. Raises ProgramUnavailable, OutcomeUnknown, ProgramRefused, UnknownMember.
    """
    if came is NothingCame.NOT_SENT:
        raise ProgramUnavailable(
            ProgramReason.NOT_REACHED, f"Rivo could not be reached{f': {why}' if why else ''}. Nothing was sent."
        )
    if came is NothingCame.NO_ANSWER:
        raise OutcomeUnknown(ProgramReason.NO_ANSWER, f"Rivo gave no whole answer{f': {why}' if why else ''}.")
    if not isinstance(came, Answer):
        raise OutcomeUnknown(ProgramReason.UNREADABLE, "Rivo's answer is too large to be read.")
    told, is_json = _load(came.body)
    if 200 <= came.status < 300:
        return _good(came, told, is_json=is_json) if writes else _found(came, told, is_json=is_json)
    return _bad(came, told, writes=writes, now=now)


def _good(answer: Answer, told: Any, *, is_json: bool) -> Any:
    """A write was answered 2xx."""
    if not answer.body.strip() and answer.ended and answer.status in (201, 204):
        return None
    if is_json and isinstance(told, dict) and not _has_error(told):
        if answer.status == 201:
            return told
        if isinstance(told.get("data"), dict) and told["data"]:
            return told
    raise OutcomeUnknown(
        ProgramReason.UNREADABLE, f"Rivo answered {answer.status} with something that does not show what it did."
    )


def _found(answer: Answer, told: Any, *, is_json: bool) -> Any:
    """A read was answered 2xx."""
    if is_json and isinstance(told, dict) and "data" not in told and _has_error(told):
        if _says_nobody(words(told)):
            return None
        raise ProgramRefused(words(told), status=answer.status)
    if is_json and isinstance(told, dict | list):
        return told
    raise OutcomeUnknown(ProgramReason.UNREADABLE, f"Rivo answered {answer.status} with something that is not JSON.")


def _bad(answer: Answer, told: Any, *, writes: bool, now: datetime) -> Any:
    """Anything but 2xx."""
    status = answer.status
    if status in (401, 403):
        raise ProgramUnavailable(
            ProgramReason.KEY_REFUSED,
            f"Rivo refuses the key ({status}): it may have been regenerated, or the plan no longer includes the API. "
            "Paste the current REST API key, alone and without a word such as Bearer before it.",
        )
    if status == 429:
        # UNKNOWN whether Rivo may have done what it answered 429 to: taken as not done, as every client found does.
        raise ProgramUnavailable(
            ProgramReason.BUSY,
            "Rivo is asked too often just now (429).",
            retry_after_s=read_pause(answer.retry_after, now=now),
        )
    if status >= 500:
        raise OutcomeUnknown(ProgramReason.SERVER_ERROR, f"Rivo answered {status}.")
    if status < 400:
        raise OutcomeUnknown(ProgramReason.UNREADABLE, f"Rivo answered {status}, which is no answer to this.")
    if status == 408:
        raise OutcomeUnknown(ProgramReason.NO_ANSWER, "Rivo's side gave up waiting (408).")
    own_words = words(told)
    # UNKNOWN which status and words a customer gets whom Rivo does not know.
    if (status == 404 or _says_nobody(own_words)) and not _speaks_of_reward(own_words):
        if writes:
            raise UnknownMember
        return None
    raise ProgramRefused(own_words or shown(answer.phrase), status=status)


def _load(body: bytes) -> tuple[Any, bool]:
    """The JSON of a body, and whether it is any."""
    try:
        return orjson.loads(body), True
    except orjson.JSONDecodeError:
        return None, False


def _has_error(told: Mapping[str, Any]) -> bool:
    return told.get("success") is False or bool(told.get("error")) or bool(told.get("errors"))


def words(told: Any) -> str:
    """Rivo's own words for what is wrong: `error`, else `message`, else `errors`, a list or by field; may be empty."""
    if not isinstance(told, dict):
        return ""
    for name in ("error", "message", "errors"):
        if found := shown("; ".join(_sentences(told.get(name)))):
            return found
    return ""


def _sentences(said: Any, *, depth: int = 3) -> Iterator[str]:
    if isinstance(said, str):
        yield said[: 10 * MAX_TEXT]
    elif depth and isinstance(said, list):
        for part in said[:10]:
            yield from _sentences(part, depth=depth - 1)
    elif depth and isinstance(said, dict):
        for name, part in list(said.items())[:10]:
            inner = "; ".join(_sentences(part, depth=depth - 1))
            if inner:
                yield inner if name in ("message", "detail", "title", "msg") else f"{name} {inner}"


_NOBODY = re.compile(
    r"\b(customer|member)s?\b.{0,40}\bnot (be )?found\b|\b(no|unknown) (such )?(customer|member)\b", re.I
)


def _says_nobody(own_words: str) -> bool:
    return _NOBODY.search(own_words) is not None


def _speaks_of_reward(own_words: str) -> bool:
    return re.search(r"\breward\b", own_words, re.I) is not None


def read_pause(header: str | None, *, now: datetime) -> float:
    """Seconds to wait after a 429: `Retry-After` in seconds or as a date, within bounds; one second without it."""
    said = (header or "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", said):
        seconds = float(said)
    else:
        try:
            until = parsedate_to_datetime(said)
            seconds = ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return DEFAULT_PAUSE_S
    return min(max(seconds, DEFAULT_PAUSE_S), MAX_PAUSE_S)


# -------------------------------------------------------------------------------------- What is read


@dataclass(frozen=True, kw_only=True)
class Customer:
    """A customer. `status` is `member`, `guest`, `excluded` or what Rivo may add; texts are empty where there is none.

    https://developer-docs.rivo.io/reference/customers-1
    """

    id: int | None
    email: str
    status: str
    points_tally: int | None
    credits_tally: Decimal | None
    vip_tier_name: str
    referral_url: str
    referral_code: str
    points_expire_at: str
    lifetime_earnings_tally: int | None
    date_of_birth: str


@dataclass(frozen=True, kw_only=True)
class VipTier:
    """A VIP tier. `threshold` counts points, money or orders, by the store's choice."""

    id: int | None
    name: str
    threshold: Decimal | None
    perks: tuple[str, ...]
    description: str


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Something to spend points on. The kinds are open: Rivo may add some."""

    id: int | None
    name: str
    enabled: bool | None
    reward_type: str
    value: Decimal | None
    points: int | None
    points_type: str
    source: str
    purchase_type: str


@dataclass(frozen=True, kw_only=True)
class EarningRule:
    """A way to earn points. The triggers are open: Rivo may add some."""

    id: int | None
    title: str
    status: str
    trigger: str
    points: int | None
    credits: Decimal | None
    points_type: str
    custom_action_name: str


@dataclass(frozen=True, kw_only=True)
class PointsEventRecord:
    """One row of a member's book. `points` and `credits` are negative where they were taken away.

    `what` is for people; `internal_note` is as Rivo keeps it, never to be shown to shoppers.
    """

    id: int | None
    points: int
    credits: Decimal | None
    what: str
    internal_note: str
    source: str
    applied_at: datetime | None
    created_at: datetime | None
    revoked: bool
    hidden: bool
    # Whether the amount (points, else credits) has the sign that Rivo gave, not one taken from the kind of event.
    sign_known: bool = False
    # Of whom it is, where the row tells.
    customer_email: str = ""
    customer_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Redemption:
    """Points or store credit spent for a reward. Store credit may come without a code."""

    id: int | None
    name: str
    code: str
    points: int | None
    credits: Decimal | None
    reward_id: int | None
    applied_at: datetime | None
    expires_at: datetime | None
    used_at: datetime | None
    taken_back: bool
    customer: Customer | None

    @property
    def used(self) -> bool:
        return self.used_at is not None


@dataclass(frozen=True, kw_only=True)
class CreatedEvent:
    """A points event that was written, as far as Rivo told. The balance of an embedded customer is not to be trusted:
    one was seen from before the event."""

    id: int | None
    customer: Customer | None


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A paid membership."""

    email: str
    customer_id: int | None
    source: str
    tier_id: int | None
    started_at: datetime | None
    ended_at: datetime | None
    ends_later_at: datetime | None
    subscription_status: str
    billing_interval: str
    next_billing_at: datetime | None
    currency: str


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """A membership that ends, as far as Rivo told: empty after 204."""

    status: str = ""
    message: str = ""
    policy: str = ""


def read_customer(told: Any) -> Customer | None:
    """A customer, with or without the envelope; None when it is not one."""
    resource_id, found = _resource(told)
    if not found:
        return None
    tally = found.get("points_tally")
    return Customer(
        id=resource_id,
        email=normalise(_string(found.get("email"))) or "",
        status=shown(found.get("loyalty_status")),
        # The documented object says loyalty_points_tally, live answers points_tally.
        points_tally=_whole(found.get("loyalty_points_tally") if tally is None else tally),
        credits_tally=_amount(found.get("credits_tally")),
        vip_tier_name=_tier_name(found.get("vip_tier")),
        referral_url=web_address(_string(found.get("referral_url"))),
        referral_code=shown(found.get("referral_code")),
        points_expire_at=shown(found.get("points_expire_at")),
        lifetime_earnings_tally=_whole(found.get("lifetime_earnings_tally")),
        date_of_birth=_month_and_day(found.get("dob")),
    )


def shows_nobody(told: Any) -> bool:
    """Whether a good answer about one customer holds none. UNKNOWN whether Rivo ever answers so instead of 404."""
    return told is None or (isinstance(told, dict) and "data" in told and not told["data"])


def read_vip_tier(told: Any) -> VipTier | None:
    """A VIP tier, with or without the envelope; None when it is not one."""
    resource_id, found = _resource(told)
    name = shown(found.get("name"))
    if not name:
        return None
    perks = found.get("perks")
    return VipTier(
        id=resource_id,
        name=name,
        threshold=_amount(found.get("threshold")),
        perks=tuple(filter(None, map(_label, perks[:50]))) if isinstance(perks, list) else (),
        description=shown(found.get("desc")),
    )


def read_reward(told: Any) -> Reward | None:
    """A reward; None when it is not one."""
    resource_id, found = _resource(told)
    name = shown(found.get("name"))
    if not name:
        return None
    return Reward(
        id=resource_id,
        name=name,
        enabled=_truth(found.get("enabled")),
        reward_type=shown(found.get("reward_type")),
        value=_amount(found.get("reward_value")),
        points=_whole(found.get("points_amount")),
        points_type=shown(found.get("points_type")),
        source=shown(found.get("source")),
        purchase_type=shown(found.get("purchase_type")),
    )


def read_earning_rule(told: Any) -> EarningRule | None:
    """An earning rule; None when it has no title: rows that are all but empty were seen."""
    resource_id, found = _resource(told)
    title = shown(found.get("title")) or shown(found.get("name"))
    if not title:
        return None
    return EarningRule(
        id=resource_id,
        title=title,
        status=shown(found.get("status")),
        trigger=shown(found.get("trigger")),
        points=_whole(found.get("points_amount")),
        credits=_amount(found.get("credits_amount")),
        points_type=shown(found.get("points_type")),
        custom_action_name=shown(found.get("custom_action_name")),
    )


def read_points_event(told: Any) -> PointsEventRecord | None:
    """A row of the book; None when it is not one."""
    resource_id, found = _resource(told)
    if not found:
        return None
    source = shown(found.get("source"))
    customer = read_customer(found.get("customer"))
    spent = source in _SPENDING or found.get("points_purchases_id") is not None
    points = _signed(found.get("points_diff"), found.get("points_amount"), spent=spent, read=_whole) or 0
    return PointsEventRecord(
        id=resource_id,
        points=points,
        credits=_signed(found.get("credits_diff"), found.get("credits_amount"), spent=spent, read=_amount),
        what=shown(found.get("title")) or shown(found.get("external_note")) or _readable(source) or "Points changed",
        internal_note=_string(found.get("internal_note"))[: 10 * MAX_NOTE],
        source=source,
        applied_at=_time(found.get("applied_at")),
        created_at=_time(found.get("created_at")),
        revoked=_is_set(found.get("revoked_at")),
        hidden=_is_set(found.get("hidden")),
        sign_known=_amount(found.get("points_diff" if points else "credits_diff")) is not None,
        customer_email="" if customer is None else customer.email,
        customer_id=_whole(found.get("customer_identifier")) if customer is None else customer.id,
    )


# Sources whose amounts are taken away. An amount is a magnitude: only the difference has a sign.
_SPENDING = frozenset({"points_purchase"})


def read_redemption(told: Any) -> Redemption | None:
    """A redemption, with or without the envelope; None when it is not one."""
    resource_id, found = _resource(told)
    if not found:
        return None
    reward_id, reward = _resource(found.get("reward"))
    return Redemption(
        id=resource_id,
        name=shown(found.get("name")) or shown(reward.get("name")),
        code=shown(found.get("code")),
        points=_signed(found.get("points_diff"), found.get("points_amount"), spent=True, read=_whole),
        credits=_signed(found.get("credits_diff"), found.get("credits_amount"), spent=True, read=_amount),
        reward_id=reward_id,
        applied_at=_time(found.get("applied_at")),
        expires_at=_time(found.get("expires_at")),
        # A documented `used` does not come; the time does.
        used_at=_time(found.get("used_at")),
        taken_back=_is_set(found.get("refunded_at")) or _is_set(found.get("revoked_at")),
        customer=read_customer(found.get("customer")),
    )


def read_created_event(told: Any) -> CreatedEvent:
    """What a created points event tells; nothing need be told. UNKNOWN: the shape of the answer."""
    resource_id, found = _resource(told)
    return CreatedEvent(id=resource_id, customer=read_customer(found.get("customer")))


def read_membership(told: Any) -> Membership | None:
    """A membership in the shape that https://kodif.ai/blog/tool/rivo shows; None when there is none."""
    _, found = _resource(told)
    membership, subscription, whose = (
        part if isinstance(part, dict) else {} for part in map(found.get, ("membership", "subscription", "customer"))
    )
    if not membership and not subscription:
        return None
    return Membership(
        email=normalise(_string(whose.get("email"))) or "",
        customer_id=_whole(whose.get("customer_id")),
        source=shown(membership.get("source")),
        tier_id=_whole(membership.get("membership_tier_id")),
        started_at=_time(membership.get("started_at")),
        ended_at=_time(membership.get("ended_at")),
        ends_later_at=_time(membership.get("queued_for_cancellation_at")),
        subscription_status=shown(subscription.get("status")),
        billing_interval=shown(subscription.get("billing_interval")),
        next_billing_at=_time(subscription.get("next_billing_date_at")),
        currency=shown(subscription.get("currency_code")),
    )


def read_cancellation(told: Any) -> Cancellation:
    """What a cancelled membership tells: nothing after the documented 204, a little in the answer others have seen."""
    _, found = _resource(told)
    return Cancellation(
        status=shown(found.get("status")),
        message=shown(found.get("message")),
        policy=shown(found.get("cancellation_policy")),
    )


# -------------------------------------------------------------------------------------------- Paging


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list, and the query that asks for the next one; None at the end."""

    items: tuple[T, ...]
    next: Fields | None


def first_page(paging: Paging, *, size: int = PAGE_SIZE) -> Fields:
    """Never both ways at once: Rivo would drop silently to the offset."""
    if paging is Paging.CURSOR:
        return (("pagination[since_id]", "0"), ("pagination[limit]", str(size)))
    return (("pagination[page]", "1"), ("pagination[per_page]", str(size)))


def read_page(told: Any, *, asked: Fields, read: Callable[[Any], T | None]) -> Page[T] | None:
    """A page, without the rows that `read` takes for nothing; None when this is no list or a row is no object.

    Rivo's own links are never followed. UNKNOWN whether a list's end is a null or a missing link: where there is none,
    a full page goes on and a short one ends.
    """
    rows = told.get("data") if isinstance(told, dict) else None
    if not isinstance(rows, list) or len(rows) > MOST_ROWS or not all(isinstance(row, dict) for row in rows):
        return None
    links = told.get("links")
    items = tuple(item for item in map(read, rows) if item is not None)
    return Page(items=items, next=_next_page(rows, links if isinstance(links, dict) else {}, asked=dict(asked)))


def _next_page(rows: list[Any], links: Mapping[str, Any], *, asked: Mapping[str, str]) -> Fields | None:
    if not rows:
        return None
    if "pagination[since_id]" in asked:
        since, limit = int(asked["pagination[since_id]"]), asked["pagination[limit]"]
        after = _whole(links.get("next_since_id"))
        if "next_since_id" not in links and len(rows) >= int(limit):
            after = max((row_id for row_id in (_resource(row)[0] for row in rows) if row_id is not None), default=None)
        # One that does not go forward would never end.
        if after is None or after <= since:
            return None
        return (("pagination[since_id]", str(after)), ("pagination[limit]", limit))
    page, size = int(asked["pagination[page]"]), asked["pagination[per_page]"]
    more = links["next"] if "next" in links else len(rows) >= int(size)
    return (("pagination[page]", str(page + 1)), ("pagination[per_page]", size)) if more else None


# ------------------------------------------------------------------------------------- Notes of ours


def internal_note(operation_id: str, what: str) -> str:
    """The note that carries an operation id to Rivo; its tail may be cut without harm."""
    return f"Tallydesk {operation_id}: {what}"[:MAX_NOTE].rstrip()


def read_internal_note(text: str) -> tuple[str, str] | None:
    """Operation id and text of a note of ours, whatever was put before it; None when it is none.

    Rivo's admin was seen to write `name@shop: ` before a note. Only the first id counts: an agent's text follows it.
    """
    found = _NOTE.search(text)
    return (found["id"], " ".join((found["what"] or "").split())) if found else None


_NOTE = re.compile(r"(?:^|(?<=\W))Tallydesk\s+(?P<id>[^\s:]+):?(?:\s+(?P<what>.*))?", re.S)


def carries(record: PointsEventRecord, operation_id: str) -> bool:
    """Whether a row was written under this operation id; its note may have been cut within the id."""
    found = read_internal_note(record.internal_note)
    if found is None:
        return False
    known, rest = found
    return known == operation_id or (
        not rest and len(known) >= 12 and operation_id.startswith(known) and not record.internal_note.endswith(":")
    )


def is_opposite(record: PointsEventRecord, *, taken: bool) -> bool:
    """Whether Rivo says that a row does the opposite of taking (`taken`) or giving."""
    amount = record.points or record.credits or 0
    return record.sign_known and amount != 0 and (amount < 0) is not taken


# ------------------------------------------------------------------------------------------- Values


def _resource(told: Any) -> tuple[int | None, Mapping[str, Any]]:
    """Id and attributes of a resource: within `data`, within `attributes`, or flat; empty when it is none.

    A points event's own id is a pair of shop and event; the one beside the attributes is the event's.
    """
    if isinstance(told, dict) and isinstance(told.get("data"), dict):
        told = told["data"]
    if not isinstance(told, dict):
        return None, {}
    attributes = told.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else told
    for candidate in (told.get("id"), attributes.get("id")):
        if isinstance(candidate, list):
            candidate = candidate[-1] if candidate else None
        if (found := _whole(candidate)) is not None:
            return found, attributes
    return None, attributes


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def shown(value: Any) -> str:
    """Text for people from what Rivo gave: one line, at most 200 characters, no address; empty when it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    text = unicodedata.normalize("NFC", str(value)[: 10 * MAX_TEXT])
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return without_addresses(re.sub("%40", "@", text))[:MAX_TEXT].rstrip()


def _label(value: Any) -> str:
    """A text, or the name of an object."""
    return shown(value.get("name") or value.get("title")) if isinstance(value, dict) else shown(value)


def _tier_name(value: Any) -> str:
    """A tier as an object, as a resource, or as a bare name; empty when there is none."""
    return _label(_resource(value)[1] if isinstance(value, dict) else value)


def _readable(word: str) -> str:
    """`order_placed` as "Order placed"."""
    text = word.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def _whole(value: Any) -> int | None:
    """A whole number that a database can hold, from a number or its text."""
    if isinstance(value, str):
        value = value.strip()
        value = int(value.partition(".")[0]) if re.fullmatch(r"[+-]?[0-9]{1,18}(\.0{1,6})?", value) else None
    if isinstance(value, float):
        value = int(value) if abs(value) < 2**53 and value.is_integer() else None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        return None
    return value


def _amount(value: Any) -> Decimal | None:
    """A decimal of a size that money has, from a number or its text; never by way of a float's digits."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        amount = Decimal(str(value).strip()[:40])
    except InvalidOperation:
        return None
    if not amount.is_finite() or amount.adjusted() > 15 or amount.as_tuple().exponent < -20:  # type: ignore[operator]
        return None
    return amount


def _signed(diff: Any, amount: Any, *, spent: bool, read: Callable[[Any], T | None]) -> T | None:
    """What changed: the difference where it is told, else the amount with the sign that its source has."""
    told: Any = read(diff)
    if told is not None:
        return told  # type: ignore[no-any-return]
    told = read(amount)
    if told is not None and spent:
        told = -abs(told)
    return told  # type: ignore[no-any-return]


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _is_set(value: Any) -> bool:
    """Whether a mark is there that may be a time, a flag or null."""
    return value not in (None, False, "", 0, "false")


def _time(value: Any) -> datetime | None:
    """An ISO 8601 time, UTC where it names no zone."""
    try:
        when = datetime.fromisoformat(_string(value).strip())
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _month_and_day(value: Any) -> str:
    """A date of birth as `05-31`, whatever its padding; a year is left out. Empty when it is none."""
    found = re.fullmatch(r"(?:[0-9]{4}-)?([0-9]{1,2})-([0-9]{1,2})", _string(value).strip())
    if not found:
        return ""
    try:
        return f"{date(2000, int(found[1]), int(found[2])):%m-%d}"
    except ValueError:
        return ""


def same_customer(found: Customer, asked: str | int) -> bool:
    """Whether an answer is about the customer who was asked for by e-mail; by id there is nothing to compare."""
    text = str(asked)
    return "@" not in text or (found.email != "" and found.email == normalise(text))

"""Rivo's webhooks as data: whether one is signed with the store's secret, and what it tells. No I/O.

Three generations of signatures exist. The documented ones cover the body alone
(https://developer-docs.rivo.io/reference/verifying-webhook-signatures); the live one, which the documentation does not
have, covers id and time as well. No reader raises for a surprising shape.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import orjson

from loyalty.rivo_wire import read_customer, read_internal_note, read_points_event
from schemas.email import normalise

SIGNATURE, ID, TIMESTAMP, TOPIC = (f"rivo-webhook-{name}" for name in ("signature", "id", "timestamp", "topic"))
LEGACY_SIGNATURE = "rivo-signature"

# How far the sender's clock may be from ours, and how long a delivery that somebody has caught can be sent again.
TOLERANCE = timedelta(minutes=5)
MOST_CUSTOMERS = 4


# ------------------------------------------------------------------------------------------ Signature


class Fault(StrEnum):
    """Why a delivery is not believed."""

    SECRET_MISSING = "secret_missing"
    SIGNATURE_MISSING = "signature_missing"
    HEADER_MISSING = "header_missing"
    """A signature over id and time came without one of the two."""
    SIGNATURE_WRONG = "signature_wrong"
    TIMESTAMP_UNREADABLE = "timestamp_unreadable"
    TIMESTAMP_STALE = "timestamp_stale"


class NotBelieved(Exception):
    """The delivery does not prove to come from Rivo, or to be new. `fault` is the word for it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Scheme(StrEnum):
    """How a delivery was signed."""

    STANDARD = "standard"
    LEGACY = "legacy"


class TimeForm(StrEnum):
    """How the time of a delivery was written."""

    NONE = "none"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    ISO = "iso"


@dataclass(frozen=True, kw_only=True)
class Believed:
    """A delivery that is signed as it should be. `delivery_hash` is what a repetition of it is recognised by."""

    scheme: Scheme
    time_form: TimeForm
    delivery_hash: str


def check(headers: Mapping[str, str], body: bytes, *, secrets: Sequence[str], now: datetime) -> Believed:
    """Check the signature over the bytes as they came; `headers` by lower-case names. Raises NotBelieved.

    The header that is there chooses the scheme: a wrong new signature never falls back to the old one, which covers
    neither id nor time.
    """
    if SIGNATURE in headers:
        return _check_standard(headers, body, secrets=secrets, now=now)
    given = _bytes(headers.get(LEGACY_SIGNATURE, "").strip())
    # Base64 by the present documentation, hexadecimal by an older one.
    signed = _is_signed(body, given=[given, given.lower()], secrets=secrets, with_hex=True)
    if LEGACY_SIGNATURE not in headers:
        raise NotBelieved(Fault.SIGNATURE_MISSING)
    _require(signed, secrets)
    # By the body alone: nothing else is signed, and an id beside it could be made up anew for each repetition.
    return Believed(scheme=Scheme.LEGACY, time_form=TimeForm.NONE, delivery_hash=_hash(b"body", body))


def _check_standard(headers: Mapping[str, str], body: bytes, *, secrets: Sequence[str], now: datetime) -> Believed:
    delivery_id, timestamp = _bytes(headers.get(ID, "")), headers.get(TIMESTAMP, "")
    signed = _is_signed(
        b".".join((delivery_id, _bytes(timestamp), body)),
        given=_labelled(headers[SIGNATURE]),
        secrets=secrets,
        with_hex=False,
    )
    if not delivery_id or not timestamp:
        raise NotBelieved(Fault.HEADER_MISSING)
    _require(signed, secrets)
    sent = read_time(timestamp)
    if sent is None:
        raise NotBelieved(Fault.TIMESTAMP_UNREADABLE)
    when, form = sent
    if abs(now - when) > TOLERANCE:
        raise NotBelieved(Fault.TIMESTAMP_STALE)
    return Believed(scheme=Scheme.STANDARD, time_form=form, delivery_hash=_hash(b"id", delivery_id))


def _labelled(header: str) -> list[bytes]:
    """The signatures of a header, separated by spaces, each with or without the label `v1,`; other labels are not for
    us."""
    found = []
    for part in header.split():
        label, comma, value = part.partition(",")
        if not comma:
            found.append(_bytes(part))
        elif label == "v1":
            found.append(_bytes(value))
    return found


def _is_signed(signed: bytes, *, given: list[bytes], secrets: Sequence[str], with_hex: bool) -> bool:
    """Whether one of `given` is the HMAC of `signed` under one of the secrets; the same work whichever it is.

    The secret is used as text, although it looks like hexadecimal digits. An empty one signs nothing.
    """
    found = False
    for secret in secrets or ("",):
        digest = hmac.digest(secret.encode() or b"none", signed, "sha256")
        for expected in (b64encode(digest), digest.hex().encode()) if with_hex else (b64encode(digest),):
            for one in given or [b""]:
                found |= hmac.compare_digest(expected, one) and secret != ""
    return found


def _require(signed: bool, secrets: Sequence[str]) -> None:
    if not any(secrets):
        raise NotBelieved(Fault.SECRET_MISSING)
    if not signed:
        raise NotBelieved(Fault.SIGNATURE_WRONG)


def read_time(text: str) -> tuple[datetime, TimeForm] | None:
    """The time of a delivery. UNKNOWN in which form it comes: one of ten digits was seen, so probably unix seconds."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{9,11}", text):
        return datetime.fromtimestamp(int(text), UTC), TimeForm.SECONDS
    if re.fullmatch(r"[0-9]{12,14}", text):
        return datetime.fromtimestamp(int(text) / 1000, UTC), TimeForm.MILLISECONDS
    # With a time and a zone: anything less is a guess.
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]{5,20}(Z|[+-][0-9]{2}:?[0-9]{2})", text):
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC), TimeForm.ISO
    except (ValueError, OverflowError):
        return None


def _bytes(header: str) -> bytes:
    """A header as it came over the wire: WSGI gives its bytes as Latin-1."""
    return header.encode("latin-1", "replace")


def _hash(kind: bytes, named: bytes) -> str:
    return hashlib.sha256(kind + b":" + named).hexdigest()


# ----------------------------------------------------------------------------------------- What it tells


# What changes, or may change, something that a card shows. About thirty topics exist, not all of them documented:
# https://developer-docs.rivo.io/reference/webhooks-1.md
_CHANGES = frozenset(
    {
        "balance_transaction",
        "customer_vip_tier",
        "loyalty_profile",
        "membership",
        "points_event",
        "points_redemption",
        "referral",
    }
)
# What announces something and changes nothing yet.
_NOTHING = frozenset({"notification", "referral_invite"})


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A points event that carries an operation id of ours; one of the amounts is 0, both are negative when taken."""

    operation_id: str
    points: int
    credit_cents: int


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a webhook tells: whose values have changed, and the award that it proves, if any.

    `known` says whether its topic is. The balances in it are left alone: one from before the event was seen.
    """

    topic: str
    known: bool
    emails: tuple[str, ...]
    evidence: Evidence | None


def read(body: bytes, *, topic_header: str = "") -> Told | None:
    """What a webhook tells; None when it is no JSON object.

    The topic stands in the body by the documentation, and in a header by what was seen. The body's counts where both
    are there, being signed under every scheme.
    """
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(told, dict):
        return None
    found = _attributes(told)
    topic = _text(told.get("event_type")) or _text(found.get("event_type")) or topic_header.strip()
    kind = topic.partition("/")[0]
    return Told(
        topic=topic,
        known=kind in _CHANGES or kind in _NOTHING,
        # An unknown topic may well be about a change, and to ask once more does no harm.
        emails=() if kind in _NOTHING else _emails(found),
        # No other topic: an event that was taken back would look the same.
        evidence=_evidence(told) if topic == "points_event/created" else None,
    )


def _attributes(told: dict[str, Any]) -> Mapping[str, Any]:
    """The fields of a body, out of the envelope of the REST API where it comes in one."""
    data = told.get("data")
    inner = data if isinstance(data, dict) else told
    attributes = inner.get("attributes")
    return attributes if isinstance(attributes, dict) else inner


def _emails(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The customers that a body is about. Every shape that is documented or was seen:

    a customer within it (https://developer-docs.rivo.io/reference/customer-vip-tier-downgraded.md), the customer as the
    body itself (https://developer-docs.rivo.io/reference/loyalty-profile-updated.md), an e-mail
    (https://developer-docs.rivo.io/reference/membership-payment-success.md), the two sides of a referral.
    """
    customers = (read_customer(found.get(name)) for name in ("customer", "referrer_customer", "referred_customer"))
    plain = (found.get(name) for name in ("email", "customer_email", "referred_email", "advocate_email"))
    emails = [
        *(customer.email for customer in customers if customer is not None),
        *(normalise(_text(email)) for email in plain),
    ]
    return tuple(dict.fromkeys(email for email in emails if email))[:MOST_CUSTOMERS]


def _evidence(told: dict[str, Any]) -> Evidence | None:
    event = read_points_event(told)
    note = None if event is None or event.revoked else read_internal_note(event.internal_note)
    if event is None or note is None:
        return None
    cents = _cents(event.credits)
    return None if cents is None else Evidence(operation_id=note[0], points=event.points, credit_cents=cents)


def _cents(credits: Decimal | None) -> int | None:
    """Store credit in hundredths; None when it is none that we would give. A number in JSON may be off by a hair."""
    exact = (credits or Decimal(0)) * 100
    cents = round(exact)
    return cents if abs(exact - cents) < Decimal("0.01") else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""

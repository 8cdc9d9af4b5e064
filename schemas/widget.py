"""An award request as the sidebar's button sends it: numbers as text, templates perhaps unresolved."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields

from schemas.email import read_addresses

MAX_POINTS = 9_999_999_999
MAX_REASON = 200
UNREADABLE = (
    "The button sent something we cannot read. "
    "Ask an admin to press Repair on the connection's page. Nothing was added."
)


class RequestFault(StrEnum):
    """What is wrong with a request, before anyone is asked."""

    POINTS_INVALID = "points_invalid"
    CREDIT_INVALID = "credit_invalid"
    REQUEST_UNREADABLE = "request_unreadable"
    REQUEST_TOO_LARGE = "request_too_large"
    TICKET_INVALID = "ticket_invalid"


class BadRequest(Exception):
    """The request cannot be understood. `reason` is the word, the text is the sentence for the agent."""

    def __init__(self, reason: RequestFault, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class PointsField(fields.Field[int]):
    """A plain ASCII whole number of 1 to 10 digits, at least 1; as JSON number or text, blanks around it allowed.

    marshmallow's own Integer takes "1_000", "٥", 5.9 and 10**30 (measured in 4.x); its strict form refuses "5".
    """

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value.strip(" \t\r\n")):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_POINTS:
            raise ValidationError("must be a whole number from 1")
        return value


MAX_CREDIT_CENTS = 100_000_000


def credit_cents(text: str) -> int | None:
    """An amount of store credit such as `5`, `5.50` or `5,50` in hundredths, 0.01 to 1,000,000; None for others."""
    found = re.fullmatch(r"([0-9]{1,7})(?:[.,]([0-9]{1,2}))?", text.strip(" \t\r\n"))
    if found is None:
        return None
    cents = int(found.group(1)) * 100 + int((found.group(2) or "").ljust(2, "0"))
    return cents if 1 <= cents <= MAX_CREDIT_CENTS else None


def one_line(text: str) -> str:
    """Text from a template or a form: trimmed, NFC, on one line; empty when it is an unresolved `{{…}}`."""
    text = unicodedata.normalize("NFC", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return "" if "{{" in text or "}}" in text or text in ("None", "null", "undefined") else text


def without_addresses(text: str) -> str:
    """Free text with every e-mail address taken out: it is kept and shown plain, and addresses never are."""
    # Bounded, and not at all without an @: free text of thousands of letters would take seconds.
    return re.sub(r"\S{1,320}@\S{1,320}", "[address]", text) if "@" in text else text


_TEXT: dict[str, Any] = {"type": ["string", "integer"]}


class TextField(fields.Field[str]):
    """Text as it arrived, or a number as text."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValidationError("Must be text.")
        return str(value)


class AwardSchema(Schema):
    """An award request, where points are asked for. What is said of each field goes into /openapi.json."""

    class Meta:
        # Gorgias may add fields of its own.
        unknown = EXCLUDE

    points = PointsField(
        required=True,
        metadata={
            "oneOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_POINTS},
                {"type": "string", "pattern": "^[0-9]{1,10}$"},
            ],
            "description": "A whole number from 1.",
        },
    )
    email = TextField(
        load_default="",
        allow_none=True,
        metadata={**_TEXT, "description": "The member's address; needless where `award_key` is good."},
    )
    ticket_id = TextField(
        load_default="", allow_none=True, metadata={**_TEXT, "description": "The ticket's number, for the note on it."}
    )
    agent_email = TextField(
        load_default="", allow_none=True, metadata={**_TEXT, "description": "Who asks; claimed, not proven."}
    )
    reason = TextField(
        load_default="",
        allow_none=True,
        metadata={**_TEXT, "description": f"Up to {MAX_REASON} characters, or one of the connection's reasons."},
    )
    award_key = TextField(
        load_default="",
        allow_none=True,
        metadata={**_TEXT, "description": "From the card: makes the award happen once, however often it is sent."},
    )


# Made once: making one takes longer than reading with it.
_POINTS, _CREDIT = AwardSchema(), AwardSchema(exclude=("points",))


@dataclass(frozen=True, kw_only=True)
class AwardFields:
    """What the button sent, read. `emails` are readings of one address, most likely first; text may be empty.

    Either `points` or `credit_cents` is at least 1, the other 0.
    """

    points: int
    credit_cents: int
    emails: tuple[str, ...]
    ticket_id: str
    agent_email: str | None
    reason: str
    award_key: str


def read_award(sent: Any) -> AwardFields:
    """Read an award request. Raises BadRequest with a sentence that a person understands."""
    if not isinstance(sent, Mapping):
        raise BadRequest(RequestFault.REQUEST_UNREADABLE, UNREADABLE)
    cents = _read_credit(sent)
    try:
        loaded: dict[str, Any] = (_CREDIT if cents else _POINTS).load(sent)
    except ValidationError as error:
        if "points" in error.messages_dict:
            raise BadRequest(
                RequestFault.POINTS_INVALID,
                "Enter the points as a whole number from 1, such as 50. Nothing was added.",
            ) from error
        raise BadRequest(
            RequestFault.REQUEST_UNREADABLE,
            f"The button sent an unreadable {' and '.join(sorted(error.messages_dict))}. Nothing was added.",
        ) from error
    text = {name: one_line(loaded[name] or "") for name in ("ticket_id", "reason", "award_key")}
    if text["ticket_id"] and not re.fullmatch(r"[0-9]{1,20}", text["ticket_id"]):
        raise BadRequest(RequestFault.TICKET_INVALID, "The ticket's number is not a number. Nothing was added.")
    return AwardFields(
        points=0 if cents else loaded["points"],
        credit_cents=cents,
        # Read as it arrived: tidied, one shopper's address might become another's.
        emails=read_addresses([loaded["email"] or ""]),
        # One ticket has one number: 007 and 7 are the same.
        ticket_id=text["ticket_id"].lstrip("0") or text["ticket_id"][:1],
        agent_email=next(iter(read_addresses([loaded["agent_email"] or ""])), None),
        reason=without_addresses(text["reason"])[:MAX_REASON].rstrip(),
        award_key=text["award_key"],
    )


def _read_credit(sent: Mapping[str, Any]) -> int:
    """The store credit asked for, in hundredths; 0 when points are asked for. Raises BadRequest."""
    text = one_line(str(sent.get("store_credit") or ""))
    if not text:
        return 0
    cents = credit_cents(text)
    if cents is None:
        raise BadRequest(RequestFault.CREDIT_INVALID, "Enter the store credit as an amount such as 5 or 5.00. "
                         "Nothing was added.")  # fmt: skip
    if one_line(str(sent.get("points") or "")):
        raise BadRequest(RequestFault.CREDIT_INVALID, "Enter points or store credit, not both. Nothing was added.")
    return cents

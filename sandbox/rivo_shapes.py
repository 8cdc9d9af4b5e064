"""How Rivo's answers look: the one place for what nobody outside Rivo knows.

The documentation (https://developer-docs.rivo.io/reference) and what third parties measured disagree, and much is
said by neither. Each such thing is UNKNOWN, is a field of `RivoShapes` or a function below, and stands in the table of
the README; a client has to bear every setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

from sandbox.records import Record


@dataclass(frozen=True, kw_only=True)
class RivoShapes:
    """What a store's answers look like where that is UNKNOWN. The defaults are what is most likely or was seen."""

    emails: Literal["lower_cased", "exact", "without_plus_tags"] = "lower_cased"
    """How an e-mail given as identifier is compared; the last finds ana@ for ana+gifts@, who is somebody else."""
    not_found: Literal["json", "html"] = "json"
    """The 404 of a customer who is not there."""
    errors: Literal["error", "message", "errors_list", "errors_object"] = "error"
    """Where the sentence of an error stands."""
    invalid_status: int = 422
    """The status for parameters that are missing or wrong, and for customers who may not be changed."""
    create: Literal["with_customer", "without_customer", "empty"] = "with_customer"
    """The body of the 201 of a new points event."""
    tier: Literal["object", "text"] = "object"
    """`vip_tier` of a customer who has one."""
    tally_name: Literal["points_tally", "loyalty_points_tally"] = "points_tally"
    """Observed and documented name of the balance of points."""
    credits_as: Literal["text", "number"] = "text"
    """`credits_tally` and `credits_amount` in REST answers."""
    referral_url: Literal["present", "empty"] = "present"
    composite_ids: bool = True
    """`attributes.id` of a points event is `[shop_id, event_id]` (seen) instead of the number."""
    points_diff: bool = True
    """Whether points events of REST carry `points_diff`; without it, it is null and only the magnitude is left."""
    credits_diff: bool = True
    """Whether points events of REST carry `credits_diff`, which was seen in webhooks only."""
    newest_first: bool = False
    """Whether a list of points events begins with the newest when nothing is said about its order."""
    cursor_links: Literal["newer", "older"] = "newer"
    """`links` in cursor mode: since_id, limit and next_since_id, or only self, as an older page has it."""
    no_more: Literal["null", "missing"] = "null"
    """What `next` and `next_since_id` are on the last page."""
    overdraft: Literal["allowed", "refused"] = "allowed"
    """Whether a negative points event may take more than there is."""
    cancelled_as: Literal["empty", "json"] = "empty"
    """Cancelling a membership: 204, or 200 with the object that one vendor shows."""
    webhook_balance: Literal["before", "after"] = "before"
    """The balance of the customer inside `points_event/created`: the recorded one was that before the event."""


def instant(moment: datetime) -> str:
    """A time as Rivo writes it: 2026-05-01T10:00:00.000Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def decimal_text(value: Decimal) -> str:
    """Store credit as text with at least one decimal: 0.0, 25.50, 1000.0."""
    text = format(value, "f")
    return text if "." in text else f"{text}.0"


def resource(kind: str, key: int, attributes: Record) -> Record:
    """The envelope of one thing, JSON:API-like."""
    return {"id": key, "type": kind, "attributes": attributes}


def error(sentence: str, shapes: RivoShapes) -> Record:
    """The body of an error. UNKNOWN; `error`, `message` and `errors` are what known clients look for."""
    match shapes.errors:
        case "errors_list":
            return {"errors": [sentence]}
        case "errors_object":
            return {"errors": {"base": [sentence]}}
        case _:
            return {shapes.errors: sentence}


NOT_FOUND_PAGE = "<!doctype html><title>Not found (404)</title><h1>The page you were looking for doesn't exist.</h1>"


def credit(text: str, shapes: RivoShapes) -> str | float:
    """An amount of store credit in a REST answer."""
    return text if shapes.credits_as == "text" else float(text)


def customer(record: Record, shapes: RivoShapes) -> Record:
    """The attributes of a customer in REST answers, without what only the sandbox keeps."""
    shown = {name: value for name, value in record.items() if name != "membership"}
    shown[shapes.tally_name] = shown.pop("points_tally")
    shown["credits_tally"] = credit(record["credits_tally"], shapes)
    if record["vip_tier"] is not None and shapes.tier == "text":
        shown["vip_tier"] = record["vip_tier"]["name"]
    if shapes.referral_url == "empty":
        shown["referral_url"] = ""
    return shown


def customer_in_event(record: Record, shapes: RivoShapes) -> Record:
    """The customer embedded in the answer to a new points event or redemption. INFERRED from redemptions."""
    names = ("id", "email", "first_name", "last_name", "total_spent", "orders_count", "loyalty_status")
    return {
        **{name: record[name] for name in names},
        "points_tally": record["points_tally"],
        "credits_tally": credit(record["credits_tally"], shapes),
    }


def customer_in_webhook(record: Record, *, shop_id: int, domain: str) -> Record:
    """The customer as webhooks carry it; field names as recorded, the same whatever the REST shapes are."""
    left_out = ("membership", "next_vip_tier", "lifetime_earnings_tally", "completed_earning_rule_ids")
    kept = {name: value for name, value in record.items() if name not in left_out}
    return {**kept, "shop_id": shop_id, "shopify_domain": domain}


def points_event(event: Record, *, shop_id: int, customer_record: Record | None, shapes: RivoShapes) -> Record:
    """A points event in REST answers; `customer_record` is embedded, in the answer to a new one."""
    attributes: Record = {
        "id": [shop_id, event["id"]] if shapes.composite_ids else event["id"],
        "customer_identifier": event["customer_id"],
        "points_amount": event["points_amount"],
        "points_diff": event["points_diff"] if shapes.points_diff else None,
        "credits_amount": credit(event["credits_amount"], shapes),
        **{name: event[name] for name in _EVENT_FIELDS},
    }
    if shapes.credits_diff:
        attributes["credits_diff"] = float(event["credits_diff"])
    if customer_record is not None:
        attributes["customer"] = customer_in_event(customer_record, shapes)
    return resource("points_event", event["id"], attributes)


def points_event_in_webhook(event: Record, customer_body: Record) -> Record:
    """The body of points_event/created: amounts of store credit are numbers here."""
    return {
        "id": event["id"],
        "points_amount": event["points_amount"],
        "points_diff": event["points_diff"],
        "credits_amount": float(event["credits_amount"]),
        "credits_diff": float(event["credits_diff"]),
        **{name: event[name] for name in _EVENT_FIELDS},
        "customer": customer_body,
    }


_EVENT_FIELDS = (
    "source",
    "title",
    "external_note",
    "internal_note",
    "custom_action_name",
    "applied_at",
    "approved_at",
    "occurred_at",
    "created_at",
    "expires_at",
    "per_event_expiration_at",
    "revoked_at",
    "hidden",
    "order_id",
    "sourceable_id",
    "earning_rule_id",
    "points_purchases_id",
)


def redemption(record: Record, *, customer_record: Record | None, shapes: RivoShapes) -> Record:
    """A redemption with its reward, and its customer unless that one is gone."""
    attributes = {name: value for name, value in record.items() if name not in ("customer_id", "email")}
    attributes["credits_amount"] = credit(record["credits_amount"], shapes)
    attributes["customer"] = None if customer_record is None else customer_in_event(customer_record, shapes)
    return resource("points_redemption", record["id"], attributes)


def tier_change_in_webhook(
    *, shop_id: int, customer_body: Record, before: Record | None, after: Record | None
) -> Record:
    """The body of customer_vip_tier/upgraded and /downgraded. UNKNOWN but for the list as `id`."""
    return {
        "id": [shop_id, customer_body["id"]],
        "vip_tier": after,
        "previous_vip_tier": before,
        "customer": customer_body,
    }


def cancellation(customer_record: Record, *, request_id: int) -> Record:
    """The object with which one vendor shows a cancelled membership."""
    return {
        "type": "membership_cancellation",
        "attributes": {
            "status": "pending",
            "message": "The membership ends with the present period.",
            "customer_id": customer_record["id"],
            "cancellation_policy": "end_of_period",
            "cancellation_request_id": request_id,
        },
    }

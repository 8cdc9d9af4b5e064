"""The sidebar card as data: one flat object, the same keys whether the member exists or not.

Gorgias stores it under the customer and hides a card without data, so the object is never empty; macros read its keys,
so none is ever missing or null.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from loyalty.program import Member
from schemas.link import web_address

NOT_FOUND = "Customer not found"
UNAVAILABLE = "Temporarily unavailable"


def found(member: Member, *, award_key: str) -> dict[str, Any]:
    """The card of a member."""
    credit = member.store_credit_balance
    return {
        "loyalty_status": member.status.value.capitalize(),
        "points_balance": member.points_balance,
        "vip_tier_name": member.vip_tier_name or "",
        "referral_url": web_address(member.referral_url or ""),
        "store_credit_balance": "" if credit is None else f"{credit:.2f}",
        "lifetime_points": "" if member.lifetime_points is None else member.lifetime_points,
        "points_expire_at": member.points_expire_at or "",
        # A date is written as ISO 8601 says; a program that keeps no year has text such as 05-31.
        "date_of_birth": str(member.date_of_birth or ""),
        "recent_activity": [
            {"when": activity.when, "what": activity.what, "points": activity.points}
            for activity in member.recent_activity[:5]
        ],
        "as_of": member.as_of,
        "award_key": award_key,
    }


def without_member(loyalty_status: str, *, now: datetime) -> dict[str, Any]:
    """The card when there is nobody to show: `NOT_FOUND` or `UNAVAILABLE`."""
    return {
        "loyalty_status": loyalty_status,
        "points_balance": "",
        "vip_tier_name": "",
        "referral_url": "",
        "store_credit_balance": "",
        "lifetime_points": "",
        "points_expire_at": "",
        "date_of_birth": "",
        "recent_activity": [],
        "as_of": now,
        "award_key": "",
    }


def as_json(shown: dict[str, Any]) -> bytes:
    """A card as Gorgias gets it: times in UTC, to the second."""
    return orjson.dumps(shown, option=orjson.OPT_UTC_Z | orjson.OPT_OMIT_MICROSECONDS)

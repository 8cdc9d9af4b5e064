"""Rivo as a sender of webhooks, written anew from its documentation: the product does not check itself here."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
from sqlalchemy import func, select

from storage.tables import awards, webhook_deliveries
from tests.house import House
from widget.connections import Connection

SECRET = "6f" * 32
ANA = "ana@example.com"
Headers = dict[str, str]


def digest(signed: bytes, secret: str = SECRET) -> bytes:
    return hmac.digest(secret.encode(), signed, hashlib.sha256)


def standard(
    body: bytes,
    *,
    timestamp: str,
    key: str = "msg_1",
    secret: str = SECRET,
    label: str = "v1,",
    topic: str = "loyalty_profile/updated",
) -> Headers:
    """The headers of the live scheme."""
    signature = base64.b64encode(digest(f"{key}.{timestamp}.".encode() + body, secret)).decode()
    return {
        "rivo-webhook-id": key,
        "rivo-webhook-timestamp": timestamp,
        "rivo-webhook-topic": topic,
        "rivo-webhook-signature": f"{label}{signature}",
    }


def legacy_base64(body: bytes, *, secret: str = SECRET) -> Headers:
    """The header of the documented scheme."""
    return {"rivo-signature": base64.b64encode(digest(body, secret)).decode()}


def legacy_hex(body: bytes, *, secret: str = SECRET) -> Headers:
    """The header of the scheme documented before."""
    return {"rivo-signature": digest(body, secret).hex()}


def profile(email: str = ANA, **fields: Any) -> dict[str, Any]:
    """The body of loyalty_profile/updated: the customer, with a balance that nobody should believe."""
    return {"id": 7198000000001, "email": email, "points_tally": 999_999, "credits_tally": "0.0", **fields}


def points_event(operation_id: str, *, points: int = 0, credits: float = 0.0, **fields: Any) -> dict[str, Any]:
    """The body of points_event/created as it was recorded, with a note of ours."""
    return {
        "id": 900000001,
        "points_amount": abs(points),
        "points_diff": points,
        "credits_amount": abs(credits),
        "credits_diff": credits,
        "source": "manual",
        "title": "Thanks",
        "internal_note": f"Tallydesk {operation_id}: Thanks",
        "revoked_at": None,
        "hidden": None,
        "applied_at": "2026-03-14T09:30:00.000Z",
        "customer": profile(),
        **fields,
    }


@dataclass
class Rivo:
    """Sends to one connection."""

    house: House
    connection: Connection
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def url(self) -> str:
        return f"{self.house.url}/rivo/webhooks/{self.connection.id}"

    def timestamp(self, *, ahead_s: float = 0) -> str:
        """The sender's time in unix seconds."""
        return str(int(self.house.clock().timestamp() + ahead_s))

    def post(self, body: bytes, headers: Headers, *, url: str | None = None) -> requests.Response:
        """One delivery, as the bytes and headers are."""
        headers = {"Content-Type": "application/json", **headers}
        return requests.post(url or self.url, data=body, headers=headers, timeout=20)

    def send(self, told: Any, *, topic: str = "loyalty_profile/updated", **how: Any) -> requests.Response:
        """One new delivery in the live scheme."""
        body = json.dumps(told).encode()
        how = {"timestamp": self.timestamp(), "key": f"msg_{next(self.numbers)}", **how}
        return self.post(body, standard(body, topic=topic, **how))

    def status(self, told: Any, **how: Any) -> str:
        """What a new delivery is answered, which is a 200."""
        answer = self.send(told, **how)
        assert answer.status_code == 200, answer.text
        said: str = answer.json()["status"]
        return said

    def handled(self) -> int:
        """Deliveries of this store that are marked as handled."""
        marked = select(func.count()).where(webhook_deliveries.c.store_id == self.connection.store.id)
        with self.house.services.database.read() as tx:
            return tx.scalars(marked).one()

    def is_outdated(self, email: str = ANA) -> bool:
        """Whether the snapshot of `email` is known to be older than what Rivo has."""
        services = self.house.services
        snapshot = services.snapshots.find(
            self.connection.store, email=email, member_hmac=services.hasher.email(email), with_date_of_birth=False
        )
        return snapshot is not None and snapshot.outdated

    def balance(self, email: str = ANA) -> Any:
        """The balance on the card, after whatever it refreshes behind itself has come."""
        self.house.services.members.settle(20)
        return self.house.lookup(self.connection, email).json()["points_balance"]

    def award_state(self, operation_id: str) -> tuple[str, str | None]:
        """State of an award, and how it was settled."""
        found = select(awards.c.state, awards.c.settled_by).where(awards.c.operation_id == operation_id)
        with self.house.services.database.read() as tx:
            row = tx.execute(found).one()
        return row.state, row.settled_by


Send = Callable[[bytes], Headers]

"""The least that Flask can do: a constant answer of a card's size. No key, no database, no metrics, no log line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask

from cores import keep_to_one

CARD: dict[str, Any] = {
    "loyalty_status": "Member",
    "points_balance": 1234,
    "vip_tier_name": "Gold",
    "referral_url": "http://localhost:49152/r/abcdefghijklmnop",
    "store_credit_balance": "",
    "lifetime_points": 2345,
    "points_expire_at": "",
    "date_of_birth": "",
    "recent_activity": [{"when": "2026-03-14T09:30:00Z", "what": "Late delivery", "points": 10}] * 3,
    "as_of": "2026-03-14T09:30:00Z",
    "award_key": "A" * 68,
}

app = Flask(__name__)


def on_granian() -> Flask:
    """The same, on a core of its own as Tallydesk is."""
    keep_to_one(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), workers=int(os.environ["GRANIAN_WORKERS"]))
    return app


@app.get("/widget/customer")
def customer() -> dict[str, Any]:
    """The card of nobody."""
    return CARD


@app.get("/healthz")
def alive() -> str:
    """Whether it runs."""
    return "ok"

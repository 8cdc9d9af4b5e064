"""Most integrations: each ticket asks the program about its customer, and the answer is mapped to the card.

Nothing is kept. The program's address and key come by PROGRAM_URL and PROGRAM_KEY; it is asked as Rivo is.
"""

from __future__ import annotations

import os
import threading
from typing import Any
from urllib.parse import quote

import requests
from flask import Flask, request

app = Flask(__name__)
_mine = threading.local()


@app.get("/widget/customer")
def customer() -> dict[str, Any]:
    """The card of the customer, asked for now."""
    try:
        answer = _session().get(f"{os.environ['PROGRAM_URL']}/customers/{quote(request.args['email'])}", timeout=10)
        if answer.status_code == 404:
            return {"loyalty_status": "Customer not found"}
        answer.raise_for_status()
        found = answer.json()["data"]["attributes"]
    except (requests.RequestException, ValueError):
        return {"loyalty_status": "Temporarily unavailable"}
    return {
        "loyalty_status": found.get("loyalty_status"),
        "points_balance": found.get("points_tally"),
        "store_credit_balance": found.get("credits_tally"),
        "vip_tier_name": found.get("vip_tier"),
        "referral_url": found.get("referral_url"),
    }


@app.get("/healthz")
def alive() -> str:
    """Whether it runs."""
    return "ok"


def _session() -> requests.Session:
    """A session for each thread: requests' sessions are not meant for several."""
    if not hasattr(_mine, "session"):
        _mine.session = requests.Session()
        _mine.session.trust_env = False
        _mine.session.headers["Authorization"] = os.environ["PROGRAM_KEY"]
    session: requests.Session = _mine.session
    return session

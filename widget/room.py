"""What the card and the award button share: how a request ended, whose key it was, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from time import perf_counter
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from limiting import Limit, network_of
from loyalty.awards import Awards, Status
from loyalty.members import Members
from oauth.accounts import Accounts
from oauth.gorgias_api import origin_of
from settings import Settings
from storage.sealing import Hasher, RandomBytes
from telemetry import REQUEST_SECONDS, REQUESTS, tell_plainly
from widget.connections import Connections, Opened
from widget.inspector import Inspector

CUSTOMER, EARNINGS = "/widget/customer", "/widget/earnings"

# From one address; more than a helpdesk with outdated cards sends before somebody presses Repair.
WRONG_KEYS, WRONG_KEYS_WITHIN = 30, timedelta(minutes=1)

log = structlog.get_logger()


class Outcome(StrEnum):
    """How a request ended, where awards have no word for it."""

    FOUND = "found"
    NOT_FOUND = "not_found"
    NO_ADDRESS = "no_address"
    PROGRAM_UNAVAILABLE = "program_unavailable"
    WRONG_KEY = "wrong_key"
    TOO_MANY_WRONG_KEYS = "too_many_wrong_keys"
    UNAVAILABLE = "unavailable"
    CRASHED = "crashed"
    PREFLIGHT = "preflight"


@dataclass(frozen=True, kw_only=True)
class WidgetRoom:
    """What this room needs from the front door."""

    settings: Settings
    connections: Connections
    inspector: Inspector
    accounts: Accounts
    members: Members
    awards: Awards
    hasher: Hasher
    wrong_keys: Limit
    now: Callable[[], datetime]
    random_bytes: RandomBytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a request ended, what is answered, and whose key it was. `trouble` is for the operator's log alone.

    `wait_s` is when to try again, where a wrong key came too often.
    """

    outcome: str
    status: int
    body: dict[str, Any]
    connection: Opened | None
    trouble: str | None = None
    wait_s: int = 0


def finish(event: str, route: str, answer: Answer, *, began: float) -> float:
    """Count how a request ended, and tell the operator in one line; the seconds since `began` of perf_counter."""
    seconds = perf_counter() - began
    requests, duration = _metrics(route, answer.outcome)
    requests.inc()
    duration.observe(seconds)
    told: dict[str, Any] = {"outcome": answer.outcome, "status": answer.status, "ms": round(seconds * 1000, 2)}
    if "operation_id" in answer.body:
        told["operation_id"] = answer.body["operation_id"]
    # One key too often is counted, and has no line of its own: a flood must not fill the log.
    if answer.trouble is not None:
        log.error(event, **told, trouble=answer.trouble)
    elif not answer.wait_s:
        tell_plainly(event, **told)
    return seconds


@cache
def _metrics(route: str, outcome: str) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, outcome), REQUEST_SECONDS.labels(route)


def inspect(
    room: WidgetRoom,
    route: str,
    answer: Answer,
    *,
    seconds: float,
    sent: Callable[[], Iterable[tuple[str, Any]] | None],
    user_agent: str,
) -> None:
    """Leave a note of the request where the merchant has switched that on. The answer stands already.

    `sent` reads what came, or gives None where it cannot be read.
    """
    connection = answer.connection
    if connection is None or connection.inspect_until is None or (now := room.now()) >= connection.inspect_until:
        return
    fields = sent()
    room.inspector.note(
        connection_id=connection.id,
        at=now,
        route=route,
        outcome=answer.outcome,
        status=answer.status,
        took_ms=round(seconds * 1000),
        sent=None if fields is None else list(fields),
        user_agent=user_agent,
    )


def answer_headers(room: WidgetRoom, answer: Answer, *, origin: str | None) -> list[tuple[str, str]]:
    """What browsers and senders of wrong keys have to know beside the body. `origin` as the browser sent it."""
    headers = []
    if answer.wait_s:
        headers.append(("Retry-After", str(answer.wait_s)))
    if origin is not None:
        headers.append(("Vary", "Origin"))
        connection = answer.connection
        if connection is not None and origin == origin_of(room.settings.gorgias_base(connection.account_name)):
            headers.append(("Access-Control-Allow-Origin", origin))
    return headers


def rejected(reason: str, sentence: str) -> dict[str, Any]:
    """The body that tells an agent why nothing was added."""
    return {"status": Status.REJECTED, "reason": reason, "message": sentence}


def wrong_key(room: WidgetRoom, *, peer: str | None, forwarded_for: str | None) -> Answer:
    """The answer to a key that opens nothing; many of them from one address are told to wait."""
    wait_s = room.wrong_keys.wait_s(network_of(peer, forwarded_for))
    if wait_s:
        outcome, status, body = Outcome.TOO_MANY_WRONG_KEYS, 429, _TOO_MANY_WRONG_KEYS
    else:
        outcome, status, body = Outcome.WRONG_KEY, 401, _WRONG_KEY
    return Answer(outcome=outcome, status=status, body=body, connection=None, wait_s=wait_s)


_WRONG_KEY = rejected(
    Outcome.WRONG_KEY,
    "This card is out of date: reload the helpdesk and try again. If it goes on, ask an admin to press Repair "
    "on the connection's page in Tallydesk. Nothing was added.",
)
_TOO_MANY_WRONG_KEYS = rejected(
    Outcome.TOO_MANY_WRONG_KEYS,
    "This card is out of date and was tried too often: wait a minute, reload the helpdesk and try again. If it goes "
    "on, ask an admin to press Repair on the connection's page in Tallydesk. Nothing was added.",
)

"""What programs call: `POST /rivo/webhooks/<connection>`.

A webhook says that something has changed, never what is true now: it makes a snapshot outdated, and it can prove that
an unknown award has arrived. Everything works without it. No session, no network, and an answer in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from time import perf_counter

import orjson
import structlog
from flask import Blueprint, Response, request
from werkzeug.exceptions import RequestEntityTooLarge

from loyalty import rivo_webhook as wire
from loyalty.awards import is_operation_id
from loyalty.delivery import Delivery
from loyalty.members import Members
from loyalty.program import ProgramKind, Store
from loyalty.stores import Stores
from storage.database import Database
from storage.deliveries import mark_handled, was_handled
from storage.sealing import Hasher
from storage.trouble import TROUBLE, trouble_sentence
from telemetry import REQUEST_SECONDS, REQUESTS, WEBHOOKS
from widget.connections import Connection, Connections, ConnectionState

PATH = "/rivo/webhooks"
# A customer comes with every tag that the shop ever gave them.
MAX_BODY = 256 * 1024


class Outcome(StrEnum):
    """How a delivery ended, where it was believed or never checked."""

    ACCEPTED = "accepted"
    AWARD_CONFIRMED = "award_confirmed"
    REPEATED = "repeated"
    UNKNOWN_TOPIC = "unknown_topic"
    UNREADABLE = "unreadable"
    UNKNOWN_CONNECTION = "unknown_connection"
    TOO_LARGE = "too_large"
    CUT_OFF = "cut_off"
    UNAVAILABLE = "unavailable"
    CRASHED = "crashed"


log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class WebhookRoom:
    """What this room needs from the front door."""

    database: Database
    connections: Connections
    stores: Stores
    members: Members
    delivery: Delivery
    hasher: Hasher
    now: Callable[[], datetime]


def create_blueprint(room: WebhookRoom) -> Blueprint:
    """`/rivo/webhooks/<connection>`."""
    webhooks = Blueprint("webhooks", __name__, url_prefix=PATH)

    @webhooks.post("/<int:connection_id>")
    def rivo(connection_id: int) -> Response:
        began = perf_counter()
        return _finish(_take(room, connection_id), began=began)

    return webhooks


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a delivery ended and what is answered. `message` is for whoever looks at the delivery at Rivo; `trouble`,
    `topic` and `time_form` are for the operator's log alone."""

    outcome: str
    status: int = 200
    said: str | None = None
    message: str | None = None
    connection: Connection | None = None
    trouble: str | None = None
    topic: str | None = None
    time_form: str | None = None


def _finish(answer: Answer, *, began: float) -> Response:
    """The answer on the wire; counted, and told to the operator in one line."""
    body = {"status": answer.said or answer.outcome}
    if answer.message is not None:
        body["message"] = answer.message
    response = Response(orjson.dumps(body), status=answer.status, mimetype="application/json")
    seconds = perf_counter() - began
    WEBHOOKS.labels(ProgramKind.RIVO, answer.outcome).inc()
    REQUESTS.labels(PATH, answer.outcome).inc()
    REQUEST_SECONDS.labels(PATH).observe(seconds)
    told: dict[str, object] = {"outcome": answer.outcome, "status": answer.status, "ms": round(seconds * 1000, 2)}
    if answer.connection is not None:
        told["connection"] = answer.connection.id
    told |= {
        name: value
        for name, value in (("topic", answer.topic), ("time_form", answer.time_form), ("trouble", answer.trouble))
        if value is not None
    }
    if answer.outcome in (Outcome.UNAVAILABLE, Outcome.CRASHED):
        log.error("webhook", **told)
    elif answer.trouble is None:
        log.info("webhook", **told)
    else:
        log.warning("webhook", **told)
    return response


def _take(room: WebhookRoom, connection_id: int) -> Answer:
    connection = None
    try:
        body = _body()
        connection = room.connections.by_id(connection_id)
        if (
            connection is None
            or connection.state is not ConnectionState.ACTIVE
            or connection.store.program is not ProgramKind.RIVO
        ):
            return Answer(outcome=Outcome.UNKNOWN_CONNECTION, status=404, said=_REFUSED, message=_NOBODY_HERE)
        headers = {name.lower(): value for name, value in request.headers.items()}
        believed = wire.check(headers, body, secrets=room.stores.webhook_secrets(connection.store), now=room.now())
        return _handle(room, connection, believed, wire.read(body, topic_header=headers.get(wire.TOPIC, "")))
    except wire.NotBelieved as error:
        # One answer for all: whoever guesses does not learn how far they came. The log has the reason.
        return Answer(
            outcome=error.fault,
            status=401,
            said=_REFUSED,
            message=_NOT_BELIEVED,
            connection=connection,
            trouble=_WHY[error.fault],
        )
    except RequestEntityTooLarge:
        return Answer(outcome=Outcome.TOO_LARGE, status=413, said=_REFUSED, message=_TOO_LARGE)
    except _CutOff:
        return Answer(outcome=Outcome.CUT_OFF, status=400, said=_REFUSED, message=_CUT_OFF)
    except TROUBLE as error:
        return Answer(
            outcome=Outcome.UNAVAILABLE,
            status=503,
            message=_AGAIN,
            connection=connection,
            trouble=trouble_sentence(error),
        )
    except Exception:
        log.exception("webhook", outcome=Outcome.CRASHED)
        return Answer(outcome=Outcome.CRASHED, status=500, message=_AGAIN, connection=connection)


class _CutOff(Exception):
    """The body did not arrive as a whole."""


def _body() -> bytes:
    """The body as it came. Raises _CutOff, RequestEntityTooLarge."""
    request.max_content_length = MAX_BODY
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise
    except Exception as error:
        # Whatever a server raises for chunks that are none; gunicorn has an exception of its own, with no base of ours.
        raise _CutOff from error
    announced = request.content_length
    if announced is None and len(body) >= MAX_BODY:
        # Of a body in chunks the rest is left unread without a word.
        raise RequestEntityTooLarge
    if announced is not None and len(body) < announced:
        raise _CutOff
    return body


def _handle(room: WebhookRoom, connection: Connection, believed: wire.Believed, told: wire.Told | None) -> Answer:
    """Do what follows from a delivery, once.

    First the effects and then the mark: a crash between the two has the next delivery do the same again, which changes
    nothing, while a mark without its effects would lose them.
    """
    store = connection.store
    time_form = None if believed.scheme is wire.Scheme.LEGACY else believed.time_form
    if told is None:
        # Taken all the same: it would not be readable the next time either, and UNKNOWN is whether Rivo gives up on
        # a receiver that refuses.
        return Answer(outcome=Outcome.UNREADABLE, connection=connection, time_form=time_form, trouble=_UNREADABLE)
    topic = told.topic if re.fullmatch(r"[a-z_]{1,40}(/[a-z_]{1,40})?", told.topic) else None
    if was_handled(room.database, store.id, believed.delivery_hash):
        outcome = Outcome.REPEATED
    else:
        confirmed = _act(room, store, told)
        first = mark_handled(room.database, store.id, believed.delivery_hash, now=room.now())
        if confirmed:
            outcome = Outcome.AWARD_CONFIRMED
        elif not first:
            outcome = Outcome.REPEATED
        else:
            outcome = Outcome.ACCEPTED if told.known else Outcome.UNKNOWN_TOPIC
    return Answer(outcome=outcome, connection=connection, topic=topic, time_form=time_form)


def _act(room: WebhookRoom, store: Store, told: wire.Told) -> bool:
    """The effects of a webhook; whether an award is settled by it."""
    evidence, confirmed = told.evidence, False
    if evidence is not None and is_operation_id(evidence.operation_id):
        confirmed = room.delivery.seen(
            store,
            operation_id=evidence.operation_id,
            points=evidence.points,
            credit_cents=evidence.credit_cents,
        )
    for email in told.emails:
        room.members.outdate(store, member_hmac=room.hasher.email(email))
    return confirmed


_REFUSED = "refused"
_NOBODY_HERE = (
    "No Rivo store takes webhooks at this address. Copy the address once more from the connection's page in Tallydesk."
)
_NOT_BELIEVED = (
    "This webhook is not signed as it should be. Copy the signing secret from Rivo once more to the connection's page "
    "in Tallydesk."
)
_TOO_LARGE = "This webhook is larger than Tallydesk reads (256 KiB)."
_CUT_OFF = "The connection ended before the whole webhook had arrived. Send it again."
_AGAIN = "Tallydesk cannot take webhooks just now. Send it again in a moment."
_UNREADABLE = "The webhook is signed, but is no JSON object; nothing was done."
_WHY: dict[wire.Fault, str] = {
    wire.Fault.SECRET_MISSING: (
        "Webhook secret missing: somebody has to paste Rivo's signing secret on the connection's page."
    ),
    wire.Fault.SIGNATURE_MISSING: "There is no signature: this may not be Rivo at all.",
    wire.Fault.HEADER_MISSING: "The signature covers an id and a time, and one of them did not come.",
    wire.Fault.SIGNATURE_WRONG: "The signature does not fit the secret on the connection's page, nor the one before.",
    wire.Fault.TIMESTAMP_UNREADABLE: "The time is signed, but is written in a form that Tallydesk does not know.",
    wire.Fault.TIMESTAMP_STALE: (
        "It was signed more than five minutes ago, or ahead: sent again by somebody, or a clock is wrong."
    ),
}

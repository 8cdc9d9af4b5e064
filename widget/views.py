"""What Gorgias calls: the lookup behind the card and the award behind the button.

The lookup always answers 200 with a non-empty object, whatever arrives and whatever is broken here: after a hundred
failures in a row Gorgias disables the integration. 401 is for a wrong key alone, and 429 for many of them from one
address; a right key is never refused for its rate, since it is looked up first. No session, no cookie, no write.
Source: https://docs.gorgias.com/en-US/faq/broken-or-disconnected-http-integration
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from time import perf_counter
from typing import Any

import orjson
import structlog
from flask import Blueprint, Response, request
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from limiting import Limit, network_of
from loyalty import award_key
from loyalty.awards import AwardRefused, AwardRequest, Awards, Origin, Refusal, Status
from loyalty.members import Members
from loyalty.program import Member, ProgramUnavailable
from oauth.accounts import Accounts, AccountState
from oauth.gorgias_api import origin_of
from schemas.email import read_addresses
from schemas.widget import UNREADABLE as _UNREADABLE
from schemas.widget import AwardFields, BadRequest, RequestFault, read_award
from settings import Settings
from storage.sealing import Hasher, RandomBytes
from storage.trouble import TROUBLE, trouble_sentence
from telemetry import AWARDS, REQUEST_SECONDS, REQUESTS
from widget import card
from widget.connections import Connection, Connections, KeyPurpose
from widget.inspector import Inspector
from widget.sentences import program_trouble_sentence, refusal_sentence, result_sentence
from widget.template import KEY_HEADER

CUSTOMER, EARNINGS = "/widget/customer", "/widget/earnings"

# Every other refusal is 422.
HTTP_STATUS: dict[str, int] = {
    Refusal.MEMBER_NOT_FOUND: 404,
    Refusal.MEMBER_MISMATCH: 409,
    Refusal.KEY_REUSED: 409,
    RequestFault.REQUEST_TOO_LARGE: 413,
}


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


log = structlog.get_logger()


# From one address; more than a helpdesk with outdated cards sends before somebody presses Repair.
WRONG_KEYS, WRONG_KEYS_WITHIN = 30, timedelta(minutes=1)


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


def create_blueprint(room: WidgetRoom) -> Blueprint:
    """`/widget/customer` and `/widget/earnings`."""
    widget = Blueprint("widget", __name__, url_prefix="/widget")

    # Flask would answer OPTIONS for these by itself, before `preflight` is asked.
    @widget.get("/customer", provide_automatic_options=False)
    def customer() -> Response:
        began = perf_counter()
        return _finish(room, CUSTOMER, "lookup", _look_up(room), began=began)

    @widget.post("/earnings", provide_automatic_options=False)
    def earnings() -> Response:
        began = perf_counter()
        answer = _award(room)
        AWARDS.labels(answer.outcome).inc()
        return _finish(room, EARNINGS, "award", answer, began=began)

    @widget.route("/customer", methods=["OPTIONS"])
    @widget.route("/earnings", methods=["OPTIONS"])
    def preflight() -> Response:
        """Whether a browser in the helpdesk may call us: exactly the origin of an account we know."""
        response = Response(status=204)
        origin = request.headers.get("Origin", "")
        outcome = Outcome.PREFLIGHT
        try:
            known = _is_known_origin(room, origin)
        except TROUBLE as error:
            log.error("preflight", outcome=Outcome.UNAVAILABLE, kind=type(error).__name__)
            outcome, known = Outcome.UNAVAILABLE, False
        if known:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Access-Control-Allow-Headers"] = f"{KEY_HEADER}, Content-Type"
            response.headers["Access-Control-Max-Age"] = "600"
        response.headers["Vary"] = "Origin"
        REQUESTS.labels("/widget", outcome).inc()
        return response

    return widget


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a request ended, what is answered, and whose key it was. `trouble` is for the operator's log alone.

    `wait_s` is when to try again, where a wrong key came too often.
    """

    outcome: str
    status: int
    body: dict[str, Any]
    connection: Connection | None
    trouble: str | None = None
    wait_s: int = 0


def _finish(room: WidgetRoom, route: str, event: str, answer: Answer, *, began: float) -> Response:
    """The answer on the wire; counted, and told to the operator in one line."""
    response = Response(orjson.dumps(answer.body), status=answer.status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    _allow_origin(room, response, answer.connection)
    seconds = perf_counter() - began
    REQUESTS.labels(route, answer.outcome).inc()
    REQUEST_SECONDS.labels(route).observe(seconds)
    told = {"outcome": answer.outcome, "status": answer.status, "ms": round(seconds * 1000, 2)}
    if "operation_id" in answer.body:
        told["operation_id"] = answer.body["operation_id"]
    if answer.wait_s:
        # Counted above, and in no line of its own: a flood must not fill the log.
        response.headers["Retry-After"] = str(answer.wait_s)
    elif answer.trouble is None:
        log.info(event, **told)
    else:
        log.error(event, **told, trouble=answer.trouble)
    _inspect(room, route, answer, seconds=seconds)
    return response


def _inspect(room: WidgetRoom, route: str, answer: Answer, *, seconds: float) -> None:
    """Leave a note of the request where the merchant has switched that on. The answer stands already."""
    connection = answer.connection
    if connection is None or connection.inspect_until is None or (now := room.now()) >= connection.inspect_until:
        return
    try:
        sent = list(request.args.items(multi=True)) if route == CUSTOMER else list(_sent().items())
    except BadRequest:
        sent = None
    room.inspector.note(
        connection_id=connection.id,
        at=now,
        route=route,
        outcome=answer.outcome,
        status=answer.status,
        took_ms=round(seconds * 1000),
        sent=sent,
        user_agent=request.headers.get("User-Agent", ""),
    )


def _look_up(room: WidgetRoom) -> Answer:
    connection = None
    try:
        connection = room.connections.by_key(request.headers.get(KEY_HEADER, ""), purpose=KeyPurpose.LOOKUP)
        if connection is None:
            return _wrong_key(room)
        addresses = read_addresses(request.args.getlist("email"))
        member = room.members.first(
            connection.store, emails=addresses, with_date_of_birth=connection.show_date_of_birth
        )
        if member is None:
            outcome = Outcome.NOT_FOUND if addresses else Outcome.NO_ADDRESS
            body = card.without_member(card.NOT_FOUND, now=room.now())
        else:
            outcome = Outcome.FOUND
            body = card.found(member, award_key=_award_key(room, connection, member))
    except ProgramUnavailable as error:
        body = card.without_member(card.UNAVAILABLE, now=room.now())
        return Answer(
            outcome=Outcome.PROGRAM_UNAVAILABLE, status=200, body=body, connection=connection, trouble=error.reason
        )
    except TROUBLE as error:
        body = card.without_member(card.UNAVAILABLE, now=room.now())
        return Answer(
            outcome=Outcome.UNAVAILABLE, status=200, body=body, connection=connection, trouble=trouble_sentence(error)
        )
    except Exception:
        # A bug of ours must not make Gorgias count failures; the traceback is for us.
        log.exception("lookup", outcome=Outcome.CRASHED)
        body = card.without_member(card.UNAVAILABLE, now=room.now())
        return Answer(outcome=Outcome.CRASHED, status=200, body=body, connection=connection)
    return Answer(outcome=outcome, status=200, body=body, connection=connection)


def _award_key(room: WidgetRoom, connection: Connection, member: Member) -> str:
    return award_key.mint(
        hasher=room.hasher,
        connection_id=connection.id,
        member_hmac=room.hasher.email(member.email),
        now=room.now(),
        random_bytes=room.random_bytes,
    )


def _award(room: WidgetRoom) -> Answer:
    connection = None
    try:
        connection = room.connections.by_key(request.headers.get(KEY_HEADER, ""), purpose=KeyPurpose.AWARD)
        if connection is None:
            return _wrong_key(room)
        fields = read_award(_sent())
        result = room.awards.award(connection.store, request=_request(room, connection, fields), rules=connection.rules)
    except BadRequest as error:
        return _refused(error.reason, str(error), connection)
    except AwardRefused as error:
        return _refused(error.reason, refusal_sentence(error), connection)
    except ProgramUnavailable as error:
        body = _rejected(error.reason, program_trouble_sentence(error))
        return Answer(outcome=error.reason, status=503, body=body, connection=connection, trouble=error.reason)
    except TROUBLE as error:
        body = _rejected(Outcome.UNAVAILABLE, _for_agent(error))
        return Answer(
            outcome=Outcome.UNAVAILABLE, status=503, body=body, connection=connection, trouble=trouble_sentence(error)
        )
    except HTTPException:
        raise
    except Exception:
        log.exception("award", outcome=Outcome.CRASHED)
        body = _rejected(Outcome.CRASHED, _CRASHED)
        return Answer(outcome=Outcome.CRASHED, status=500, body=body, connection=connection)
    return Answer(
        outcome=result.status,
        status=202 if result.status is Status.BEING_CONFIRMED else 200,
        body={
            "status": result.status,
            "message": result_sentence(result),
            "points_balance": "" if result.points_balance is None else result.points_balance,
            "operation_id": result.operation_id,
        },
        connection=connection,
    )


def _refused(reason: Refusal | RequestFault, sentence: str, connection: Connection | None) -> Answer:
    status = HTTP_STATUS.get(reason, 422)
    return Answer(outcome=reason, status=status, body=_rejected(reason, sentence), connection=connection)


def _request(room: WidgetRoom, connection: Connection, fields: AwardFields) -> AwardRequest:
    return AwardRequest(
        emails=fields.emails,
        points=fields.points,
        credit_cents=fields.credit_cents,
        reason=fields.reason,
        key=award_key.verify(fields.award_key, hasher=room.hasher, connection_id=connection.id),
        origin=Origin(
            connection_id=connection.id,
            channel="button",
            ticket_id=fields.ticket_id,
            agent_email=fields.agent_email,
            # Helpdesk users may be able to read the button's key, so the name it sends is only claimed.
            agent_proven=False,
        ),
    )


def _sent() -> dict[str, Any]:
    """What the button sent, wherever it put it: query, form or JSON; the later one wins."""
    try:
        sent: dict[str, Any] = {**request.args.to_dict(), **request.form.to_dict()}
        body = request.get_data(cache=True)
    except RequestEntityTooLarge as error:
        raise BadRequest(
            RequestFault.REQUEST_TOO_LARGE, "The button sent more than we can read. Nothing was added."
        ) from error
    except Exception as error:
        # Whatever a server raises for a body that is cut or badly chunked; gunicorn has exceptions of its own for it.
        raise BadRequest(RequestFault.REQUEST_UNREADABLE, _UNREADABLE) from error
    if request.is_json or (not request.form and body.lstrip().startswith(b"{")):
        try:
            loaded = orjson.loads(body or b"{}")
        except orjson.JSONDecodeError:
            loaded = None
        if not isinstance(loaded, dict):
            raise BadRequest(RequestFault.REQUEST_UNREADABLE, _UNREADABLE)
        sent.update(loaded)
    return sent


def _for_agent(error: Exception) -> str:
    """What to do about it, for someone who knows of no database."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        # The line may have broken after the commit: the double-click window guards a second press.
        return _CRASHED
    return (
        "Tallydesk cannot save anything right now. Try again in a moment; if it goes on, tell an admin. "
        "Nothing was added."
    )


def _rejected(reason: str, sentence: str) -> dict[str, Any]:
    return {"status": Status.REJECTED, "reason": reason, "message": sentence}


def _wrong_key(room: WidgetRoom) -> Answer:
    wait_s = room.wrong_keys.wait_s(network_of(request.remote_addr, request.headers.get("X-Forwarded-For")))
    if wait_s:
        outcome, status, body = Outcome.TOO_MANY_WRONG_KEYS, 429, _TOO_MANY_WRONG_KEYS
    else:
        outcome, status, body = Outcome.WRONG_KEY, 401, _WRONG_KEY
    return Answer(outcome=outcome, status=status, body=body, connection=None, wait_s=wait_s)


_CRASHED = "Something went wrong in Tallydesk. Reload the ticket and look at the balance before you try again."
_WRONG_KEY = _rejected(
    Outcome.WRONG_KEY,
    "This card is out of date: reload the helpdesk and try again. If it goes on, ask an admin to press Repair "
    "on the connection's page in Tallydesk. Nothing was added.",
)
_TOO_MANY_WRONG_KEYS = _rejected(
    Outcome.TOO_MANY_WRONG_KEYS,
    "This card is out of date and was tried too often: wait a minute, reload the helpdesk and try again. If it goes "
    "on, ask an admin to press Repair on the connection's page in Tallydesk. Nothing was added.",
)


def _allow_origin(room: WidgetRoom, response: Response, connection: Connection | None) -> None:
    origin = request.headers.get("Origin")
    if origin is None:
        return
    response.headers["Vary"] = "Origin"
    if connection is not None and origin == origin_of(room.settings.gorgias_base(connection.account_name)):
        response.headers["Access-Control-Allow-Origin"] = origin


def _is_known_origin(room: WidgetRoom, origin: str) -> bool:
    """Whether `origin` is what GORGIAS_URL gives for a connected account; never `*`."""
    pattern = re.escape(origin_of(room.settings.gorgias_url)).replace(r"\{account\}", "([a-z0-9-]{1,63})")
    found = re.fullmatch(pattern, origin)
    if found is None:
        return False
    if not found.groups():
        # The account stands in the path: every account has this very origin.
        return bool(room.connections.all())
    account = room.accounts.named(found.group(1))
    # One whose tokens no longer serve still has its card and its buttons.
    return account is not None and account.state is not AccountState.DISCONNECTED

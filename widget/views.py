"""What a helpdesk's page calls: the award behind the button, and what a browser asks first.

The lookup behind the card is in `lookup.py`. No session, no cookie.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from flask import Blueprint, Response, request
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from loyalty import award_key
from loyalty.awards import AwardRefused, AwardRequest, Origin, Refusal, Status
from loyalty.program import ProgramUnavailable
from oauth.accounts import AccountState
from oauth.gorgias_api import origin_of
from schemas.widget import UNREADABLE as _UNREADABLE
from schemas.widget import AwardFields, BadRequest, RequestFault, read_award
from storage.trouble import TROUBLE, trouble_sentence
from telemetry import AWARDS, REQUESTS
from widget.connections import Connection, Opened
from widget.room import EARNINGS, Answer, Outcome, WidgetRoom, answer_headers, finish, inspect, rejected, wrong_key
from widget.sentences import program_trouble_sentence, refusal_sentence, result_sentence
from widget.template import KEY_HEADER

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# Every other refusal is 422.
HTTP_STATUS: dict[str, int] = {
    Refusal.MEMBER_NOT_FOUND: 404,
    Refusal.MEMBER_MISMATCH: 409,
    Refusal.KEY_REUSED: 409,
    RequestFault.REQUEST_TOO_LARGE: 413,
}


log = structlog.get_logger()


def create_blueprint(room: WidgetRoom, *, lookup: WSGIApplication) -> Blueprint:
    """`/widget/customer`, answered by `lookup`, and `/widget/earnings`."""
    widget = Blueprint("widget", __name__, url_prefix="/widget")

    # Flask would answer OPTIONS for these by itself, before `preflight` is asked.
    @widget.get("/customer", provide_automatic_options=False)
    def customer() -> WSGIApplication:
        return lookup

    @widget.post("/earnings", provide_automatic_options=False)
    def earnings() -> Response:
        began = perf_counter()
        answer = _award(room)
        AWARDS.labels(answer.outcome).inc()
        response = Response(orjson.dumps(answer.body), status=answer.status, mimetype="application/json")
        response.headers.extend(answer_headers(room, answer, origin=request.headers.get("Origin")))
        seconds = finish("award", EARNINGS, answer, began=began)
        user_agent = request.headers.get("User-Agent", "")
        inspect(room, EARNINGS, answer, seconds=seconds, sent=_sent_if_readable, user_agent=user_agent)
        return response

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


def _award(room: WidgetRoom) -> Answer:
    connection = None
    try:
        connection = room.connections.by_award_key(request.headers.get(KEY_HEADER, ""))
        if connection is None:
            return wrong_key(room, peer=request.remote_addr, forwarded_for=request.headers.get("X-Forwarded-For"))
        fields = read_award(_sent())
        result = room.awards.award(connection.store, request=_request(room, connection, fields), rules=connection.rules)
    except BadRequest as error:
        return _refused(error.reason, str(error), connection)
    except AwardRefused as error:
        return _refused(error.reason, refusal_sentence(error), connection)
    except ProgramUnavailable as error:
        body = rejected(error.reason, program_trouble_sentence(error))
        return Answer(outcome=error.reason, status=503, body=body, connection=connection, trouble=error.reason)
    except TROUBLE as error:
        body = rejected(Outcome.UNAVAILABLE, _for_agent(error))
        return Answer(
            outcome=Outcome.UNAVAILABLE, status=503, body=body, connection=connection, trouble=trouble_sentence(error)
        )
    except HTTPException:
        raise
    except Exception:
        log.exception("award", outcome=Outcome.CRASHED)
        body = rejected(Outcome.CRASHED, _CRASHED)
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


def _refused(reason: Refusal | RequestFault, sentence: str, connection: Opened | None) -> Answer:
    status = HTTP_STATUS.get(reason, 422)
    return Answer(outcome=reason, status=status, body=rejected(reason, sentence), connection=connection)


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


def _sent_if_readable() -> Iterable[tuple[str, Any]] | None:
    try:
        return _sent().items()
    except BadRequest:
        return None


def _for_agent(error: Exception) -> str:
    """What to do about it, for someone who knows of no database."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        # The line may have broken after the commit: the double-click window guards a second press.
        return _CRASHED
    return (
        "Tallydesk cannot save anything right now. Try again in a moment; if it goes on, tell an admin. "
        "Nothing was added."
    )


_CRASHED = "Something went wrong in Tallydesk. Reload the ticket and look at the balance before you try again."


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

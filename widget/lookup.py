"""The lookup behind the card, `/widget/customer`: a WSGI function of its own, since it is asked with every ticket.

Flask's way to a view (contexts, session, hooks, response object) costs about as much as this whole answer, so `app.py`
leads here past it. What holds for every answer still holds: request id, security headers, metrics, one log line.

The lookup always answers 200 with a non-empty object, whatever arrives and whatever is broken here: after a hundred
failures in a row Gorgias disables the integration. 401 is for a wrong key alone, and 429 for many of them from one
address; a right key is never refused for its rate, since it is looked up first. No session, no cookie, no write.
Source: https://docs.gorgias.com/en-US/faq/broken-or-disconnected-http-integration
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote_plus

import structlog

from loyalty import award_key
from loyalty.program import Member, ProgramUnavailable
from schemas.email import read_addresses
from storage.trouble import TROUBLE, trouble_sentence
from widget import card
from widget.connections import Opened
from widget.room import CUSTOMER, Answer, Outcome, WidgetRoom, answer_headers, finish, inspect, wrong_key
from widget.template import KEY_HEADER

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_KEY = f"HTTP_{KEY_HEADER.upper().replace('-', '_')}"
_EMAIL = "email="
# A handler of errors that Werkzeug registers.
_KEEP_ENCODED = "werkzeug.url_quote"
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}

log = structlog.get_logger()


def create_lookup(room: WidgetRoom) -> WSGIApplication:
    """The WSGI function that answers GET and HEAD."""

    def lookup(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began = perf_counter()
        answer = _look_up(room, environ)
        try:
            body = card.as_json(answer.body)
            headers = answer_headers(room, answer, origin=environ.get("HTTP_ORIGIN"))
            seconds = finish("lookup", CUSTOMER, answer, began=began)
            inspect(
                room,
                CUSTOMER,
                answer,
                seconds=seconds,
                sent=lambda: _sent(environ),
                user_agent=environ.get("HTTP_USER_AGENT", ""),
            )
        except Exception:
            answer = _crashed(room, answer.connection)
            body, headers = card.as_json(answer.body), []
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(_STATUS_LINES[answer.status], headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return lookup


def _query(environ: WSGIEnvironment) -> str:
    """The query as Werkzeug would read it: what is no UTF-8 stays encoded."""
    query: str = environ.get("QUERY_STRING", "")
    return query if query.isascii() else query.encode("latin-1").decode(errors="replace")


def _emails(environ: WSGIEnvironment) -> list[str]:
    """The values of the fields named `email`; reading the others as well would take twice as long."""
    query = _query(environ)
    found = [_decoded(field[len(_EMAIL) :]) for field in query.split("&") if field.startswith(_EMAIL)]
    # Names may be encoded as well.
    return found if found or "%" not in query else [value for name, value in _sent(environ) if name == "email"]


def _decoded(value: str) -> str:
    # Most have nothing encoded but their @, which is found sooner than whatever might be.
    plain = value.replace("%40", "@")
    return unquote_plus(value, errors=_KEEP_ENCODED) if "%" in plain or "+" in plain else plain


def _sent(environ: WSGIEnvironment) -> list[tuple[str, str]]:
    """All fields of the query."""
    return parse_qsl(_query(environ), keep_blank_values=True, errors=_KEEP_ENCODED)


def _look_up(room: WidgetRoom, environ: WSGIEnvironment) -> Answer:
    connection = None
    try:
        connection = room.connections.opened_by(environ.get(_KEY, ""))
        if connection is None:
            return wrong_key(room, peer=environ.get("REMOTE_ADDR"), forwarded_for=environ.get("HTTP_X_FORWARDED_FOR"))
        addresses = read_addresses(_emails(environ))
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
        return _crashed(room, connection)
    return Answer(outcome=outcome, status=200, body=body, connection=connection)


def _crashed(room: WidgetRoom, connection: Opened | None) -> Answer:
    """A bug of ours must not make Gorgias count failures; the traceback is for us."""
    log.exception("lookup", outcome=Outcome.CRASHED)
    body = card.without_member(card.UNAVAILABLE, now=room.now())
    return Answer(outcome=Outcome.CRASHED, status=200, body=body, connection=connection)


def _award_key(room: WidgetRoom, connection: Opened, member: Member) -> str:
    return award_key.mint(
        hasher=room.hasher,
        connection_id=connection.id,
        member_hmac=room.hasher.email(member.email),
        now=room.now(),
        random_bytes=room.random_bytes,
    )

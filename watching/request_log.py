"""Each request has an id, and ends in one log line and one count: route, outcome, status, time.

The id stands in every line that the request logs, in its answer and on its error page, so that a person can quote it.
The rooms that programs call tell how a request of theirs ended by themselves, with more to say; this does it for all
others. Routes are told, never paths: a path may hold what somebody typed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask, Response, g, request

from redaction import cleaned_text
from telemetry import REQUEST_SECONDS, REQUESTS, tell_with_every_line

HEADER = "X-Request-Id"
SHOWN = "shown"
CRASHED = "crashed"
UNMATCHED = "unmatched"

# They count and log every request that reaches one of their functions.
_TELL_THEMSELVES = ("widget", "webhooks")
# Asked for every few seconds, or with every page: told only when something is wrong with them.
_QUIET = ("alive", "ready", "metrics", "console.static")
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
# Where the request carries them.
_ID_KEY, _BEGAN_KEY = "tallydesk.request_id", "tallydesk.began"

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()


def route() -> str:
    """The route of this request as it is in the code, the same for whatever stands in its address."""
    return UNMATCHED if request.url_rule is None else str(request.url_rule)


def add_request_log(app: Flask, *, random_bytes: Callable[[int], bytes]) -> None:
    """Give every request of `app` its id, and tell how it ended.

    A view may set `g.outcome`, the word for it, and `g.trouble`, a sentence for the operator. An error handler that
    sets `g.crash` to the error has its traceback in the line. Templates have `request_id()`.
    """
    inner = app.wsgi_app
    # An id opens nothing, so that it need not come from the system each time; but it tells nobody how many there were.
    numbers = Random(random_bytes(16))  # noqa: S311 # nosec B311

    # Around Flask and not as hooks inside, which would cost a card a fifth of its time.
    def with_id(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request_id = _given_id(environ) or f"{numbers.getrandbits(96):024x}"
        environ[_ID_KEY], environ[_BEGAN_KEY] = request_id, perf_counter()
        # Bound for this thread, which answers one request at a time; the next one puts its own in its place.
        tell_with_every_line(request_id=request_id)

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            return start_response(status, [*headers, (HEADER, request_id)], *error)

        return inner(environ, start)

    app.wsgi_app = with_id  # type: ignore[method-assign]
    app.jinja_env.globals["request_id"] = lambda: request.environ.get(_ID_KEY, "")

    @app.after_request
    def end(response: Response) -> Response:
        outcome = g.get("outcome")
        if outcome is None:
            if request.blueprint in _TELL_THEMSELVES:
                return response
            well = response.status_code < 400
            if well and request.endpoint in _QUIET:
                return response
            outcome = SHOWN if well else f"http_{response.status_code}"
        _tell(str(outcome), response.status_code)
        return response


def _tell(outcome: str, status: int) -> None:
    seconds = perf_counter() - request.environ[_BEGAN_KEY]
    shown = route()
    REQUESTS.labels(shown, outcome).inc()
    REQUEST_SECONDS.labels(shown).observe(seconds)
    told: dict[str, Any] = {
        "route": shown,
        "outcome": outcome,
        "status": status,
        "ms": round(seconds * 1000, 2),
    }
    trouble, crash = g.get("trouble"), g.get("crash")
    if trouble is not None:
        told["trouble"] = trouble
    if crash is not None:
        log.error("request", **told, exc_info=crash)
    elif request.endpoint in _QUIET:
        # Asked every few seconds: what is wrong there is told when it changes, by whoever answers.
        return
    elif trouble is not None or status >= 500:
        log.error("request", **told)
    else:
        log.info("request", **told)


def _given_id(environ: WSGIEnvironment) -> str | None:
    """The id that a proxy of ours gave the request already: one that connects from a private address. Nobody else's is
    taken, so that no stranger writes into the log."""
    given: str | None = environ.get("HTTP_X_REQUEST_ID")
    # It stands in every line as it is: one that the log would hide, such as a key, is none.
    if given is None or _ID.fullmatch(given) is None or cleaned_text(given) != given:
        return None
    try:
        return None if ip_address(environ.get("REMOTE_ADDR", "")).is_global else given
    except ValueError:
        return None

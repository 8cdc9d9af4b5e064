"""What the sandbox sends: the requests of HTTP integrations and of widget buttons.

A delivery runs behind, on a small pool of threads, as Gorgias calls integrations from its own servers. Its
answer is kept raw on the customer. Which answers count as good, how often is asked again and how long is
waited is UNKNOWN at Gorgias; the values chosen here are listed in the README.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from threading import Lock
from typing import Any
from urllib.parse import quote, urlencode

from sandbox.records import Record
from sandbox.sending import Crew, NoAnswer, send
from sandbox.state import Helpdesk, UnknownRecord, timestamp
from sandbox.variables import render

USER_AGENT = "Gorgias-Sandbox/1"
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Delivery:
    """One request of an HTTP integration, for its log. `error` is None when the answer was kept."""

    at: str
    trigger: str
    ticket_id: int
    attempt: int
    method: str
    status: int | None
    duration_ms: int
    error: str | None


@dataclass(frozen=True)
class ActionResult:
    """What a button's request brought: the HTTP status and body, or why there was none, in a sentence."""

    status: int | None
    body: str
    error: str | None


class Deliveries:
    """Sends requests for all accounts of one sandbox; `crew` are the threads that do it behind.

    `timeout_s` bounds one request as a whole, `retry_delays_s` are the pauses before further attempts after a
    timeout, a broken connection or a 5xx. `encode_email` is `percent` (values are percent-encoded where they
    enter a URL) or `raw`.
    """

    def __init__(
        self,
        *,
        crew: Crew,
        now: Callable[[], datetime],
        encode_email: str,
        timeout_s: float,
        action_timeout_s: float,
        retry_delays_s: Sequence[float],
    ) -> None:
        if encode_email not in ("percent", "raw"):
            raise ValueError("encode_email is either 'percent' or 'raw'.")
        self._now = now
        self._encode: Callable[[str], str] = partial(quote, safe="") if encode_email == "percent" else str
        self._timeout_s = timeout_s
        self._action_timeout_s = action_timeout_s
        self._retry_delays_s = tuple(retry_delays_s)
        self._crew = crew
        self._log: dict[int, deque[Delivery]] = {}
        self._log_lock = Lock()
        self._turns = itertools.count()
        self._kept_turns: dict[tuple[int, int], int] = {}

    # -- HTTP integrations ---------------------------------------------------------------------------------

    def fire(self, helpdesk: Helpdesk, triggers: tuple[str, ...], ticket_id: int) -> list[Future[None]]:
        """Call every enabled integration that has one of `triggers` on: once each, however many of them it
        has.
        """
        started: list[Future[None]] = []
        for integration in helpdesk.integrations():
            enabled = integration["http"].get("triggers") or {}
            trigger = next((name for name in triggers if enabled.get(name)), None)
            if trigger is None or integration["deactivated_datetime"] is not None or self._crew.stopping.is_set():
                continue
            started.append(self._crew.submit(partial(self._deliver, helpdesk, integration["id"], trigger, ticket_id)))
        return started

    def _deliver(self, helpdesk: Helpdesk, integration_id: int, trigger: str, ticket_id: int) -> None:
        for attempt, pause_s in enumerate((0.0, *self._retry_delays_s), start=1):
            if self._crew.stopping.wait(pause_s):
                return
            try:
                integration = helpdesk.integration(integration_id)
                ticket = helpdesk.ticket(ticket_id)
            except UnknownRecord:
                return  # deleted in the meantime
            if integration["deactivated_datetime"] is not None:
                return
            turn = next(self._turns)
            began = time.monotonic()
            status: int | None = None
            reason: str | None = None
            again = False
            try:
                status, body = self._call(helpdesk, integration, trigger, ticket)
                answer = _json_object(status, body)
            except NoAnswer as error:
                reason, again, answer = str(error), error.again or (status or 0) >= 500, None
            entry = Delivery(
                at=timestamp(self._now()),
                trigger=trigger,
                ticket_id=ticket_id,
                attempt=attempt,
                method=integration["http"]["method"],
                status=status,
                duration_ms=round((time.monotonic() - began) * 1000),
                error=reason,
            )
            with self._log_lock:
                self._log.setdefault(integration_id, deque(maxlen=50)).append(entry)
            try:
                if answer is not None:
                    self._keep(helpdesk, ticket["customer"]["id"], integration_id, answer, turn)
                    helpdesk.count_success(integration_id)
                    return
                helpdesk.count_failure(integration_id)
            except UnknownRecord:
                return
            if not again:
                return

    def _keep(self, helpdesk: Helpdesk, customer_id: int, integration_id: int, answer: Record, turn: int) -> None:
        """Keep the answer unless a request that was sent later has already brought one."""
        with helpdesk.records.change():
            helpdesk.integration(integration_id)
            if self._kept_turns.get((customer_id, integration_id), -1) < turn:
                self._kept_turns[customer_id, integration_id] = turn
                helpdesk.set_integration_data(customer_id, integration_id, answer)

    def _call(self, helpdesk: Helpdesk, integration: Record, trigger: str, ticket: Record) -> tuple[int, bytes]:
        http = integration["http"]
        context: Record = {"ticket": ticket, "customer": ticket["customer"]}
        # `"{{context}}"` as the whole form sends the event with everything in it (seen in third-party code).
        context["context"] = {"event": {"type": trigger}, "ticket": ticket}
        headers = {name: render(str(value), context) for name, value in (http.get("headers") or {}).items()}
        body = b""
        if http["method"] not in ("GET", "HEAD"):
            body = _form_body(http.get("form"), http["request_content_type"], context)
            headers.setdefault("Content-Type", http["request_content_type"])
        secret = helpdesk.hmac_secret(integration["id"])
        if secret:
            headers["X-Gorgias-Signature"] = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        url = render(http["url"], context, escape=self._encode)
        return self._send(http["method"], url, headers=headers, body=body, timeout_s=self._timeout_s)

    def log(self, integration_id: int) -> list[Delivery]:
        """The latest 50 requests of an integration, oldest first."""
        with self._log_lock:
            return list(self._log.get(integration_id, ()))

    # -- buttons -------------------------------------------------------------------------------------------

    def run_action(
        self,
        helpdesk: Helpdesk,
        action: Mapping[str, Any],
        *,
        fields: Mapping[str, str],
        ticket_id: int | None,
        customer_id: int,
        user_id: int,
    ) -> ActionResult:
        """Send the request of a widget's button, from here and not from the agent's browser (UNKNOWN 2).

        `action` is the `action` object of a button as stored in the widget. `fields` are what the agent
        typed: they replace the value of the editable entries of params, headers and form body that have their
        key. An empty mandatory entry is refused and nothing is sent. On a ticket the execution becomes an
        event of its history. The sidebar is not refreshed. Raises UnknownRecord.
        """
        context = {
            "ticket": None if ticket_id is None else helpdesk.ticket(ticket_id),
            "customer": helpdesk.customer(customer_id),
            "current_user": helpdesk.user(user_id),
        }
        body_spec = action.get("body") or {}
        content_type = body_spec.get("contentType") or "application/json"
        try:
            params = _entries(action.get("params"), fields, context)
            headers = dict(_entries(action.get("headers"), fields, context))
            form = _entries(body_spec.get(FORM), fields, context) if content_type == FORM else []
        except NoAnswer as error:
            return ActionResult(None, "", str(error))
        method = str(action.get("method") or "GET").upper()
        url = render(str(action.get("url") or ""), context, escape=self._encode)
        if params:
            url += ("&" if "?" in url else "?") + urlencode(params)
        body = b""
        if method not in ("GET", "HEAD"):
            headers.setdefault("Content-Type", content_type)
            if content_type == FORM:
                body = urlencode(form).encode()
            else:
                body = json.dumps(_filled(body_spec.get("application/json") or {}, context)).encode()
        try:
            status, answer = self._send(method, url, headers=headers, body=body, timeout_s=self._action_timeout_s)
            result = ActionResult(status, answer.decode("utf-8", "replace"), None)
        except NoAnswer as error:
            result = ActionResult(None, "", str(error))
        if ticket_id is not None:
            # The address as the merchant wrote it: the one that was called may hold the customer's e-mail.
            data = {
                "method": method,
                "url": action.get("url"),
                "status": result.status,
                "error": result.error,
            }
            helpdesk.add_event(ticket_id, "action-executed", user_id=user_id, data=data)
        return result

    # -- both ----------------------------------------------------------------------------------------------

    def _send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes, timeout_s: float
    ) -> tuple[int, bytes]:
        return send(method, url, headers=headers, body=body, timeout_s=timeout_s, user_agent=USER_AGENT)

    @staticmethod
    def wait(started: Sequence[Future[None]], timeout_s: float) -> None:
        """Wait for these deliveries, at most `timeout_s` seconds."""
        wait(started, timeout=timeout_s)


def _json_object(status: int, body: bytes) -> Record:
    if not 200 <= status < 300:
        raise NoAnswer(f"HTTP status {status}.", again=False)
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise NoAnswer("The answer is not JSON.", again=False) from error
    if not isinstance(answer, dict):
        raise NoAnswer("The answer is not a JSON object.", again=False)
    return answer


def _form_body(form: Any, content_type: str, context: Mapping[str, Any]) -> bytes:
    if form is None:
        return b""
    if isinstance(form, str):
        return render(form, context).encode()
    filled = _filled(form, context)
    if content_type == FORM:
        pairs = {key: value if isinstance(value, str) else json.dumps(value) for key, value in filled.items()}
        return urlencode(pairs).encode()
    return json.dumps(filled).encode()


def _filled(value: Any, context: Mapping[str, Any]) -> Any:
    """The same JSON with every string rendered; a rendered number stays text, as far as anybody has seen."""
    if isinstance(value, str):
        return render(value, context)
    if isinstance(value, Mapping):
        return {key: _filled(item, context) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, context) for item in value]
    return value


def _entries(entries: Any, fields: Mapping[str, str], context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (key, value) pairs of a button's params, headers or form. Raises NoAnswer for an empty mandatory
    one.
    """
    pairs: list[tuple[str, str]] = []
    for entry in entries or ():
        key = str(entry.get("key") or "")
        if entry.get("editable") and key in fields:
            value = fields[key]
        else:
            stored = entry.get("value")
            value = render(stored if isinstance(stored, str) else "" if stored is None else json.dumps(stored), context)
        if entry.get("mandatory") and not value.strip():
            raise NoAnswer(f"{entry.get('label') or key} is required.", again=False)
        pairs.append((key, value))
    return pairs

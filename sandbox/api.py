"""Gorgias' REST API as far as apps for the sidebar need it: https://developers.gorgias.com/reference.

Bearer tokens only. Scopes, the role of the user a token acts as, unknown parameters, cursors and the call
budget are enforced, since those are what integrations trip over.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any

from flask import Blueprint, Response, g, request

from sandbox.records import Record
from sandbox.runtime import Runtime
from sandbox.state import TRIGGERS, DuplicateExternalId, Helpdesk, UnknownRecord

MAX_BODY_BYTES = 1024 * 1024
WINDOW_S = 20.0

WIDGET_TYPES = (
    "bigcommerce",
    "custom",
    "customer_external_data",
    "http",
    "klaviyo",
    "magento2",
    "recharge",
    "shopify",
    "smile",
    "standalone",
    "stripe",
    "woocommerce",
    "yotpo",
)
WIDGET_CONTEXTS = ("ticket", "customer", "user")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH")
REQUEST_TYPES = ("application/json", "application/x-www-form-urlencoded")
# The spelling with underscores is kept and never fires, as reported of Gorgias (it stands in older
# documentation).
ACCEPTED_TRIGGERS = {*TRIGGERS, *(name.replace("-", "_") for name in TRIGGERS), "ticket_assignee_updated"}
MESSAGE_FIELDS = (
    "attachments",
    "body_html",
    "body_text",
    "channel",
    "created_datetime",
    "external_id",
    "failed_datetime",
    "from_agent",
    "integration_id",
    "message_id",
    "meta",
    "public",
    "receiver",
    "rule_id",
    "sender",
    "sent_datetime",
    "source",
    "stripped_html",
    "stripped_text",
    "subject",
    "via",
)


class ApiError(Exception):
    """An answer other than 2xx: {"error": {"msg", "data"}}."""

    def __init__(self, status: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.status = status
        self.data = data


class CallBudget:
    """A leaky bucket: `size` calls fit, and it empties evenly in 20 seconds.

    https://developers.gorgias.com/reference/limitations
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self.size = size
        self._clock = clock
        self._lock = threading.Lock()
        self._level = 0.0
        self._at = clock()

    def take(self) -> tuple[int, int | None]:
        """Calls in the bucket now, and None, or the seconds to wait when this call did not fit."""
        with self._lock:
            now = self._clock()
            self._level = max(0.0, self._level - (now - self._at) * self.size / WINDOW_S)
            self._at = now
            if self._level + 1 > self.size:
                return self.size, max(1, math.ceil((self._level + 1 - self.size) * WINDOW_S / self.size))
            self._level += 1
            return math.ceil(self._level), None


def answer(body: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json.dumps(body), status=status, mimetype="application/json")


def create_api(runtime: Runtime) -> Blueprint:
    """The routes below /<account>/api."""
    blueprint = Blueprint("api", __name__, url_prefix="/<account>/api")
    budgets = {account: CallBudget(runtime.calls_per_20_s, runtime.monotonic) for account in runtime.accounts}

    @blueprint.url_value_preprocessor
    def find_account(_endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.account = (values or {}).pop("account")

    @blueprint.before_request
    def admit() -> None:
        helpdesk = runtime.helpdesk(g.account)
        if helpdesk is None:
            raise ApiError(404, f"There is no account {g.account}.")
        g.helpdesk = helpdesk
        level, g.retry_after = budgets[g.account].take()
        g.call_limit = f"{level}/{runtime.calls_per_20_s}"
        if g.retry_after is not None:
            raise ApiError(429, "Too many calls: wait for the seconds in Retry-after.")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        claims = runtime.tokens.read(helpdesk, token.strip()) if scheme.lower() == "bearer" else None
        if claims is None:
            raise ApiError(401, "The access token is missing, not valid here or expired.")
        g.user = helpdesk.user(int(claims["sub"]))
        g.scopes = str(claims.get("scope", "")).split()
        if len(request.get_data()) > MAX_BODY_BYTES:
            raise ApiError(413, "The body of the request is too large.")

    @blueprint.after_request
    def tell_the_budget(response: Response) -> Response:
        if "call_limit" in g:
            response.headers["X-Gorgias-Account-Api-Call-Limit"] = g.call_limit
            if g.retry_after is not None:
                response.headers["Retry-after"] = str(g.retry_after)
        return response

    @blueprint.errorhandler(ApiError)
    def refuse(error: ApiError) -> Response:
        return answer({"error": {"msg": str(error), "data": error.data}}, error.status)

    @blueprint.errorhandler(UnknownRecord)
    def not_found(error: UnknownRecord) -> Response:
        return answer({"error": {"msg": error.description, "data": {}}}, 404)

    # -- account and users ---------------------------------------------------------------------------------

    @blueprint.get("/account")
    def read_account() -> Response:
        _need("account:read")
        _query()
        return answer(g.helpdesk.about())

    @blueprint.get("/users")
    def list_users() -> Response:
        _need("users:read")
        return _listing(g.helpdesk.users(), orders=("created_datetime", "name"))

    @blueprint.get("/users/<int:key>")
    def read_user(key: int) -> Response:
        _need("users:read")
        _query()
        return answer(g.helpdesk.user(key))

    # -- integrations, widgets, macros ---------------------------------------------------------------------

    for kind, scope, check, orders, filters in (
        ("integrations", "integrations", _integration, ("created_datetime",), {"type": str}),
        (
            "widgets",
            "integrations",
            _widget,
            ("created_datetime", "order"),
            {"integration_id": int, "app_id": str},
        ),
        ("macros", "macros", _macro, ("created_datetime", "updated_datetime", "name"), {}),
    ):
        _add_object_routes(blueprint, kind, scope=scope, check=check, orders=orders, filters=filters)

    # -- customers -----------------------------------------------------------------------------------------

    @blueprint.get("/customers")
    def list_customers() -> Response:
        _need("customers:read")
        filters = _query("email", "channel_type", "channel_address", paged=True)
        customers = g.helpdesk.customers()
        if "email" in filters:
            wanted = filters["email"].strip().lower()
            customers = [customer for customer in customers if (customer["email"] or "").lower() == wanted]
        if ("channel_type" in filters) != ("channel_address" in filters):
            raise ApiError(400, "channel_type and channel_address go together.")
        if "channel_address" in filters:
            wanted = filters["channel_address"].strip().lower()
            customers = [
                customer
                for customer in customers
                if any(
                    channel["type"] == filters["channel_type"] and channel["address"].lower() == wanted
                    for channel in customer["channels"]
                )
            ]
        return _listing(customers, orders=("created_datetime", "name"), filters=tuple(filters))

    @blueprint.get("/customers/<int:key>")
    def read_customer(key: int) -> Response:
        _need("customers:read")
        _query()
        return answer(g.helpdesk.customer(key))

    @blueprint.put("/customers/<int:key>/data")
    def write_customer_data(key: int) -> Response:
        _need("customers:write")
        _query()
        fields = _body(("data", "version"), required=("data",))
        version = fields.get("version")
        if version is not None and not _is_aware_time(version):
            raise ApiError(400, "version must be an ISO 8601 time with an offset.", field="version")
        g.helpdesk.set_customer_data(key, fields["data"], version=version)
        return Response(status=202)

    # -- tickets -------------------------------------------------------------------------------------------

    @blueprint.get("/tickets")
    def list_tickets() -> Response:
        _need("tickets:read")
        filters = _query("customer_id", paged=True)
        tickets = g.helpdesk.tickets()
        if "customer_id" in filters:
            wanted = _integer(filters["customer_id"], "customer_id")
            tickets = [ticket for ticket in tickets if ticket["customer"]["id"] == wanted]
        return _listing(tickets, orders=("created_datetime", "updated_datetime"), filters=tuple(filters))

    @blueprint.get("/tickets/<int:key>")
    def read_ticket(key: int) -> Response:
        _need("tickets:read")
        _query()
        return answer(g.helpdesk.ticket(key))

    @blueprint.get("/tickets/<int:key>/messages")
    def list_messages(key: int) -> Response:
        _need("tickets:read")
        return _listing(g.helpdesk.messages(key), orders=("created_datetime",))

    @blueprint.post("/tickets/<int:key>/messages")
    def create_message(key: int) -> Response:
        _need("tickets:write")
        _query()
        fields = _body(MESSAGE_FIELDS, required=("channel", "via", "from_agent"))
        return answer(_create_message(g.helpdesk, key, fields), 201)

    @blueprint.post("/tickets/<int:key>/tags")
    def add_tags(key: int) -> Response:
        _need("tickets:write")
        _query()
        fields = _body(("names", "ids"))
        names = fields.get("names") or []
        ids = fields.get("ids") or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ApiError(400, "names must be a list of texts.", field="names")
        known = {tag["id"]: tag["name"] for tag in g.helpdesk.tags()}
        if not isinstance(ids, list) or not all(tag_id in known for tag_id in ids):
            raise ApiError(400, "ids must be a list of ids of tags.", field="ids")
        if not names and not ids:
            raise ApiError(400, "Give names or ids.")
        g.helpdesk.add_tags(key, [*names, *(known[tag_id] for tag_id in ids)])
        return Response(status=201)

    @blueprint.route("/", methods=[*METHODS])
    @blueprint.route("/<path:_rest>", methods=[*METHODS])
    def nothing_here(_rest: str = "") -> Response:
        raise ApiError(404, "There is no such endpoint in this sandbox, or not with this method.")

    return blueprint


def _add_object_routes(
    blueprint: Blueprint,
    kind: str,
    *,
    scope: str,
    check: Callable[[Helpdesk, Record, Record | None], Record],
    orders: tuple[str, ...],
    filters: Mapping[str, type[int] | type[str]],
) -> None:
    """List, get, create, update and delete of one kind of object that only admins may change."""

    def one(key: int) -> Record:
        record: Record = getattr(g.helpdesk, kind.removesuffix("s"))(key)
        return record

    def every() -> Response:
        _need(f"{scope}:read")
        wanted = _query(*filters, paged=True)
        records: list[Record] = getattr(g.helpdesk, kind)()
        for name, text in wanted.items():
            value = _integer(text, name) if filters[name] is int else text
            records = [record for record in records if record[name] == value]
        return _listing(records, orders=orders, filters=tuple(filters))

    def read(key: int) -> Response:
        _need(f"{scope}:read")
        _query()
        return answer(one(key))

    def create() -> Response:
        _need(f"{scope}:write", admin=True)
        _query()
        fields = check(g.helpdesk, _body(None), None)
        if kind == "integrations":
            fields["user"] = {key: g.user[key] for key in ("id", "email", "name")}
        return answer(g.helpdesk.keep_object(kind, fields), 201)

    def update(key: int) -> Response:
        _need(f"{scope}:write", admin=True)
        _query()
        with g.helpdesk.records.change():
            fields = check(g.helpdesk, _body(None), one(key))
            return answer(g.helpdesk.keep_object(kind, fields, key=key))

    def delete(key: int) -> Response:
        _need(f"{scope}:write", admin=True)
        _query()
        g.helpdesk.delete_object(kind, key)
        return Response(status=204)

    blueprint.add_url_rule(f"/{kind}", f"list_{kind}", every, methods=["GET"])
    blueprint.add_url_rule(f"/{kind}", f"create_{kind}", create, methods=["POST"])
    blueprint.add_url_rule(f"/{kind}/<int:key>", f"read_{kind}", read, methods=["GET"])
    blueprint.add_url_rule(f"/{kind}/<int:key>", f"update_{kind}", update, methods=["PUT"])
    blueprint.add_url_rule(f"/{kind}/<int:key>", f"delete_{kind}", delete, methods=["DELETE"])


# -- what a request may do and say -------------------------------------------------------------------------


def _need(scope: str, *, admin: bool = False) -> None:
    if scope not in g.scopes:
        raise ApiError(403, f"The access token lacks the scope {scope}.", scope=scope)
    if admin and g.user["role"]["name"] != "admin":
        raise ApiError(403, "Only admins of the helpdesk may do this.", role=g.user["role"]["name"])


def _query(*allowed: str, paged: bool = False) -> dict[str, str]:
    """The query's own parameters; with `paged`, those of a listing may be there too."""
    listing = ("cursor", "limit", "order_by") if paged else ()
    unknown = sorted(request.args.keys() - {*allowed, *listing})
    if unknown:
        raise ApiError(400, f"Unknown query parameter {', '.join(unknown)}.", unknown=unknown)
    return {name: value for name, value in request.args.items() if name in allowed}


def _body(allowed: Collection[str] | None, *, required: Collection[str] = ()) -> Record:
    """The JSON object of the body. `allowed` None leaves its fields to the caller."""
    try:
        fields = json.loads(request.get_data())
    except ValueError as error:
        raise ApiError(400, "The body must be JSON.") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "The body must be a JSON object.")
    if allowed is not None:
        _only(fields, allowed, required)
    return fields


def _only(fields: Mapping[str, Any], allowed: Collection[str], required: Collection[str], inside: str = "") -> None:
    unknown = sorted(fields.keys() - set(allowed))
    if unknown:
        raise ApiError(400, f"Unknown parameter {', '.join(inside + name for name in unknown)}.", unknown=unknown)
    missing = [name for name in required if name not in fields]
    if missing:
        raise ApiError(400, f"Missing parameter {', '.join(inside + name for name in missing)}.", missing=missing)


def _expect(true: bool, field: str, expectation: str) -> None:
    if not true:
        raise ApiError(400, f"{field} must be {expectation}.", field=field)


def _integer(text: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ApiError(400, f"{name} must be a number.", field=name)
    return int(text)


def _is_aware_time(text: Any) -> bool:
    try:
        return isinstance(text, str) and datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _listing(records: list[Record], *, orders: tuple[str, ...], filters: tuple[str, ...] = ()) -> Response:
    """One page: {data, meta: {next_cursor, prev_cursor}}; `orders` are the fields it can be ordered by."""
    _query(*filters, paged=True)
    limit = _integer(request.args.get("limit", "30"), "limit")
    if not 1 <= limit <= 100:
        raise ApiError(400, "limit must be from 1 to 100.", field="limit")
    order_by = request.args.get("order_by", f"{orders[0]}:desc")
    name, _, direction = order_by.partition(":")
    if name not in orders or direction not in ("asc", "desc"):
        raise ApiError(400, f"order_by must be one of {', '.join(orders)} with :asc or :desc.", field="order_by")

    def place(record: Record) -> list[Any]:
        return [record[name], record["id"]]

    records = sorted(records, key=place, reverse=direction == "desc")
    start, stop = 0, limit
    if "cursor" in request.args:
        side, at = _read_cursor(request.args["cursor"], order_by)
        # What was deleted in between does not matter: a cursor names a place in the order, not a record.
        before = [place(record) < at if direction == "asc" else place(record) > at for record in records]
        if side == "after":
            start = sum(before) + sum(place(record) == at for record in records)
            stop = start + limit
        else:
            stop = sum(before)
            start = max(0, stop - limit)
    chosen = records[start:stop]
    meta = {
        "next_cursor": _cursor("after", place(chosen[-1]), order_by) if chosen and stop < len(records) else None,
        "prev_cursor": _cursor("before", place(chosen[0]), order_by) if chosen and start > 0 else None,
    }
    return answer({"data": chosen, "meta": meta})


def _cursor(side: str, at: list[Any], order_by: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([side, at, order_by]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str, order_by: str) -> tuple[str, list[Any]]:
    try:
        side, at, made_for = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if side not in ("after", "before") or made_for != order_by or not isinstance(at[1], int):
            raise ValueError
    except (ValueError, TypeError, IndexError) as error:
        raise ApiError(400, "cursor is not one that this listing gave.", field="cursor") from error
    return side, at


# -- checks of what is kept --------------------------------------------------------------------------------


def _integration(_helpdesk: Helpdesk, fields: Record, before: Record | None) -> Record:
    """A whole integration from the body of a POST, or of a PUT on `before`."""
    _only(
        fields,
        ("name", "description", "type", "deactivated_datetime", "business_hours_id", "http"),
        ("name",),
    )
    _expect(isinstance(fields["name"], str) and bool(fields["name"].strip()), "name", "a text")
    _expect(fields.get("type", before and "http") == "http", "type", "http, the only one that can be created")
    _expect(isinstance(fields.get("description", ""), str | None), "description", "a text or null")
    deactivated = fields.get("deactivated_datetime")
    _expect(deactivated is None or _is_aware_time(deactivated), "deactivated_datetime", "a time or null")
    kept: Record = before or {
        "type": "http",
        "description": None,
        "deactivated_datetime": None,
        "application_id": None,  # UNKNOWN whether Gorgias fills it in for an app's token
        "managed": False,
        "business_hours_id": None,
    }
    http = fields.get("http", {} if before is None else {"url": kept["http"]["url"]})
    _expect(isinstance(http, dict), "http", "an object")
    known = (
        "url",
        "method",
        "headers",
        "form",
        "request_content_type",
        "response_content_type",
        "hmac_secret",
        "triggers",
    )
    required = ("url",) if before else ("method", "url", "request_content_type", "response_content_type")
    _only(http, known, required, inside="http.")
    whole = (kept["http"] if before else {"headers": {}, "form": None, "triggers": {}}) | http
    _expect(bool(re.match(r"https?://", str(whole["url"]))), "http.url", "an http or https address")
    _expect(whole["method"] in METHODS, "http.method", f"one of {', '.join(METHODS)}")
    _expect(
        whole["request_content_type"] in REQUEST_TYPES,
        "http.request_content_type",
        " or ".join(REQUEST_TYPES),
    )
    _expect(whole["response_content_type"] == "application/json", "http.response_content_type", "application/json")
    headers = whole["headers"]
    _expect(
        headers is None or (isinstance(headers, dict) and all(isinstance(value, str) for value in headers.values())),
        "http.headers",
        "an object of texts or null",
    )
    _expect(isinstance(whole["form"], dict | str | None), "http.form", "an object, a text or null")
    _expect(isinstance(whole.get("hmac_secret"), str | None), "http.hmac_secret", "a text or null")
    triggers = whole["triggers"]
    _expect(
        isinstance(triggers, dict) and all(isinstance(value, bool) for value in triggers.values()),
        "http.triggers",
        "an object of true and false",
    )
    unknown = sorted(triggers.keys() - ACCEPTED_TRIGGERS)
    _expect(not unknown, "http.triggers", f"made of known triggers; {', '.join(unknown)} is none")
    return kept | fields | {"type": "http", "http": whole}


def _widget(helpdesk: Helpdesk, fields: Record, before: Record | None) -> Record:
    """A whole widget from the body of a POST, or of a PUT on `before`."""
    known = ("context", "type", "integration_id", "app_id", "order", "template", "deactivated_datetime")
    _only(fields, known, () if before else ("template", "type"))
    whole = (
        before
        or {
            "context": "ticket",
            "integration_id": None,
            "app_id": None,
            "order": 0,
            "deactivated_datetime": None,
        }
    ) | fields
    _expect(whole["type"] in WIDGET_TYPES, "type", f"one of {', '.join(WIDGET_TYPES)}")
    _expect(whole["context"] in WIDGET_CONTEXTS, "context", f"one of {', '.join(WIDGET_CONTEXTS)}")
    _expect(_is_int(whole["order"]) and whole["order"] >= 0, "order", "a number from 0")
    if whole["type"] == "http":
        known_ids = [integration["id"] for integration in helpdesk.integrations()]
        kept_as_it_was = before is not None and whole["integration_id"] == before["integration_id"]
        _expect(
            _is_int(whole["integration_id"]) and (whole["integration_id"] in known_ids or kept_as_it_was),
            "integration_id",
            "the id of an HTTP integration",
        )
    else:
        _expect(whole["integration_id"] is None, "integration_id", "null unless type is http")
    _expect(
        whole["app_id"] is None or (isinstance(whole["app_id"], str) and whole["type"] == "customer_external_data"),
        "app_id",
        "null unless type is customer_external_data",
    )
    deactivated = whole["deactivated_datetime"]
    _expect(deactivated is None or _is_aware_time(deactivated), "deactivated_datetime", "a time or null")
    template = whole["template"]
    _expect(
        isinstance(template, dict) and template.get("type") == "wrapper" and isinstance(template.get("widgets"), list),
        "template",
        "an object of type wrapper with a list of widgets",
    )
    return whole


def _macro(_helpdesk: Helpdesk, fields: Record, before: Record | None) -> Record:
    """A whole macro from the body of a POST, or of a PUT on `before`."""
    _only(fields, ("name", "actions", "intent", "language"), () if before else ("name", "actions"))
    whole = (before or {"intent": None, "language": None}) | fields
    _expect(isinstance(whole["name"], str) and bool(whole["name"].strip()), "name", "a text")
    actions = whole["actions"]
    _expect(
        isinstance(actions, list)
        and all(
            isinstance(action, dict)
            and isinstance(action.get("name"), str)
            and isinstance(action.get("arguments"), dict)
            for action in actions
        ),
        "actions",
        "a list of objects with name and arguments",
    )
    for name in ("intent", "language"):
        _expect(isinstance(whole[name], str | None), name, "a text or null")
    return whole


def _create_message(helpdesk: Helpdesk, ticket_id: int, fields: Record) -> Record:
    """Add a message to a ticket as POST /api/tickets/{id}/messages does; answers the message."""
    helpdesk.ticket(ticket_id)
    for name in ("channel", "via"):
        _expect(isinstance(fields[name], str) and bool(fields[name]), name, "a text")
    _expect(isinstance(fields["from_agent"], bool), "from_agent", "true or false")
    note = fields["channel"] == "internal-note"
    _expect(fields["from_agent"] or not note, "from_agent", "true: internal notes are always outgoing")
    for name in ("body_text", "body_html", "subject", "external_id"):
        _expect(isinstance(fields.get(name), str | None), name, "a text or null")
    external_id = fields.get("external_id")
    _expect(external_id is None or 0 < len(external_id) <= 255, "external_id", "at most 255 characters")
    _expect(bool(fields.get("body_text") or fields.get("body_html")), "body_text", "given, or body_html")
    sender = fields.get("sender")
    _expect(isinstance(sender, dict | None), "sender", "an object with id or email")
    sender_id = g.user["id"]
    if fields["from_agent"] and sender is not None:
        _only(sender, ("id", "email"), (), inside="sender.")
        user = next(
            (
                user
                for user in helpdesk.users()
                if user["id"] == sender.get("id") or user["email"].lower() == str(sender.get("email")).lower()
            ),
            None,
        )
        if user is None:
            raise ApiError(400, "sender must be a user of this helpdesk.", field="sender")
        sender_id = user["id"]
    own = (
        "channel",
        "via",
        "from_agent",
        "sender",
        "subject",
        "external_id",
        "body_text",
        "body_html",
        "public",
    )
    try:
        return helpdesk.add_message(
            ticket_id,
            fields.get("body_text") or "",
            html=fields.get("body_html"),
            channel=fields["channel"],
            via=fields["via"],
            from_agent=fields["from_agent"],
            sender_id=sender_id,
            subject=fields.get("subject"),
            external_id=external_id,
            extra={name: value for name, value in fields.items() if name not in own},
        )
    except DuplicateExternalId as error:
        raise ApiError(409, "A message of this ticket has this external_id already.", field="external_id") from error


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Rivo's merchant REST API as far as it is known: https://developer-docs.rivo.io/reference.

The raw key in `Authorization` decides the store. Statuses and bodies of errors, and everything else that nobody outside
Rivo knows, come from sandbox.rivo_shapes.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, g, request

from sandbox import rivo_shapes
from sandbox.records import Record
from sandbox.rivo import Refused, RivoStore, read_time
from sandbox.rivo_shapes import RivoShapes
from sandbox.runtime import Runtime

MOST = 2_147_483_647
PAGE_ROWS = 25
MOST_ROWS = 250
MOST_PAGES = 500
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

SOURCES = (
    "manual",
    "custom_action",
    "referral_complete",
    "visit_url",
    "instagram_follow",
    "tiktok_follow",
    "facebook_like",
    "facebook_share",
    "twitter_follow",
    "twitter_share",
)
"""What a points event may be created with: https://developer-docs.rivo.io/reference/adjust-customer-points"""


class SlidingSecond:
    """At most `limit` calls in any second. None: no limit. Refused calls do not count (UNKNOWN)."""

    def __init__(self, limit: int | None, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._times: deque[float] = deque()

    def take(self) -> bool:
        """Count a call. False when it is one too many."""
        with self._lock:
            now = self._clock()
            while self._times and self._times[0] <= now - 1:
                self._times.popleft()
            if self._limit is not None and len(self._times) >= self._limit:
                return False
            self._times.append(now)
            return True


def create_rivo_api(runtime: Runtime) -> Blueprint:
    """The routes below /rivo/merchant_api/v1."""
    blueprint = Blueprint("rivo_api", __name__, url_prefix="/rivo/merchant_api/v1")
    budgets = {name: SlidingSecond(runtime.rivo_calls_per_s, runtime.monotonic) for name in runtime.rivo_stores}

    @blueprint.before_request
    def admit() -> None:
        g.store = runtime.rivo_store_of(request.headers.get("Authorization"))
        # A request that a fault let in earlier is not asked again.
        admitted = runtime.rivo_stores.get(request.environ.get("sandbox.admitted", ""))
        if admitted is not None:
            g.store = admitted
        elif g.store is None:
            raise Refused("The API key is missing or wrong.", status=401)
        elif not budgets[g.store.name].take():
            raise Refused("Too many requests.", status=429)
        if g.store.lapsed:
            raise Refused("API access is not included in this plan.", status=403)

    @blueprint.errorhandler(Refused)
    def refuse(error: Refused) -> Response:
        shapes = _shapes()
        response = answer(rivo_shapes.error(str(error), shapes), error.status or shapes.invalid_status)
        if error.status == 429 and runtime.rivo_retry_after:
            response.headers["Retry-After"] = "1"
        return response

    @blueprint.errorhandler(sqlite3.Error)
    def not_kept(error: sqlite3.Error) -> Response:
        sentence = f"The sandbox could not keep this ({error}). Nothing was changed."
        print(sentence, file=sys.stderr)
        return answer(rivo_shapes.error(sentence, _shapes()), 500)

    @blueprint.errorhandler(_NoCustomer)
    def no_customer(_: _NoCustomer) -> Response:
        if _shapes().not_found == "html":
            return Response(rivo_shapes.NOT_FOUND_PAGE, status=404, mimetype="text/html")
        return answer(rivo_shapes.error("Customer not found", _shapes()), 404)

    @blueprint.route("/", defaults={"_rest": ""}, methods=METHODS)
    @blueprint.route("/<path:_rest>", methods=METHODS)
    def no_such_path(_rest: str) -> Response:
        raise Refused("Not Found", status=404)

    # -- customers -----------------------------------------------------------------------------------------

    @blueprint.get("/customers")
    def list_customers() -> Response:
        return _listing(runtime, g.store.customers(), _customer)

    # An e-mail address may contain a slash.
    @blueprint.get("/customers/<path:identifier>")
    def read_customer(identifier: str) -> Response:
        return answer({"data": _customer(_identified(identifier))})

    @blueprint.put("/customers/<path:identifier>")
    def update_customer(identifier: str) -> Response:
        customer = _identified(identifier)
        fields = _fields()
        if "dob" in fields:
            # The format for writing is UNKNOWN: taken are MM-DD, without zeros too, and a whole date.
            found = re.fullmatch(r"(?:\d{4}-)?(\d{1,2})-(\d{1,2})", str(fields["dob"]))
            if found is None or not (1 <= int(found[1]) <= 12 and 1 <= int(found[2]) <= 31):
                raise Refused("dob is invalid")
            customer = g.store.update_customer(customer["email"], dob=f"{int(found[1]):02}-{int(found[2]):02}")
        return answer({"data": _customer(customer)})

    @blueprint.delete("/memberships/<path:identifier>/cancel")
    def cancel_membership(identifier: str) -> Response:
        customer = _identified(identifier)
        g.store.cancel_membership(customer)
        if _shapes().cancelled_as == "empty":
            return Response(status=204)
        return answer({"data": rivo_shapes.cancellation(customer, request_id=customer["id"])})

    # -- tiers, rewards, earning rules ---------------------------------------------------------------------

    @blueprint.get("/vip_tiers")
    def list_tiers() -> Response:
        return _listing(runtime, g.store.vip_tiers(), _plain("vip_tier"), orders=("id", "name", "threshold", "perks"))

    @blueprint.get("/vip_tiers/<key>")
    def read_tier(key: str) -> Response:
        tier = next((tier for tier in g.store.vip_tiers() if str(tier["id"]) == key), None)
        if tier is None:
            raise Refused("Not Found", status=404)
        return answer({"data": _plain("vip_tier")(tier)})

    @blueprint.get("/rewards")
    def list_rewards() -> Response:
        # The spelling of this filter is UNKNOWN: both are taken.
        wanted = request.args.get("filters[purchase_type]") or request.args.get("purchase_type")
        rows = [reward for reward in g.store.rewards() if wanted in (None, reward["purchase_type"])]
        return _listing(runtime, rows, _plain("reward"))

    @blueprint.get("/earning_rules")
    def list_rules() -> Response:
        return _listing(runtime, g.store.earning_rules(), _plain("earning_rule"))

    # -- points events -------------------------------------------------------------------------------------

    @blueprint.get("/points_events")
    def list_events() -> Response:
        store: RivoStore = g.store
        identifier = request.args.get("filters[customer_identifier]")
        if identifier is None:
            rows = store.events()
        else:  # of nobody: an empty list (UNKNOWN)
            customer = store.identify(identifier)
            rows = [] if customer is None else store.events_of(customer["id"])
        for name in ("source", "custom_action_name"):
            wanted = request.args.get(f"filters[{name}]")
            rows = [event for event in rows if wanted in (None, event[name])]
        return _listing(
            runtime,
            rows,
            lambda event: rivo_shapes.points_event(
                event, shop_id=store.shop_id, customer_record=None, shapes=store.shapes
            ),
            orders=("id", "applied_at", "created_at"),
            newest_first=store.shapes.newest_first,
        )

    @blueprint.post("/points_events")
    def create_event() -> Response:
        store: RivoStore = g.store
        fields = _fields()
        source = _required(fields, "source")
        if source not in SOURCES:
            raise Refused("source does not have a valid value")
        points = _points(fields.get("points_amount"))
        credits = _credits(fields.get("credits_amount"))
        customer = _changeable(_required(fields, "customer_identifier"))
        action = _text(fields.get("custom_action_name"))
        rule = _rule(store, source, action)
        if source == "manual":
            if points is None and credits is None:
                raise Refused("points_amount is missing")
        elif points is None and credits is None:
            # Believed of Rivo: what the rule gives, unless the call says otherwise.
            points = rule["points_amount"] if rule else None
        # Whether nothing may be added is UNKNOWN.
        if not points and not credits:
            raise Refused("points_amount must not be zero")
        applied_at = _text(fields.get("applied_at"))
        if applied_at is not None and (applied_at := read_time(applied_at)) is None:
            raise Refused("applied_at is invalid")
        event = store.write_event(
            customer,
            points=points or 0,
            credits=credits or Decimal(0),
            source=source,
            title=rule["title"] if rule else None,
            internal_note=_text(fields.get("internal_note")),
            external_note=_text(fields.get("external_note")),
            applied_at=applied_at,
            custom_action_name=action,
            earning_rule_id=rule["id"] if rule else None,
            may_overdraw=store.shapes.overdraft == "allowed",
        )
        if store.shapes.create == "empty":
            return Response(status=201)
        owner = store.customer_by_id(customer["id"]) if store.shapes.create == "with_customer" else None
        return answer(
            {
                "data": rivo_shapes.points_event(
                    event, shop_id=store.shop_id, customer_record=owner, shapes=store.shapes
                )
            },
            201,
        )

    # -- redemptions ---------------------------------------------------------------------------------------

    @blueprint.get("/points_redemptions")
    def list_redemptions() -> Response:
        store: RivoStore = g.store
        rows = store.redemptions()
        identifier = request.args.get("filters[customer_identifier]")
        if identifier is not None:
            customer = store.identify(identifier)
            rows = [row for row in rows if customer is not None and row["customer_id"] == customer["id"]]
        used = request.args.get("filters[used]")
        if used in ("true", "false"):
            rows = [row for row in rows if (row["used_at"] is not None) == (used == "true")]
        return _listing(runtime, rows, _redemption, orders=("id", "applied_at"))

    @blueprint.post("/points_redemptions")
    def create_redemption() -> Response:
        fields = _fields()
        reward_id = _points(_required(fields, "reward_id"), name="reward_id")
        points = _points(fields.get("points_amount"))
        credits = _credits(fields.get("credits_amount"))
        customer = _changeable(_required(fields, "customer_identifier"))
        reward = g.store.reward(reward_id)
        if reward is None:
            raise Refused("Reward not found", status=404)
        made = g.store.redeem(customer, reward, points=points, credits=credits)
        return answer({"data": _redemption(made)}, 201)

    return blueprint


class _NoCustomer(Exception):
    """The customer who is meant does not exist."""


def answer(body: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json.dumps(body), status=status, mimetype="application/json")


def _shapes() -> RivoShapes:
    store: RivoStore | None = g.get("store")
    return RivoShapes() if store is None else store.shapes


def _identified(identifier: str) -> Record:
    store: RivoStore = g.store
    customer = store.identify(identifier)
    if customer is None:
        raise _NoCustomer
    return customer


def _changeable(identifier: str) -> Record:
    customer = _identified(identifier)
    if customer["loyalty_status"] == "excluded":
        raise Refused("This customer is excluded from the loyalty program.")
    return customer


def _customer(record: Record) -> Record:
    return rivo_shapes.resource("customer", record["id"], rivo_shapes.customer(record, _shapes()))


def _plain(kind: str) -> Callable[[Record], Record]:
    return lambda record: rivo_shapes.resource(kind, record["id"], record)


def _redemption(record: Record) -> Record:
    store: RivoStore = g.store
    customer = store.customer_by_id(record["customer_id"])
    return rivo_shapes.redemption(record, customer_record=customer, shapes=store.shapes)


def _rule(store: RivoStore, source: str, action: str | None) -> Record | None:
    """The earning rule that a points event refers to; a custom action or an address must be known exactly."""
    if source == "manual":
        return None
    rules = [rule for rule in store.earning_rules() if rule["trigger"] == source]
    if source not in ("custom_action", "visit_url"):
        return rules[0] if rules else None
    if action is None:
        raise Refused("custom_action_name is missing")
    name = "url" if source == "visit_url" else "custom_action_name"
    rule = next((rule for rule in rules if rule[name] == action), None)
    if rule is None:
        raise Refused("custom_action_name does not match an earning rule")
    return rule


# -- parameters --------------------------------------------------------------------------------------------


def _fields() -> Record:
    """The body, as a form or as JSON."""
    if not request.is_json:
        return request.form.to_dict()
    try:
        body = json.loads(request.get_data())
    except ValueError as error:
        raise Refused("The body is not valid JSON.", status=400) from error
    if not isinstance(body, dict):
        raise Refused("The body is not a JSON object.", status=400)
    return body


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _required(fields: Record, name: str) -> str:
    value = _text(fields.get(name))
    if value is None:
        raise Refused(f"{name} is missing")
    return value


def _points(value: Any, *, name: str = "points_amount") -> int | None:
    try:
        return read_points(value)
    except ValueError as error:
        raise Refused(f"{name} is invalid") from error


def _credits(value: Any) -> Decimal | None:
    try:
        return read_credits(value)
    except ValueError as error:
        raise Refused("credits_amount is invalid") from error


def read_points(value: Any) -> int | None:
    """A whole number of 32 bits, or None when there is none. Raises ValueError for anything else."""
    if (text := _text(value)) is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?[0-9]{1,10}", text) or abs(int(text)) > MOST:
        raise ValueError("This is no whole number of 32 bits.")
    return int(text)


def read_credits(value: Any) -> Decimal | None:
    """An amount of money, or None when there is none. Raises ValueError for anything else."""
    if (text := _text(value)) is None:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("nan")
    if isinstance(value, bool) or not amount.is_finite() or abs(amount) > MOST:
        raise ValueError("This is no amount of money.")
    return amount


def _number(name: str, *, least: int, most: int | None, default: int) -> int:
    given = request.args.get(f"pagination[{name}]")
    if given is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", given) or int(given) < least:
        raise Refused(f"pagination[{name}] is invalid")
    return int(given) if most is None else min(int(given), most)


def _listing(
    runtime: Runtime,
    rows: Sequence[Record],
    show: Callable[[Record], Record],
    *,
    orders: tuple[str, ...] = ("id",),
    newest_first: bool = False,
) -> Response:
    """One page, in either mode: https://developer-docs.rivo.io/reference/pagination

    More rows than 250 are cut to 250, an unknown order is by id, and a page after 500 is refused (UNKNOWN, each).
    """
    given = {name for name in ("page", "per_page", "since_id", "limit") if f"pagination[{name}]" in request.args}
    shapes = _shapes()
    links: Record = {"self": _link(runtime)}
    if given & {"since_id", "limit"} and not given & {"page", "per_page"}:
        since_id = _number("since_id", least=0, most=None, default=0)
        limit = _number("limit", least=1, most=MOST_ROWS, default=PAGE_ROWS)
        after = sorted((row for row in rows if row["id"] > since_id), key=lambda row: int(row["id"]))
        shown = after[:limit]
        if shapes.cursor_links == "newer":
            links = {"since_id": since_id, "limit": limit}
            links["next_since_id"] = shown[-1]["id"] if len(after) > limit else None
    else:
        page = _number("page", least=1, most=None, default=1)
        if page > MOST_PAGES:
            raise Refused("pagination[page] is invalid")
        per_page = _number("per_page", least=1, most=MOST_ROWS, default=PAGE_ROWS)
        order = request.args.get("sort[order_type]")
        by = order if order in orders else "id"
        default = "desc" if newest_first else "asc"
        descending = request.args.get("sort[order_direction]", default) == "desc"
        ordered = sorted(rows, key=lambda row: (row[by], row["id"]), reverse=descending)
        shown = ordered[(page - 1) * per_page : page * per_page]
        last = max(1, -(-len(ordered) // per_page))
        links["next"] = _link(runtime, page=page + 1) if page < last else None
        links["last"] = _link(runtime, page=last)
    if shapes.no_more == "missing":
        links = {name: link for name, link in links.items() if link is not None}
    return answer({"links": links, "data": [show(row) for row in shown]})


def _link(runtime: Runtime, *, page: int | None = None) -> str:
    arguments = {name: value for name, value in request.args.items() if page is None or name != "pagination[page]"}
    if page is not None:
        arguments["pagination[page]"] = str(page)
    query = f"?{urlencode(arguments)}" if arguments else ""
    return f"{runtime.url}{request.path}{query}"

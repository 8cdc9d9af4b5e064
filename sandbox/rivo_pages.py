"""The pages of the sandbox's Rivo: what a merchant's admin has there, one page for each store, without signing in."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import urlsplit

from flask import Blueprint, abort, g, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from sandbox.pages import HEADERS, from_own_page
from sandbox.records import Record
from sandbox.rivo import ALL_TOPICS
from sandbox.rivo_api import read_credits, read_points
from sandbox.rivo_webhooks import Scheme
from sandbox.runtime import Runtime

Refusal = tuple[str, int]

EVENTS = 30
CUSTOMERS = 200
TOPICS = (
    "points_event/created",
    "points_redemption/created",
    "loyalty_profile/updated",
    "customer_vip_tier/upgraded",
    "customer_vip_tier/downgraded",
    "membership/pending_cancellation",
)


def create_rivo_pages(runtime: Runtime) -> Blueprint:
    """The pages below /rivo: the blueprint `rivo_pages`."""
    pages = Blueprint("rivo_pages", __name__, url_prefix="/rivo", template_folder="templates")

    @pages.before_request
    def admit() -> None:
        if request.method == "POST" and not from_own_page():
            abort(403, "This form was not sent from a page of this sandbox. Open the page and repeat it.")
        if request.view_args and "store" in request.view_args:
            g.store = runtime.rivo_stores.get(request.view_args.pop("store"))
            if g.store is None:
                abort(404, "There is no such store here.")

    @pages.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @pages.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Refusal:
        return render_template("error.html", error=error, account=None, user=None), error.code or 500

    @pages.get("/")
    def stores() -> str:
        return render_template("rivo_stores.html", stores=list(runtime.rivo_stores.values()), account=None)

    @pages.get("/<store>")
    def admin() -> str:
        return _admin(runtime)

    @pages.post("/<store>/key")
    def regenerate() -> Response:
        g.store.regenerate_key()
        return _back("keys")

    @pages.post("/<store>/plan")
    def plan() -> Response:
        g.store.lapse(request.form.get("api") == "off")
        return _back("keys")

    @pages.post("/<store>/adjust")
    def adjust() -> Response | Refusal:
        form = {name: request.form.get(name, "").strip() for name in ("email", "points", "credits", "reason")}
        customer = g.store.customer(form["email"])
        points, credits, problem = 0, Decimal(0), ""
        try:
            points = read_points(form["points"]) or 0
            credits = read_credits(form["credits"]) or Decimal(0)
        except ValueError:
            problem = "Enter points as a whole number and store credit as an amount of money, such as -10 or 2.50."
        if not problem and customer is None:
            problem = "No customer of this store has this e-mail address."
        elif not problem and customer["loyalty_status"] == "excluded":
            problem = "This customer is excluded, so their balance cannot be changed."
        elif not problem and not points and not credits:
            problem = "Enter how many points, or how much store credit, to add or, with a minus, to take."
        if problem:
            return _admin(runtime, problem=problem, form=form), 400
        # Rivo's own admin was seen to write who did it before the reason.
        g.store.add_event(
            form["email"],
            points=points,
            credits=credits,
            source="manual",
            internal_note=f"admin@{g.store.name}.example: {form['reason']}",
        )
        return _back("events")

    @pages.post("/<store>/webhooks")
    def subscribe() -> Response | Refusal:
        form = {name: request.form.get(name, "").strip() for name in ("topic", "url", "secret", "scheme")}
        address = urlsplit(form["url"])
        if address.scheme not in ("http", "https") or not address.netloc or not form["secret"]:
            sentence = "Enter the address that takes the webhooks, with http:// or https://, and a secret."
            return _admin(runtime, webhook_problem=sentence, webhook_form=form), 400
        scheme = form["scheme"] if form["scheme"] in list(Scheme) else Scheme.STANDARD
        topics = (form["topic"],) if form["topic"] in TOPICS else None
        g.store.subscribe(form["url"], secret=form["secret"], scheme=scheme, topics=topics)
        return _back("webhooks")

    @pages.post("/<store>/webhooks/delete")
    def unsubscribe() -> Response:
        g.store.unsubscribe(request.form.get("topic", ""))
        return _back("webhooks")

    return pages


def _back(part: str) -> Response:
    return redirect(url_for("rivo_pages.admin", store=g.store.name, _anchor=part), 303)


def _admin(
    runtime: Runtime,
    *,
    problem: str = "",
    form: Record | None = None,
    webhook_problem: str = "",
    webhook_form: Record | None = None,
) -> str:
    search = request.args.get("q", "").strip()
    words = search.lower().split()
    found = [
        customer
        for customer in g.store.customers()
        if all(word in f"{_name(customer)} {customer['email']}".lower() for word in words)
    ]
    return render_template(
        "rivo_store.html",
        account=None,
        store=g.store,
        stores=list(runtime.rivo_stores.values()),
        base_url=g.store.url,
        customers=[(_name(customer), customer) for customer in found[:CUSTOMERS]],
        more=len(found) > CUSTOMERS,
        search=search,
        events=g.store.events()[: -EVENTS - 1 : -1],
        deliveries=g.store.deliveries()[:-11:-1],
        topics=TOPICS,
        all_topics=ALL_TOPICS,
        schemes=[scheme.value for scheme in Scheme],
        problem=problem,
        form=form or {},
        webhook_problem=webhook_problem,
        webhook_form=webhook_form or {},
    )


def _name(customer: Record) -> str:
    return " ".join(filter(None, (customer["first_name"], customer["last_name"]))) or customer["email"] or "No name"

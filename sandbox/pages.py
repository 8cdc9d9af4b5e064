"""The helpdesk's own pages: tickets, customers, the sidebar with the integrations' cards, settings.

They show what the stand-in knows and press its buttons; the state and everything that is sent out belong to
the runtime handed to `create_pages`. Every page works without a script; `static/helpdesk.js` only spares the
reload: it polls the sidebar and the conversation, opens the dialog of a button in place and inserts a macro
at the cursor.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode, urlsplit

from flask import (
    Blueprint,
    abort,
    current_app,
    g,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from markupsafe import Markup
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from sandbox import variables, widgets
from sandbox.deliveries import ActionResult
from sandbox.runtime import Runtime
from sandbox.state import timestamp

Json = dict[str, Any]

ROWS = 200
"""How many tickets or customers a list shows at most; the search finds the others."""

# Nothing from elsewhere runs or frames these pages; a picture is the one thing a card may bring from outside.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: http: https:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: that would turn the Origin of our own forms into "null".
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Outcome:
    """What an agent reads after a button ran."""

    label: str
    succeeded: bool
    verdict: str
    message: str


@dataclass(frozen=True)
class SidebarWidget:
    """A widget of the sidebar with the cards it shows; `title` stands in for a card without one."""

    id: int
    title: str
    cards: tuple[widgets.Card, ...]


@dataclass(frozen=True)
class Subject:
    """Who the sidebar is about: a ticket and its customer, or a customer alone (`kind` as of widgets)."""

    kind: str
    id: int
    ticket: Json | None
    customer: Json

    @property
    def ticket_id(self) -> int | None:
        return self.id if self.ticket else None


def create_pages(runtime: Runtime) -> Blueprint:
    """The pages of every account of `runtime`: the blueprint `pages`, its static files under `/assets`."""
    pages = Blueprint("pages", __name__, template_folder="templates", static_folder="static", static_url_path="/assets")
    outcomes = _Outcomes()

    @pages.url_value_preprocessor
    def take_account(_endpoint: str | None, values: Json | None) -> None:
        g.account = (values or {}).pop("account", None)

    @pages.url_defaults
    def put_account(endpoint: str, values: Json) -> None:
        if current_app.url_map.is_endpoint_expecting(endpoint, "account"):
            values.setdefault("account", g.get("account"))

    @pages.before_request
    def admit() -> Response | None:
        if g.account is None:  # a static file
            return None
        helpdesk = runtime.helpdesk(g.account)
        if helpdesk is None:
            abort(404, "There is no such helpdesk here.")
        g.helpdesk, g.user = helpdesk, runtime.current_user(g.account)
        if g.user is None:
            back = request.full_path.rstrip("?") if request.method == "GET" else url_for("pages.home")
            return redirect(f"/{g.account}/sign-in?" + urlencode({"next": back}), 303)
        if request.method == "POST" and not from_own_page():
            abort(403, "This form was not sent from a page of this helpdesk. Open the page and repeat it.")
        return None

    @pages.after_request
    def protect(response: Response) -> Response:
        if request.endpoint != "pages.static":
            response.headers.update(HEADERS)
        return response

    @pages.context_processor
    def frame() -> Json:
        return {
            "account": g.get("account"),
            "user": g.get("user"),
            "app_name": runtime.app_name,
        }

    @pages.app_template_filter("field_runs")
    def field_runs(items: Sequence[Any]) -> list[tuple[bool, list[Any]]]:
        """Neighbouring fields together: they make one definition list."""
        runs = itertools.groupby(items, key=lambda item: isinstance(item, widgets.Field))
        return [(is_fields, list(run)) for is_fields, run in runs]

    @pages.app_template_filter("when")
    def when(value: Any) -> Markup:
        text = variables.format_time(value, "MMM D, LT")
        return Markup('<time datetime="{}">{}</time>').format(variables.as_text(value), text)

    @pages.app_template_filter("initials")
    def initials(name: str | None) -> str:
        return "".join(word[0] for word in (name or "?").split()[:2]).upper()

    @pages.app_template_filter("plain")
    def plain(message: Mapping[str, Any]) -> str:
        """A message as text: markup that came over the API is never shown as markup."""
        return message.get("body_text") or text_of_html(message.get("body_html") or "")

    # Tickets

    @pages.get("/<account>/app/")
    def home() -> Response:
        return redirect(url_for("pages.tickets"), 303)

    @pages.get("/<account>/app/tickets")
    def tickets() -> str:
        search = request.args.get("q", "").strip()
        found = [ticket for ticket in g.helpdesk.tickets() if _matches(ticket["customer"], search)]
        found.sort(key=lambda ticket: (ticket["updated_datetime"], ticket["id"]), reverse=True)
        return render_template("tickets.html", tickets=found[:ROWS], more=len(found) > ROWS, search=search)

    @pages.route("/<account>/app/tickets/new", methods=["GET", "POST"])
    def new_ticket() -> str | Response | tuple[str, int]:
        customers = g.helpdesk.customers()
        form = {key: request.values.get(key, "").strip() for key in ("email", "name", "subject", "text")}
        if request.method == "GET":
            return render_template("new_ticket.html", customers=customers, form=form, problem="")
        customer = _by_email(customers, form["email"])
        if customer is None and not (form["email"] or form["name"]):
            problem = "Enter the customer's e-mail address, or a name for a customer who has none."
            return render_template("new_ticket.html", customers=customers, form=form, problem=problem), 400
        if customer is None:
            customer = g.helpdesk.create_customer(form["name"] or form["email"], form["email"] or None)
        ticket = g.helpdesk.create_ticket(customer["id"], form["subject"] or "No subject", form["text"] or "(no text)")
        return redirect(url_for("pages.ticket", id_=ticket["id"]), 303)

    @pages.get("/<account>/app/ticket/<int:id_>")
    def ticket(id_: int) -> str:
        runtime.view_ticket(g.account, id_)
        return ticket_page(subject_of("ticket", id_), draft="")

    @pages.get("/<account>/app/ticket/<int:id_>/conversation")
    def conversation(id_: int) -> Response:
        return _fragment(conversation_fragment(subject_of("ticket", id_)))

    @pages.get("/<account>/app/ticket/<int:id_>/macro")
    def macro(id_: int) -> Response:
        """One macro's text with this ticket's values, for the script."""
        subject = subject_of("ticket", id_)
        response = make_response(macro_text(subject, request.args.get("macro_id", "")))
        response.content_type = "text/plain; charset=utf-8"
        return response

    @pages.post("/<account>/app/ticket/<int:id_>/reply")
    def reply(id_: int) -> str | Response:
        subject = subject_of("ticket", id_)
        text = request.form.get("text", "")
        if request.form.get("do") == "insert":
            inserted = macro_text(subject, request.form.get("macro_id", ""))
            return ticket_page(subject, draft="\n".join(filter(None, (text.strip(), inserted))))
        if text.strip():
            text = text.replace("\r\n", "\n").strip()
            # Only a stand-in can write in the customer's name: it is how new ticket activity is tried out.
            write_as = request.form.get("write_as")
            g.helpdesk.add_message(
                id_,
                text,
                html=html.escape(text).replace("\n", "<br>"),
                channel="internal-note" if write_as == "note" else g.helpdesk.ticket(id_)["channel"],
                from_agent=write_as != "customer",
                sender_id=None if write_as == "customer" else g.user["id"],
            )
        return redirect(url_for("pages.ticket", id_=id_), 303)

    @pages.post("/<account>/app/ticket/<int:id_>/status")
    def status(id_: int) -> Response:
        wanted = "closed" if request.form.get("to") == "closed" else "open"
        g.helpdesk.update_ticket(id_, status=wanted, user_id=g.user["id"])
        return redirect(url_for("pages.ticket", id_=id_), 303)

    # Customers

    @pages.get("/<account>/app/customers")
    def customers() -> str:
        search = request.args.get("q", "").strip()
        found = [customer for customer in g.helpdesk.customers() if _matches(customer, search)]
        return render_template("customers.html", customers=found[:ROWS], more=len(found) > ROWS, search=search)

    @pages.route("/<account>/app/customers/new", methods=["GET", "POST"])
    def new_customer() -> str | Response | tuple[str, int]:
        form = {key: request.form.get(key, "").strip() for key in ("name", "email", "extra_emails")}
        if request.method == "GET":
            return render_template("new_customer.html", form=form, problem="")
        extra = [address for address in form["extra_emails"].replace(",", " ").split() if address]
        taken = next((a for a in (form["email"], *extra) if _by_email(g.helpdesk.customers(), a) is not None), None)
        problem = f"{taken} belongs to another customer." if taken else ""
        problem = problem if form["name"] else "Enter a name."
        if problem:
            return render_template("new_customer.html", form=form, problem=problem), 400
        customer = g.helpdesk.create_customer(form["name"], form["email"] or None, extra)
        return redirect(url_for("pages.customer", id_=customer["id"]), 303)

    @pages.get("/<account>/app/customer/<int:id_>")
    def customer(id_: int) -> str:
        subject = subject_of("customer", id_)
        own = [ticket for ticket in g.helpdesk.tickets() if ticket["customer"]["id"] == id_]
        return render_template(
            "customer.html",
            subject=subject,
            customer=subject.customer,
            tickets=own,
            sidebar=_live(sidebar_fragment(subject)),
            outcome=outcomes.take(outcome_key(subject)),
        )

    @pages.post("/<account>/app/customer/<int:id_>/email")
    def customer_email(id_: int) -> Response:
        email = request.form.get("email", "").strip()
        owner = _by_email(g.helpdesk.customers(), email)
        if owner is not None and owner["id"] != id_:
            abort(409, f"{email} belongs to another customer. Go back and enter another address.")
        g.helpdesk.set_customer_email(id_, email or None)
        return redirect(url_for("pages.customer", id_=id_), 303)

    # The sidebar, of both

    @pages.get("/<account>/app/<any(ticket, customer):kind>/<int:id_>/sidebar")
    def sidebar(kind: str, id_: int) -> Response:
        return _fragment(sidebar_fragment(subject_of(kind, id_)))

    @pages.route(
        "/<account>/app/<any(ticket, customer):kind>/<int:id_>/widgets/<int:widget_id>/buttons/<button_id>",
        methods=["GET", "POST"],
    )
    def button(kind: str, id_: int, widget_id: int, button_id: str) -> str | Response:
        subject = subject_of(kind, id_)
        shown = {widget.id: widget for widget in sidebar_widgets(subject)}
        if widget_id not in shown:
            abort(404, "This card is no longer in the sidebar. Open the page again.")
        pressed = next((b for b in widgets.buttons(shown[widget_id].cards) if b.id == button_id), None)
        if pressed is None:
            abort(404, "This button is no longer on the card. Open the page again.")
        if request.method == "GET":
            return render_template("button.html", subject=subject, widget=shown[widget_id], button=pressed)
        result = runtime.run_action(
            g.helpdesk,
            pressed.action,
            fields={field.key: _entered(field) for field in pressed.inputs},
            ticket_id=subject.ticket_id,
            customer_id=subject.customer["id"],
            user_id=g.user["id"],
        )
        outcome = read_outcome(pressed.label, result)
        if request.headers.get("X-Requested-With") == "fetch":
            return render_template("_outcome.html", outcome=outcome)
        outcomes.keep(outcome_key(subject), outcome)
        return redirect(url_for(f"pages.{kind}", id_=id_), 303)

    # Settings

    @pages.get("/<account>/app/settings/integrations")
    def integrations() -> str:
        rows = [
            (integration, g.helpdesk.failures(integration["id"]), runtime.delivery_log(integration["id"]))
            for integration in g.helpdesk.integrations()
        ]
        return render_template("integrations.html", rows=rows, widgets=g.helpdesk.widgets())

    @pages.post("/<account>/app/settings/integrations/<int:id_>/<any(enable, disable):change>")
    def switch_integration(id_: int, change: str) -> Response:
        require_admin()
        integration = g.helpdesk.integration(id_)
        off_since = None if change == "enable" else timestamp(runtime.now())
        g.helpdesk.keep_object("integrations", {**integration, "deactivated_datetime": off_since}, key=id_)
        return redirect(url_for("pages.integrations"), 303)

    @pages.post("/<account>/app/settings/<any(integrations, widgets, macros):kind>/<int:id_>/delete")
    def delete(kind: str, id_: int) -> Response:
        require_admin()
        g.helpdesk.delete_object(kind, id_)
        return redirect(url_for("pages.macros" if kind == "macros" else "pages.integrations"), 303)

    @pages.get("/<account>/app/settings/macros")
    def macros() -> str:
        return render_template("macros.html", macros=[(m, _macro_source(m)) for m in g.helpdesk.macros()])

    @pages.get("/<account>/app/apps")
    def apps() -> str:
        return render_template(
            "apps.html", app_url=runtime.app_url_for(g.account), installations=g.helpdesk.installations()
        )

    @pages.post("/<account>/app/apps/uninstall")
    def uninstall() -> Response:
        require_admin()
        g.helpdesk.uninstall()
        return redirect(url_for("pages.apps"), 303)

    @pages.get("/<account>/app/notices")
    def notices() -> str:
        return render_template("notices.html", notices=list(reversed(runtime.notices(g.account))))

    @pages.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[str, int]:
        return render_template("error.html", error=error), error.code or 500

    # Parts that several pages share

    def require_admin() -> None:
        if g.user["role"]["name"] != "admin":
            abort(403, "Only an admin of this helpdesk may change its settings.")

    def subject_of(kind: str, id_: int) -> Subject:
        if kind == "customer":
            return Subject(kind, id_, None, g.helpdesk.customer(id_))
        ticket = g.helpdesk.ticket(id_)
        return Subject(kind, id_, ticket, ticket["customer"])

    def context_of(subject: Subject) -> Json:
        """What `{{...}}` means, the same for macros, titles and links as for a button's request."""
        return {"ticket": subject.ticket, "customer": subject.customer, "current_user": g.user}

    def sidebar_widgets(subject: Subject) -> list[SidebarWidget]:
        """The widgets that show something. Only HTTP integrations have data here: for the other types
        Gorgias documents no source that an app can write."""
        names = {integration["id"]: integration["name"] for integration in g.helpdesk.integrations()}
        data = subject.customer["integrations"]
        context = context_of(subject)
        shown = []
        for widget in g.helpdesk.widgets(subject.kind):
            integration_id = widget.get("integration_id")
            if widget.get("type") != "http" or widget.get("deactivated_datetime") is not None:
                continue
            cards = widgets.build(widget["template"], data.get(str(integration_id)), context=context)
            if cards:
                shown.append(SidebarWidget(widget["id"], names.get(integration_id, ""), cards))
        return shown

    def sidebar_fragment(subject: Subject) -> str:
        return render_template("_sidebar.html", subject=subject, shown=sidebar_widgets(subject))

    def conversation_fragment(subject: Subject) -> str:
        entries = [("message", message) for message in g.helpdesk.messages(subject.id)]
        entries += [("event", event) for event in runtime.events(subject.id)]
        entries.sort(key=lambda entry: (entry[1]["created_datetime"], entry[1]["id"]))
        names = {user["id"]: user["name"] for user in g.helpdesk.users()}
        return render_template("_conversation.html", subject=subject, entries=entries, names=names)

    def ticket_page(subject: Subject, *, draft: str) -> str:
        return render_template(
            "ticket.html",
            subject=subject,
            ticket=subject.ticket,
            customer=subject.customer,
            macros=g.helpdesk.macros(),
            draft=draft,
            writing_as=request.form.get("write_as", "reply"),
            macro_id=request.form.get("macro_id", ""),
            conversation=_live(conversation_fragment(subject)),
            sidebar=_live(sidebar_fragment(subject)),
            outcome=outcomes.take(outcome_key(subject)),
        )

    def macro_text(subject: Subject, macro_id: str) -> str:
        macro = next((m for m in g.helpdesk.macros() if str(m["id"]) == macro_id), None)
        return render_macro(macro, context_of(subject)) if macro else ""

    def outcome_key(subject: Subject) -> tuple[Any, ...]:
        return (g.account, g.user["id"], subject.kind, subject.id)

    return pages


class _Outcomes:
    """What a button's run came to, kept until the page it belongs to is shown again (without a script)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Outcome] = {}
        self._lock = threading.Lock()

    def keep(self, key: tuple[Any, ...], outcome: Outcome) -> None:
        with self._lock:
            self._kept[key] = outcome

    def take(self, key: tuple[Any, ...]) -> Outcome | None:
        with self._lock:
            return self._kept.pop(key, None)


def read_outcome(label: str, result: ActionResult) -> Outcome:
    """What to tell the agent (UNKNOWN): any 2xx is a success, and the `message` of a JSON object is shown."""
    try:
        answer = json.loads(result.body)
    except ValueError:
        answer = None
    message = answer.get("message") if isinstance(answer, Mapping) else None
    message = message if isinstance(message, str) else ""
    if result.status is None:
        return Outcome(label, False, "Failed", message or result.error or "There was no answer.")
    if 200 <= result.status < 300:
        return Outcome(label, True, "Executed", message)
    return Outcome(label, False, f"Failed with status {result.status}", message or result.error or "")


def render_macro(macro: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """The text a macro puts into a reply, from its `setResponseText` actions; blank where data is missing."""
    texts = []
    for arguments in _response_texts(macro):
        if arguments.get("body_text"):
            texts.append(variables.render(str(arguments["body_text"]), context))
        else:
            texts.append(text_of_html(variables.render_html(str(arguments.get("body_html") or ""), context)))
    return "\n".join(texts)


def text_of_html(markup: str) -> str:
    """The text of some HTML, a line for each block and `<br>`."""
    reader = _TextReader()
    reader.feed(markup)
    reader.close()
    return "".join(reader.parts).strip()


class _TextReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._hidden += 1
        elif tag == "br":
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._hidden = max(0, self._hidden - 1)
        elif tag in ("p", "div", "li", "tr", "h1", "h2", "h3"):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _response_texts(macro: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The arguments of the macro's text actions; `setResponseText` is from third-party code."""
    return [
        action["arguments"]
        for action in macro.get("actions") or ()
        if action.get("name") == "setResponseText" and isinstance(action.get("arguments"), Mapping)
    ]


def _macro_source(macro: Mapping[str, Any]) -> str:
    return "\n".join(
        str(arguments.get("body_text") or text_of_html(str(arguments.get("body_html") or "")))
        for arguments in _response_texts(macro)
    )


def _entered(field: widgets.Input) -> str:
    if field.kind is widgets.InputKind.BOOLEAN:
        return "true" if field.key in request.form else "false"
    return request.form.get(field.key, "").replace("\r\n", "\n")


def _emails(customer: Mapping[str, Any]) -> list[str]:
    channels = [c for c in customer.get("channels") or () if c.get("type") == "email" and c.get("address")]
    return list(dict.fromkeys([*filter(None, [customer.get("email")]), *(c["address"] for c in channels)]))


def _by_email(customers: Sequence[Json], email: str) -> Json | None:
    wanted = email.strip().lower()
    return next((c for c in customers if wanted and wanted in map(str.lower, _emails(c))), None)


def _matches(customer: Mapping[str, Any], search: str) -> bool:
    haystack = " ".join([customer.get("name") or "", *_emails(customer)])
    return all(word in haystack.lower() for word in search.lower().split())


def from_own_page() -> bool:
    """Whether a browser says that this POST comes from our own pages.

    Browsers name the origin of every POST, so a forged form gives itself away; a client that names none does
    not hold anybody's cookie by accident.
    """
    origin = request.headers.get("Origin")
    if origin is not None:
        parts = urlsplit(origin)
        return (parts.scheme, parts.netloc) == (request.scheme, request.host)
    return request.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")


@dataclass(frozen=True)
class LivePart:
    """A part of a page that the script keeps fresh, with the tag that tells whether there is anything new."""

    html: Markup
    etag: str


def _live(fragment: str) -> LivePart:
    return LivePart(Markup(fragment), f'"{hashlib.sha256(fragment.encode()).hexdigest()[:20]}"')  # noqa: S704


def _fragment(fragment: str) -> Response:
    """A live part alone; 304 when the script already has it."""
    response = make_response(fragment)
    response.headers["ETag"] = _live(fragment).etag
    return response.make_conditional(request)

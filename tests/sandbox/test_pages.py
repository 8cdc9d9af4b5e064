"""The helpdesk's pages over real sockets, with a small app behind the integration and its buttons."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import pytest
import requests

from sandbox.deliveries import ActionResult
from sandbox.pages import read_outcome, render_macro, text_of_html
from sandbox.server import Sandbox
from sandbox.state import Helpdesk

FORM = "application/x-www-form-urlencoded"


class App:
    """The counterpart: answers lookups with `card`, buttons with `answer`, and keeps what it was sent."""

    def __init__(self) -> None:
        self.card: dict[str, Any] = {"points": 100, "tier": "<b>Gold</b>"}
        self.answer: tuple[int, Any] = (200, {"message": "Added <50> points."})
        self.posted: list[dict[str, str]] = []
        app = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(200, app.card)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                app.posted.append(dict(parse_qsl(body, keep_blank_values=True)))
                self._reply(*app.answer)

            def _reply(self, status: int, answer: Any) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Browser:
    """A person at the pages of account acme."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.origin = sandbox.url
        self.base = f"{sandbox.url}/acme/app"
        self.session = requests.Session()
        self.session.trust_env = False

    def sign_in(self, user: dict[str, Any]) -> None:
        form = {"user_id": str(user["id"]), "next": "/acme/app/tickets"}
        answer = self.session.post(f"{self.origin}/acme/sign-in", data=form, timeout=10)
        assert answer.url == f"{self.base}/tickets"

    def get(self, path: str, *, status: int = 200, **more: Any) -> str:
        answer = self.session.get(self.base + path, timeout=10, **more)
        assert answer.status_code == status, answer.text
        return answer.text

    def post(self, path: str, *, status: int = 200, **form: str) -> str:
        headers = {"Origin": self.origin}
        answer = self.session.post(self.base + path, data=form, headers=headers, timeout=10)
        assert answer.status_code == status, answer.text
        return answer.text


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    yield app
    app.stop()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def helpdesk(sandbox: Sandbox) -> Helpdesk:
    helpdesk = sandbox.runtime.helpdesk("acme")
    assert helpdesk is not None
    return helpdesk


@pytest.fixture
def integration(helpdesk: Helpdesk, app: App) -> dict[str, Any]:
    http = {
        "url": app.url + "/card?email={{ticket.customer.email}}",
        "method": "GET",
        "headers": {"X-Api-Key": "top-secret"},
        "form": None,
        "request_content_type": "application/json",
        "response_content_type": "application/json",
        "triggers": {"ticket-created": True, "ticket-updated": True, "ticket-message-created": True},
    }
    fields = {
        "name": "Loyalty",
        "type": "http",
        "description": None,
        "user": None,
        "deactivated_datetime": None,
    }
    integration = helpdesk.keep_object("integrations", {**fields, "http": http})
    entries: list[dict[str, Any]] = [
        {"key": "ticket_id", "value": "{{ticket.id}}"},
        {
            "key": "points",
            "value": "",
            "label": "Points",
            "type": "number",
            "editable": True,
            "mandatory": True,
        },
        {"key": "quiet", "value": "", "label": "No mail", "type": "boolean", "editable": True},
    ]

    def action(*form: dict[str, Any]) -> dict[str, Any]:
        return {"method": "POST", "url": app.url, "body": {"contentType": FORM, FORM: list(form)}}

    buttons = [
        {"label": "Add Earnings", "action": action(*entries)},
        {"label": "Add 50 points", "action": action({"key": "points", "value": "50"})},
    ]
    nodes = [{"type": "text", "path": path, "title": path.title()} for path in ("points", "tier")]
    card = {
        "type": "card",
        "path": "",
        "title": "Loyalty",
        "meta": {"custom": {"buttons": buttons}},
        "widgets": nodes,
    }
    widget = {
        "type": "http",
        "integration_id": integration["id"],
        "app_id": None,
        "order": 0,
        "deactivated_datetime": None,
        "template": {"type": "wrapper", "widgets": [card]},
    }
    for context in ("ticket", "customer"):
        helpdesk.keep_object("widgets", {**widget, "context": context})
    return integration


@pytest.fixture
def customer(helpdesk: Helpdesk) -> dict[str, Any]:
    return helpdesk.create_customer("Ines Duarte", "ines@example.com", ["ines@work.example"])


@pytest.fixture
def ticket(helpdesk: Helpdesk, customer: dict[str, Any]) -> dict[str, Any]:
    return helpdesk.create_ticket(customer["id"], "My <points>", "Hello <script>alert(1)</script>")


@pytest.fixture
def browser(sandbox: Sandbox, helpdesk: Helpdesk) -> Iterator[Browser]:
    browser = Browser(sandbox)
    browser.sign_in(helpdesk.users()[0])
    yield browser
    browser.session.close()


def field(page: str, path: str) -> str:
    found = re.search(rf'<div class="field" data-path="{path}">\s*<dt>.*?</dt>\s*<dd>(.*?)</dd>', page, re.DOTALL)
    assert found, page
    return unescape(found[1])


def button_address(page: str, label: str) -> str:
    found = re.search(rf'action="/acme/app(/[^"]*)"[^>]*><button id="[^"]*">{label}</button>', page)
    assert found, page
    return found[1]


def outcome(page: str) -> str:
    found = re.search(r'<div id="outcome" role="status">(.*?)</div>', page, re.DOTALL)
    assert found, page
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", found[1]).split()))


# Who may come in


def test_whoever_is_not_signed_in_is_sent_to_the_sign_in_and_back(sandbox: Sandbox) -> None:
    answer = requests.get(f"{sandbox.url}/acme/app/tickets?q=a%20b", allow_redirects=False, timeout=10)
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/acme/sign-in?next=%2Facme%2Fapp%2Ftickets%3Fq%3Da%2520b"


def test_an_account_that_does_not_exist_is_not_found(browser: Browser) -> None:
    assert browser.session.get(f"{browser.origin}/nobody/app/tickets", timeout=10).status_code == 404


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_a_form_sent_from_another_site_is_refused(
    browser: Browser, helpdesk: Helpdesk, ticket: dict[str, Any], headers: dict[str, str]
) -> None:
    address = f"{browser.base}/ticket/{ticket['id']}/reply"
    answer = browser.session.post(address, data={"text": "x"}, headers=headers, timeout=10)
    assert answer.status_code == 403
    assert "was not sent from a page of this helpdesk" in answer.text
    assert len(helpdesk.messages(ticket["id"])) == 1


def test_pages_let_nothing_from_elsewhere_run(browser: Browser) -> None:
    headers = browser.session.get(f"{browser.base}/tickets", timeout=10).headers
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_every_page_has_a_heading_and_none_carries_script_or_style_of_its_own(
    browser: Browser, integration: dict[str, Any], ticket: dict[str, Any], customer: dict[str, Any]
) -> None:
    """The content security policy would silently stop them."""
    paths = ["/", "/tickets", "/tickets/new", "/customers", "/customers/new", "/apps", "/notices"]
    paths += ["/settings/integrations", "/settings/macros", f"/ticket/{ticket['id']}"]
    paths += [f"/customer/{customer['id']}"]
    for path in paths:
        page = browser.get(path)
        assert page.count("<h1>") == 1, path
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", page), path
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]* (?:src|href)="([^"]*)"', page)
        assert all(one.startswith("/assets/") for one in loaded), path


# Tickets and customers


def test_tickets_are_found_by_the_name_or_any_address_of_their_customer(
    browser: Browser, helpdesk: Helpdesk, ticket: dict[str, Any]
) -> None:
    helpdesk.create_ticket(helpdesk.create_customer("Website visitor")["id"], "A chat", "hi", channel="chat")
    for search in ("duarte", "INES@EXAMPLE", "ines@work", "ines duarte"):
        page = browser.get("/tickets", params={"q": search})
        assert "My &lt;points&gt;" in page
        assert "A chat" not in page
    assert "No ticket of a customer like “nobody”" in browser.get("/tickets", params={"q": "nobody"})


def test_a_long_list_is_cut_and_the_search_finds_the_rest(browser: Browser, helpdesk: Helpdesk) -> None:
    with helpdesk.records.change():
        for number in range(201):
            helpdesk.create_customer(f"Customer {number}x")
    page = browser.get("/customers")
    assert "There are more customers than fit here." in page
    assert "Customer 200x" not in page
    assert "Customer 200x" in browser.get("/customers", params={"q": "200x"})


def test_a_message_is_shown_as_text_whatever_it_holds(
    browser: Browser, helpdesk: Helpdesk, ticket: dict[str, Any]
) -> None:
    helpdesk.add_message(ticket["id"], "", html="<p>From <b>HTML</b></p><script>x()</script>", channel="internal-note")
    page = browser.get(f"/ticket/{ticket['id']}")
    assert "Hello &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert '<p class="text">From HTML</p>' in page


def test_replies_notes_and_answers_of_the_customer_are_told_apart(
    browser: Browser, helpdesk: Helpdesk, ticket: dict[str, Any]
) -> None:
    for who in ("reply", "note", "customer"):
        browser.post(f"/ticket/{ticket['id']}/reply", text=f"as {who}\r\n2 < 3", do="send", write_as=who)

    sent = helpdesk.messages(ticket["id"])[1:]

    assert [(m["channel"], m["from_agent"], m["public"], m["sender"]["name"]) for m in sent] == [
        ("email", True, True, "Ada Okafor"),
        ("internal-note", True, False, "Ada Okafor"),
        ("email", False, True, "Ines Duarte"),
    ]
    assert sent[0]["body_text"] == "as reply\n2 < 3"
    assert sent[0]["body_html"] == "as reply<br>2 &lt; 3"
    page = browser.get(f"/ticket/{ticket['id']}")
    assert [page.count(f'class="message {kind}"') for kind in ("agent", "note", "shopper")] == [1, 1, 2]


def test_an_empty_reply_is_not_sent(browser: Browser, helpdesk: Helpdesk, ticket: dict[str, Any]) -> None:
    browser.post(f"/ticket/{ticket['id']}/reply", text=" \n", do="send")
    assert len(helpdesk.messages(ticket["id"])) == 1


def test_a_ticket_is_closed_and_opened_again(browser: Browser, helpdesk: Helpdesk, ticket: dict[str, Any]) -> None:
    page = browser.post(f"/ticket/{ticket['id']}/status", to="closed")
    assert helpdesk.ticket(ticket["id"])["status"] == "closed"
    assert "Ticket closed by Ada Okafor" in page
    assert ">Reopen</button>" in page
    browser.post(f"/ticket/{ticket['id']}/status", to="open")
    assert helpdesk.ticket(ticket["id"])["status"] == "open"


def test_a_new_ticket_belongs_to_the_customer_who_has_that_address(
    browser: Browser, helpdesk: Helpdesk, customer: dict[str, Any]
) -> None:
    browser.post("/tickets/new", email="INES@work.example", subject="Second", text="Again me")
    (made,) = helpdesk.tickets()
    assert made["customer"]["id"] == customer["id"]
    assert [m["body_text"] for m in helpdesk.messages(made["id"])] == ["Again me"]


def test_a_new_ticket_makes_a_customer_when_nobody_has_that_address(browser: Browser, helpdesk: Helpdesk) -> None:
    browser.post("/tickets/new", email="new@example.com", name="Nia New", subject="", text="")
    browser.post("/tickets/new", email="", name="Visitor", subject="Chat", text="hi")
    assert [(t["customer"]["name"], t["customer"]["email"]) for t in helpdesk.tickets()] == [
        ("Nia New", "new@example.com"),
        ("Visitor", None),
    ]
    page = browser.post("/tickets/new", status=400, email="", name="", subject="Kept", text="")
    assert "Enter the customer&#39;s e-mail address" in page
    assert 'value="Kept"' in page


def test_a_customer_keeps_several_addresses_and_shares_none(browser: Browser, helpdesk: Helpdesk) -> None:
    browser.post("/customers/new", name="Ana", email="ana@example.com", extra_emails="a@x.example, b@x.example")
    page = browser.post("/customers/new", status=400, name="Bo", email="B@x.example")
    assert "B@x.example belongs to another customer." in page
    (ana,) = helpdesk.customers()
    assert [channel["address"] for channel in ana["channels"]] == [
        "ana@example.com",
        "a@x.example",
        "b@x.example",
    ]


def test_an_agent_sets_the_address_of_a_customer_who_had_none(browser: Browser, helpdesk: Helpdesk) -> None:
    visitor = helpdesk.create_customer("Visitor")
    browser.post(f"/customer/{visitor['id']}/email", email="found@example.com")
    assert helpdesk.customer(visitor["id"])["email"] == "found@example.com"
    other = helpdesk.create_customer("Other")
    browser.post(f"/customer/{other['id']}/email", status=409, email="found@example.com")


@pytest.mark.parametrize("path", ["/ticket/999999", "/customer/999999", "/ticket/999999/sidebar", "/ticket/1/nothing"])
def test_what_does_not_exist_is_not_found(browser: Browser, path: str) -> None:
    browser.get(path, status=404)


# The sidebar


def test_opening_a_ticket_shows_the_card_with_its_values_escaped(
    browser: Browser, integration: dict[str, Any], ticket: dict[str, Any], customer: dict[str, Any]
) -> None:
    for page in (browser.get(f"/ticket/{ticket['id']}"), browser.get(f"/customer/{customer['id']}")):
        assert '<section class="card" aria-label="Loyalty">' in page
        assert field(page, "points") == "100"
        assert "<dd>&lt;b&gt;Gold&lt;/b&gt;</dd>" in page


def test_a_card_without_data_is_hidden(
    browser: Browser, app: App, integration: dict[str, Any], ticket: dict[str, Any]
) -> None:
    app.card = {}
    page = browser.get(f"/ticket/{ticket['id']}")
    assert 'class="card"' not in page
    assert "No integration has anything to show here yet." in page


def test_the_sidebar_alone_is_sent_again_only_when_it_changed(
    browser: Browser,
    helpdesk: Helpdesk,
    integration: dict[str, Any],
    ticket: dict[str, Any],
    customer: dict[str, Any],
) -> None:
    page = browser.get(f"/ticket/{ticket['id']}")
    found = re.search(r'data-live="([^"]*sidebar)" data-etag="([^"]*)"', page)
    assert found
    address, known = browser.origin + found[1], {"If-None-Match": unescape(found[2])}
    assert browser.session.get(address, headers=known, timeout=10).status_code == 304

    helpdesk.set_integration_data(customer["id"], integration["id"], {"points": 150, "tier": ""})
    changed = browser.session.get(address, headers=known, timeout=10)

    assert (changed.status_code, field(changed.text, "points")) == (200, "150")
    assert "<html" not in changed.text
    assert changed.headers["ETag"] != known["If-None-Match"]


def test_looking_at_the_sidebar_alone_calls_no_integration(
    browser: Browser, sandbox: Sandbox, integration: dict[str, Any], ticket: dict[str, Any]
) -> None:
    browser.get(f"/ticket/{ticket['id']}")
    before = len(sandbox.runtime.delivery_log(integration["id"]))
    for part in ("sidebar", "conversation"):
        browser.get(f"/ticket/{ticket['id']}/{part}")
    assert len(sandbox.runtime.delivery_log(integration["id"])) == before


def test_a_button_with_fields_opens_a_form_and_its_answer_is_told_on_the_ticket(
    browser: Browser, app: App, integration: dict[str, Any], ticket: dict[str, Any]
) -> None:
    """Without a script the form is a page of its own; with one it is the dialog that is already there."""
    page = browser.get(f"/ticket/{ticket['id']}")
    assert "<dialog" in page
    address = button_address(page, "Add Earnings")
    form = browser.get(address)
    assert '<label for="input-0">Points</label>' in form
    assert '<button class="primary">Submit</button>' in form

    page = browser.post(address, points="50", quiet="true")

    assert app.posted == [{"ticket_id": str(ticket["id"]), "points": "50", "quiet": "true"}]
    assert outcome(page) == "Add Earnings: Executed Added <50> points."
    assert "Ada Okafor ran an action of a card" in page
    assert outcome(browser.get(f"/ticket/{ticket['id']}")) == ""


def test_an_unticked_box_is_sent_as_false(
    browser: Browser, app: App, integration: dict[str, Any], ticket: dict[str, Any]
) -> None:
    browser.post(button_address(browser.get(f"/ticket/{ticket['id']}"), "Add Earnings"), points="5")
    assert app.posted[0]["quiet"] == "false"


def test_a_button_without_fields_runs_at_once_and_a_refusal_is_told(
    browser: Browser, app: App, integration: dict[str, Any], ticket: dict[str, Any], customer: dict[str, Any]
) -> None:
    app.answer = (422, {"message": "At most 10 points."})
    for path in (f"/ticket/{ticket['id']}", f"/customer/{customer['id']}"):
        page = browser.post(button_address(browser.get(path), "Add 50 points"))
        assert outcome(page) == "Add 50 points: Failed with status 422 At most 10 points."
    assert app.posted == [{"points": "50"}, {"points": "50"}]


def test_the_script_gets_the_outcome_alone(
    browser: Browser, integration: dict[str, Any], ticket: dict[str, Any]
) -> None:
    address = button_address(browser.get(f"/ticket/{ticket['id']}"), "Add 50 points")
    answer = browser.session.post(browser.base + address, headers={"X-Requested-With": "fetch"}, timeout=10)
    assert "Add 50 points: Executed" in answer.text
    assert "<html" not in answer.text


def test_an_empty_mandatory_field_is_refused_and_nothing_is_sent(
    browser: Browser, app: App, integration: dict[str, Any], ticket: dict[str, Any]
) -> None:
    page = browser.post(button_address(browser.get(f"/ticket/{ticket['id']}"), "Add Earnings"), points=" ")
    assert outcome(page) == "Add Earnings: Failed Points is required."
    assert app.posted == []


def test_a_button_that_is_gone_says_so(
    browser: Browser, helpdesk: Helpdesk, integration: dict[str, Any], ticket: dict[str, Any]
) -> None:
    address = button_address(browser.get(f"/ticket/{ticket['id']}"), "Add 50 points")
    assert "no longer on the card" in browser.post(address + "9", status=404)
    for widget in helpdesk.widgets():
        helpdesk.delete_object("widgets", widget["id"])
    assert "no longer in the sidebar" in browser.post(address, status=404)


@pytest.mark.parametrize(
    ("result", "verdict", "message"),
    [
        (ActionResult(200, '{"message": "Done."}', None), "Executed", "Done."),
        (ActionResult(202, '{"message": 5}', None), "Executed", ""),
        (ActionResult(204, "", None), "Executed", ""),
        (ActionResult(302, "", None), "Failed with status 302", ""),
        (ActionResult(500, "<html>", None), "Failed with status 500", ""),
        (ActionResult(409, '["message"]', None), "Failed with status 409", ""),
        (ActionResult(None, "", "No answer within 15 seconds."), "Failed", "No answer within 15 seconds."),
    ],
)
def test_what_an_agent_is_told_about_an_answer(result: ActionResult, verdict: str, message: str) -> None:
    told = read_outcome("Go", result)
    assert (told.verdict, told.message) == (verdict, message)


# Macros


@pytest.fixture
def macro(helpdesk: Helpdesk, integration: dict[str, Any]) -> dict[str, Any]:
    points = f"{{{{ticket.customer.integrations[{integration['id']}].points}}}}"
    name, blank, agent = (
        "{{ticket.customer.firstname}}",
        "{{ticket.customer.note}}",
        "{{current_user.firstname}}",
    )
    text = f"Hi {name}, {points} points.{blank} {agent}"
    arguments = {"body_text": text, "body_html": ""}
    action = {"name": "setResponseText", "title": "Add response text", "type": "user", "arguments": arguments}
    return helpdesk.keep_object("macros", {"name": "Balance <1>", "actions": [{"name": "addTags"}, action]})


def test_a_macro_is_inserted_with_this_customers_values(
    browser: Browser, macro: dict[str, Any], ticket: dict[str, Any]
) -> None:
    browser.get(f"/ticket/{ticket['id']}")
    page = browser.post(
        f"/ticket/{ticket['id']}/reply",
        text="Draft",
        macro_id=str(macro["id"]),
        do="insert",
        write_as="note",
    )
    assert "\nDraft\nHi Ines, 100 points. Ada</textarea>" in page
    assert 'value="note" checked' in page
    assert f'<option value="{macro["id"]}" selected>Balance &lt;1&gt;</option>' in page
    text = browser.get(f"/ticket/{ticket['id']}/macro", params={"macro_id": macro["id"]})
    assert text == "Hi Ines, 100 points. Ada"


def test_a_macro_that_is_gone_inserts_nothing(browser: Browser, ticket: dict[str, Any]) -> None:
    assert browser.get(f"/ticket/{ticket['id']}/macro", params={"macro_id": "5"}) == ""


def test_a_macro_with_html_only_is_inserted_as_text() -> None:
    macro = {
        "actions": [{"name": "setResponseText", "arguments": {"body_html": "<p>Hi {{name}}</p><p>Bye<br>now</p>"}}]
    }
    assert render_macro(macro, {"name": "<b>&\nB"}) == "Hi <b>&\nB\nBye\nnow"


def test_html_as_text_leaves_scripts_and_styles_out() -> None:
    assert text_of_html("<style>a{}</style><div>1 &lt; 2</div><script>x</script><p>end") == "1 < 2\nend"


# Settings


def test_the_integrations_page_shows_state_failures_and_requests_but_no_secret(
    browser: Browser, helpdesk: Helpdesk, integration: dict[str, Any], ticket: dict[str, Any]
) -> None:
    browser.get(f"/ticket/{ticket['id']}")
    helpdesk.count_failure(integration["id"])
    page = browser.get("/settings/integrations")
    assert "Enabled" in page
    assert "1 failed in a row" in page
    assert "X-Api-Key" in page
    assert "top-secret" not in page
    assert "ticket-updated" in page
    assert "email={{ticket.customer.email}}" in page


def test_an_admin_switches_and_deletes_what_an_app_left(
    browser: Browser, helpdesk: Helpdesk, integration: dict[str, Any], macro: dict[str, Any]
) -> None:
    page = browser.post(f"/settings/integrations/{integration['id']}/disable")
    assert "Disabled" in page
    assert helpdesk.integration(integration["id"])["deactivated_datetime"] is not None
    browser.post(f"/settings/integrations/{integration['id']}/enable")
    assert helpdesk.integration(integration["id"])["deactivated_datetime"] is None

    for widget in helpdesk.widgets():
        browser.post(f"/settings/widgets/{widget['id']}/delete")
    browser.post(f"/settings/macros/{macro['id']}/delete")
    browser.post(f"/settings/integrations/{integration['id']}/delete")
    assert (helpdesk.integrations(), helpdesk.widgets(), helpdesk.macros()) == ([], [], [])


def test_an_agent_may_not_change_settings(
    sandbox: Sandbox, browser: Browser, helpdesk: Helpdesk, integration: dict[str, Any]
) -> None:
    browser.sign_in(helpdesk.users()[1])
    for path in (f"/settings/integrations/{integration['id']}/delete", "/apps/uninstall"):
        assert "Only an admin of this helpdesk" in browser.post(path, status=403)
    assert helpdesk.integrations() != []


def test_the_app_store_leads_to_the_app_with_this_account(browser: Browser, sandbox: Sandbox) -> None:
    page = browser.get("/apps")
    assert f'href="{sandbox.runtime.app_url_for("acme")}">Install</a>' in page
    assert "Not installed" in page


def test_notices_are_read_newest_first(browser: Browser, helpdesk: Helpdesk, integration: dict[str, Any]) -> None:
    for _ in range(100):
        helpdesk.count_failure(integration["id"])
    assert "Your HTTP integration Loyalty was disabled" in browser.get("/notices")
    assert "Disabled" in browser.get("/settings/integrations")

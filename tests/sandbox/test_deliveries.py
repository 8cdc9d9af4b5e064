"""What the sandbox sends: HTTP integrations on their triggers, and the requests of widget buttons."""

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from sandbox import Sandbox


@dataclass
class Call:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)


@dataclass
class App:
    """A stand-in for the app that is called: answers what `answer` says and remembers its calls."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    answer: Callable[[Call], tuple[int, bytes]] = lambda _: (200, b'{"points": 5}')
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for_calls(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.calls) >= count, 5)


@pytest.fixture
def app() -> Iterator[App]:
    state = App()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            call = Call(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            with state.changed:
                state.calls.append(call)
                state.changed.notify_all()
            status, content = state.answer(call)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            with suppress(ConnectionError):  # the sandbox may have given up waiting
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False
        request_queue_size = 64  # with the ordinary 5, a burst of calls loses connections

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://localhost:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(retry_delays_s=(0, 0), delivery_timeout_s=0.3, action_timeout_s=0.3) as running:
        yield running


def integrate(sandbox: Sandbox, app: App, path: str = "/member?email={{ticket.customer.email}}", **http: Any) -> int:
    body = {
        "name": "Loyalty",
        "type": "http",
        "http": {
            "url": app.url + path,
            "method": "GET",
            "request_content_type": "application/json",
            "response_content_type": "application/json",
            "triggers": {"ticket-created": True, "ticket-updated": True, "ticket-message-created": True},
        }
        | http,
    }
    return int(api(sandbox, "POST", "integrations", body).json()["id"])


def api(sandbox: Sandbox, method: str, path: str, body: Any) -> requests.Response:
    token = sandbox.access_token("acme", scope="integrations:write tickets:write")
    answer = requests.request(
        method,
        f"{sandbox.url}/acme/api/{path}",
        json=body,
        headers={"Authorization": f"Bearer {token}"},
        timeout=5,
    )
    assert answer.ok, answer.text
    return answer


def open_ticket(sandbox: Sandbox, email: str | None = "mia@example.com", name: str = "Mia Rossi") -> int:
    helpdesk = sandbox.helpdesk("acme")
    ticket = helpdesk.create_ticket(helpdesk.create_customer(name, email)["id"], "Where is my order?", "Hello?")
    sandbox.settle()
    return int(ticket["id"])


def stored(sandbox: Sandbox, ticket_id: int) -> dict[str, Any]:
    data: dict[str, Any] = sandbox.helpdesk("acme").ticket(ticket_id)["customer"]["integrations"]
    return data


def test_a_new_ticket_asks_the_app_once_and_keeps_its_answer_on_the_customer(sandbox: Sandbox, app: App) -> None:
    integration = integrate(sandbox, app, headers={"X-Api-Key": "key-one", "X-Ticket": "{{ticket.id}}"})
    ticket = open_ticket(sandbox)
    (call,) = app.calls
    assert call.query == {"email": ["mia@example.com"]}
    assert call.headers["x-api-key"] == "key-one"
    assert call.headers["x-ticket"] == str(ticket)
    assert call.body == b""
    assert stored(sandbox, ticket) == {str(integration): {"points": 5}}


def test_messages_notes_tags_and_opening_ask_again(sandbox: Sandbox, app: App) -> None:
    integrate(sandbox, app)
    ticket = open_ticket(sandbox)
    helpdesk = sandbox.helpdesk("acme")
    note = {"channel": "internal-note", "via": "api", "from_agent": True, "body_text": "50 points"}
    steps: list[Callable[[], object]] = [
        lambda: helpdesk.add_message(ticket, "Any news?"),
        lambda: api(sandbox, "POST", f"tickets/{ticket}/messages", note),
        lambda: api(sandbox, "POST", f"tickets/{ticket}/tags", {"names": ["vip"]}),
        lambda: helpdesk.update_ticket(ticket, status="closed"),
        lambda: helpdesk.view_ticket(ticket),
    ]
    for number, step in enumerate(steps, start=2):
        step()
        sandbox.settle()
        assert len(app.calls) == number


def test_only_triggers_that_are_on_fire_and_underscores_never_do(sandbox: Sandbox, app: App) -> None:
    integrate(
        sandbox,
        app,
        triggers={"ticket_created": True, "ticket-message-created": False, "ticket-updated": True},
    )
    ticket = open_ticket(sandbox)
    sandbox.helpdesk("acme").add_message(ticket, "Hello?")
    sandbox.settle()
    assert app.calls == []
    sandbox.helpdesk("acme").view_ticket(ticket)
    sandbox.settle()
    assert len(app.calls) == 1


def test_opening_can_be_set_to_fire_nothing(app: App) -> None:
    with Sandbox(open_fires=False) as sandbox:
        integrate(sandbox, app, triggers={"ticket-updated": True})
        sandbox.runtime.view_ticket("acme", open_ticket(sandbox))
        sandbox.settle()
        assert app.calls == []


def test_opening_waits_for_the_card(sandbox: Sandbox, app: App) -> None:
    ticket = open_ticket(sandbox)
    integration = integrate(sandbox, app)
    sandbox.runtime.view_ticket("acme", ticket)
    assert stored(sandbox, ticket) == {str(integration): {"points": 5}}


@pytest.mark.parametrize(
    ("encode", "sent"),
    [("percent", "?email=mia%2Bshop%40example.com"), ("raw", "?email=mia+shop@example.com")],
)
def test_the_address_enters_the_url_encoded_or_raw(app: App, encode: str, sent: str) -> None:
    with Sandbox(encode_email=encode) as sandbox:
        integrate(sandbox, app)
        open_ticket(sandbox, "mia+shop@example.com")
        assert app.calls[0].path == f"/member{sent}"


def test_a_customer_without_an_address_is_asked_about_with_a_blank(sandbox: Sandbox, app: App) -> None:
    integrate(sandbox, app)
    open_ticket(sandbox, None)
    assert app.calls[0].query == {"email": [""]}


def test_encoded_braces_are_no_template(sandbox: Sandbox, app: App) -> None:
    integrate(sandbox, app, "/member?email=%7B%7Bticket.customer.email%7D%7D")
    open_ticket(sandbox)
    assert app.calls[0].query == {"email": ["{{ticket.customer.email}}"]}


def test_a_post_sends_its_form_as_json_as_a_form_or_as_the_whole_event(sandbox: Sandbox, app: App) -> None:
    form = {"email": "{{ticket.customer.email}}", "nested": {"id": "{{ticket.id}}"}}
    integrate(sandbox, app, "/json", method="POST", form=form)
    integrate(
        sandbox,
        app,
        "/form",
        method="POST",
        form=form,
        request_content_type="application/x-www-form-urlencoded",
    )
    integrate(sandbox, app, "/event", method="POST", form="{{context}}")
    integrate(sandbox, app, "/nothing", method="POST")
    ticket = open_ticket(sandbox, name="Zoë Ålund")
    bodies = {call.path: call for call in app.calls}
    assert json.loads(bodies["/json"].body) == {"email": "mia@example.com", "nested": {"id": str(ticket)}}
    assert parse_qs(bodies["/form"].body.decode())["email"] == ["mia@example.com"]
    event = json.loads(bodies["/event"].body)
    assert event["event"] == {"type": "ticket-created"}
    assert event["ticket"]["customer"]["name"] == "Zoë Ålund"
    assert bodies["/nothing"].body == b""


def test_calls_are_signed_when_there_is_a_secret(sandbox: Sandbox, app: App) -> None:
    integrate(sandbox, app, method="POST", form={"a": "b"}, hmac_secret="shh")
    open_ticket(sandbox)
    expected = hmac.new(b"shh", app.calls[0].body, hashlib.sha256).hexdigest()
    assert app.calls[0].headers["x-gorgias-signature"] == expected


@pytest.mark.parametrize(
    ("status", "body", "calls"),
    [
        (500, b"{}", 3),
        (503, b"down", 3),
        (404, b'{"error": "unknown"}', 1),
        (302, b"", 1),
        (200, b"<html>", 1),
        (200, b"[1]", 1),
        (200, b"", 1),
        (204, b"", 1),
        (200, b'{"x": "' + b"y" * 300_000 + b'"}', 1),
    ],
)
def test_a_bad_answer_keeps_the_last_good_one_and_only_trouble_is_retried(
    sandbox: Sandbox, app: App, status: int, body: bytes, calls: int
) -> None:
    integration = integrate(sandbox, app)
    ticket = open_ticket(sandbox)
    app.calls.clear()
    app.answer = lambda _: (status, body)
    sandbox.helpdesk("acme").view_ticket(ticket)
    sandbox.settle()
    assert len(app.calls) == calls
    assert stored(sandbox, ticket) == {str(integration): {"points": 5}}
    assert sandbox.helpdesk("acme").failures(integration) == calls
    log = sandbox.runtime.delivery_log(integration)[-calls:]
    assert all(entry.error for entry in log)
    assert [entry.attempt for entry in log] == list(range(1, calls + 1))


def test_a_timeout_and_a_closed_port_are_retried_and_a_success_ends_the_row(sandbox: Sandbox, app: App) -> None:
    integration = integrate(sandbox, app)
    release = threading.Event()

    def first_hangs(_: Call) -> tuple[int, bytes]:
        if len(app.calls) == 1:
            release.wait(5)
        return 200, b'{"points": 6}'

    app.answer = first_hangs
    ticket = open_ticket(sandbox)
    release.set()
    assert stored(sandbox, ticket) == {str(integration): {"points": 6}}
    assert [entry.error is None for entry in sandbox.runtime.delivery_log(integration)] == [False, True]
    assert sandbox.helpdesk("acme").failures(integration) == 0


def test_a_hundred_failures_in_a_row_disable_the_integration_and_a_put_enables_it(sandbox: Sandbox, app: App) -> None:
    integration = integrate(sandbox, app)
    helpdesk = sandbox.helpdesk("acme")
    app.answer = lambda _: (404, b"")
    ticket = open_ticket(sandbox)
    for _ in range(98):
        helpdesk.view_ticket(ticket)
    sandbox.settle()
    assert helpdesk.failures(integration) == 99
    assert helpdesk.integration(integration)["deactivated_datetime"] is None
    helpdesk.view_ticket(ticket)
    sandbox.settle()
    assert helpdesk.integration(integration)["deactivated_datetime"] is not None
    (notice,) = sandbox.runtime.notices("acme")
    assert notice["to"] == "ada@acme.example"
    assert "Loyalty" in notice["subject"]
    app.calls.clear()
    helpdesk.view_ticket(ticket)
    sandbox.settle()
    assert app.calls == []
    api(sandbox, "PUT", f"integrations/{integration}", {"name": "Loyalty", "deactivated_datetime": None})
    app.answer = lambda _: (200, b'{"points": 7}')
    helpdesk.view_ticket(ticket)
    sandbox.settle()
    assert stored(sandbox, ticket) == {str(integration): {"points": 7}}
    assert helpdesk.failures(integration) == 0


def test_an_older_question_that_is_answered_late_does_not_overwrite_a_newer_answer(app: App) -> None:
    release = threading.Event()

    def answer(_: Call) -> tuple[int, bytes]:
        number = len(app.calls)
        if number == 1:
            release.wait(5)
        return 200, json.dumps({"points": number}).encode()

    app.answer = answer
    with Sandbox() as sandbox:
        integration = integrate(sandbox, app)
        helpdesk = sandbox.helpdesk("acme")
        ticket = helpdesk.create_ticket(helpdesk.create_customer("Mia", "mia@example.com")["id"], "s", "t")["id"]
        app.wait_for_calls(1)
        helpdesk.add_message(ticket, "Hello?")
        app.wait_for_calls(2)
        deadline = time.monotonic() + 5
        while not stored(sandbox, ticket) and time.monotonic() < deadline:
            time.sleep(0.01)
        release.set()
        sandbox.settle()
        assert stored(sandbox, ticket) == {str(integration): {"points": 2}}


def test_deleting_an_integration_takes_its_data_and_leaves_its_widget(sandbox: Sandbox, app: App) -> None:
    integration = integrate(sandbox, app)
    template = {"type": "wrapper", "widgets": []}
    api(sandbox, "POST", "widgets", {"type": "http", "integration_id": integration, "template": template})
    ticket = open_ticket(sandbox)
    api(sandbox, "DELETE", f"integrations/{integration}", None)
    assert stored(sandbox, ticket) == {}
    assert len(sandbox.helpdesk("acme").widgets()) == 1


def test_settle_says_when_something_is_still_in_flight(sandbox: Sandbox, app: App) -> None:
    release = threading.Event()

    def wait(_: Call) -> tuple[int, bytes]:
        release.wait(5)
        return 200, b"{}"

    app.answer = wait
    integrate(sandbox, app)
    helpdesk = sandbox.helpdesk("acme")
    helpdesk.create_ticket(helpdesk.create_customer("Mia", "m@example.com")["id"], "s", "t")
    app.wait_for_calls(1)
    with pytest.raises(TimeoutError):
        sandbox.settle(0.01)
    release.set()


FORM_ACTION: dict[str, Any] = {
    "method": "POST",
    "url": "{app}/earnings?ticket={{ticket.id}}",
    "headers": [{"key": "X-Api-Key", "value": "key-two"}],
    "params": [{"key": "email", "value": "{{ticket.customer.email}}"}],
    "body": {
        "contentType": "application/x-www-form-urlencoded",
        "application/json": {},
        "application/x-www-form-urlencoded": [
            {
                "key": "points",
                "value": "10",
                "label": "Points",
                "type": "number",
                "editable": True,
                "mandatory": True,
            },
            {
                "key": "reason",
                "value": "",
                "label": "Reason",
                "type": "text",
                "editable": True,
                "mandatory": False,
            },
            {"key": "agent_email", "value": "{{current_user.email}}"},
            {"key": "customer", "value": "{{customer.id}}"},
        ],
    },
}


def press(
    sandbox: Sandbox, app: App, action: dict[str, Any], ticket: int | None, **fields: str
) -> tuple[int | None, str, str | None]:
    helpdesk = sandbox.helpdesk("acme")
    customer = helpdesk.ticket(ticket)["customer"] if ticket else helpdesk.customers()[0]
    result = sandbox.runtime.run_action(
        helpdesk,
        action | {"url": action["url"].replace("{app}", app.url)},
        fields=fields,
        ticket_id=ticket,
        customer_id=customer["id"],
        user_id=helpdesk.users()[1]["id"],
    )
    return result.status, result.body, result.error


def test_a_button_sends_what_the_agent_typed_with_everything_filled_in(sandbox: Sandbox, app: App) -> None:
    app.answer = lambda _: (200, '{"message": "Füße"}'.encode())
    ticket = open_ticket(sandbox, "mia+shop@example.com")
    answer = press(sandbox, app, FORM_ACTION, ticket, points="50", reason="late & sorry", agent_email="x@evil.example")
    assert answer == (200, '{"message": "Füße"}', None)
    (call,) = app.calls
    assert call.query == {"ticket": [str(ticket)], "email": ["mia+shop@example.com"]}
    assert call.headers["x-api-key"] == "key-two"
    assert call.headers["content-type"] == "application/x-www-form-urlencoded"
    customer = sandbox.helpdesk("acme").ticket(ticket)["customer"]["id"]
    assert parse_qs(call.body.decode()) == {
        "points": ["50"],
        "reason": ["late & sorry"],
        "agent_email": ["ben@acme.example"],  # not editable, so what was typed does not count
        "customer": [str(customer)],
    }


def test_an_untouched_field_sends_its_value_and_an_emptied_mandatory_one_nothing(sandbox: Sandbox, app: App) -> None:
    ticket = open_ticket(sandbox)
    press(sandbox, app, FORM_ACTION, ticket)
    assert parse_qs(app.calls[0].body.decode())["points"] == ["10"]
    assert press(sandbox, app, FORM_ACTION, ticket, points=" ") == (None, "", "Points is required.")
    assert len(app.calls) == 1


def test_a_json_button_fills_in_its_texts_and_leaves_numbers_alone(sandbox: Sandbox, app: App) -> None:
    body = {
        "contentType": "application/json",
        "application/json": {"points": 50, "ticket_id": "{{ticket.id}}", "tags": ["{{ticket.channel}}"]},
    }
    ticket = open_ticket(sandbox)
    press(sandbox, app, {"method": "POST", "url": "{app}/earnings", "body": body}, ticket)
    assert json.loads(app.calls[0].body) == {"points": 50, "ticket_id": str(ticket), "tags": ["email"]}


def test_a_button_on_a_customer_has_no_ticket(sandbox: Sandbox, app: App) -> None:
    open_ticket(sandbox)
    press(sandbox, app, FORM_ACTION, None, points="5")
    assert app.calls[0].query == {"ticket": [""], "email": [""]}


def test_a_button_is_written_into_the_ticket_history_without_the_address_it_called(sandbox: Sandbox, app: App) -> None:
    app.answer = lambda _: (422, b'{"message": "Too many points."}')
    ticket = open_ticket(sandbox)
    assert press(sandbox, app, FORM_ACTION, ticket, points="5")[0] == 422
    (event,) = sandbox.runtime.events(ticket)
    assert event["type"] == "action-executed"
    assert event["user_id"] == sandbox.helpdesk("acme").users()[1]["id"]
    assert event["data"]["status"] == 422
    assert "mia@example.com" not in json.dumps(event)


def test_a_button_does_not_refresh_the_sidebar(sandbox: Sandbox, app: App) -> None:
    integrate(sandbox, app)
    ticket = open_ticket(sandbox)
    press(sandbox, app, FORM_ACTION, ticket, points="5")
    sandbox.settle()
    assert [urlsplit(call.path).path for call in app.calls] == ["/member", "/earnings"]


def test_a_button_whose_app_does_not_answer_is_said_so_and_not_repeated(sandbox: Sandbox, app: App) -> None:
    release = threading.Event()

    def hang(_: Call) -> tuple[int, bytes]:
        release.wait(5)
        return 200, b"{}"

    app.answer = hang
    ticket = open_ticket(sandbox)
    assert press(sandbox, app, FORM_ACTION, ticket, points="5") == (None, "", "No answer within 0.3 seconds.")
    release.set()
    assert len(app.calls) == 1
    unreachable = {"method": "POST", "url": "http://localhost:9/"}
    assert press(sandbox, app, unreachable, ticket)[2] is not None
    assert press(sandbox, app, {"method": "POST", "url": "nonsense"}, ticket)[2] is not None

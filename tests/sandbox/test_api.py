"""The sandbox's REST API: shapes, cursors, refusals and the call budget, over real sockets."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox import Sandbox

SCOPE = (
    "account:read users:read integrations:read integrations:write macros:read macros:write customers:read "
    "customers:write tickets:read tickets:write"
)
INTEGRATION: dict[str, Any] = {
    "name": "Acme Loyalty",
    "type": "http",
    "http": {
        "url": "http://localhost:9/member?email={{ticket.customer.email}}",
        "method": "GET",
        "headers": {"X-Api-Key": "key-one"},
        "request_content_type": "application/json",
        "response_content_type": "application/json",
        "triggers": {"ticket-created": True, "ticket-updated": False},
    },
}
TEMPLATE: dict[str, Any] = {"type": "wrapper", "widgets": [{"type": "card", "path": "", "title": "Loyalty"}]}
MACRO = {"name": "Points", "actions": [{"name": "setResponseText", "arguments": {"body_text": "Hi"}}]}
NOTE = {"channel": "internal-note", "via": "api", "from_agent": True, "body_text": "50 points"}

Call = Callable[..., requests.Response]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(calls_per_20_s=100_000) as running:
        yield running


@pytest.fixture
def call(sandbox: Sandbox) -> Call:
    """Call the API of acme as its admin, or with another token or scope."""

    def send(
        method: str, path: str, json: Any = None, *, scope: str = SCOPE, user: int = 0, **query: Any
    ) -> requests.Response:
        user_id = sandbox.helpdesk("acme").users()[user]["id"]
        token = sandbox.access_token("acme", scope=scope, user_id=user_id)
        return requests.request(
            method,
            f"{sandbox.url}/acme/api/{path}",
            json=json,
            params=query,
            headers={"Authorization": f"Bearer {token}"},
            timeout=5,
        )

    return send


def ticket_of(sandbox: Sandbox, email: str | None = "mia@example.com") -> int:
    helpdesk = sandbox.helpdesk("acme")
    customer = helpdesk.create_customer("Mia Rossi", email, ["mia@work.example"])
    return int(helpdesk.create_ticket(customer["id"], "Where is my order?", "Hello?")["id"])


def test_the_account_is_known_by_its_domain_and_has_no_number(call: Call) -> None:
    account = call("GET", "account").json()
    assert account["domain"] == "acme"
    assert account["status"] == {"status": "active"}
    assert account.keys() == {"created_datetime", "deactivated_datetime", "domain", "settings", "status"}


def test_users_have_roles(call: Call) -> None:
    users = call("GET", "users", order_by="created_datetime:asc").json()["data"]
    assert [(user["firstname"], user["role"]["name"]) for user in users] == [
        ("Ada", "admin"),
        ("Ben", "agent"),
        ("Lea", "lite-agent"),
    ]
    assert call("GET", f"users/{users[1]['id']}").json()["email"] == "ben@acme.example"


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer nonsense", "Basic YTpi", "Bearer a.b.c"])
def test_a_call_without_a_good_token_is_401(sandbox: Sandbox, token: str) -> None:
    answer = requests.get(f"{sandbox.url}/acme/api/account", headers={"Authorization": token}, timeout=5)
    assert answer.status_code == 401
    assert answer.json()["error"]["msg"]
    assert "X-Gorgias-Account-Api-Call-Limit" in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "account", "account:read"),
        ("GET", "users", "users:read"),
        ("GET", "integrations", "integrations:read"),
        ("POST", "integrations", "integrations:write"),
        ("POST", "widgets", "integrations:write"),
        ("POST", "macros", "macros:write"),
        ("GET", "customers", "customers:read"),
        ("GET", "tickets", "tickets:read"),
        ("POST", "tickets/1/messages", "tickets:write"),
    ],
)
def test_each_call_needs_its_own_scope(call: Call, method: str, path: str, scope: str) -> None:
    others = " ".join(set(SCOPE.split()) - {scope})
    refused = call(method, path, {} if method == "POST" else None, scope=others)
    assert refused.status_code == 403
    assert refused.json()["error"]["data"] == {"scope": scope}


@pytest.mark.parametrize(("kind", "body"), [("integrations", INTEGRATION), ("macros", MACRO)])
def test_only_admins_change_what_everybody_sees(call: Call, kind: str, body: dict[str, Any]) -> None:
    for user in (1, 2):
        refused = call("POST", kind, body, user=user)
        assert refused.status_code == 403
        assert "admin" in refused.json()["error"]["msg"]
        assert call("GET", kind, user=user).status_code == 200
    made = call("POST", kind, body).json()["id"]
    assert call("PUT", f"{kind}/{made}", body, user=1).status_code == 403
    assert call("DELETE", f"{kind}/{made}", user=1).status_code == 403


def test_an_integration_is_created_read_changed_and_deleted(sandbox: Sandbox, call: Call) -> None:
    made = call("POST", "integrations", INTEGRATION)
    assert made.status_code == 201
    integration = made.json()
    assert integration["http"]["url"].endswith("{{ticket.customer.email}}")
    assert integration["http"]["headers"] == {"X-Api-Key": "key-one"}
    assert integration["user"]["email"] == "ada@acme.example"
    assert integration["application_id"] is None
    assert integration["uri"] == f"/api/integrations/{integration['id']}/"
    assert call("GET", f"integrations/{integration['id']}").json() == integration
    changed = call(
        "PUT", f"integrations/{integration['id']}", {"name": "Renamed", "http": {"url": "http://x.example/"}}
    )
    assert changed.status_code == 200
    assert changed.json()["http"] == integration["http"] | {"url": "http://x.example/"}
    deleted = call("DELETE", f"integrations/{integration['id']}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert call("GET", f"integrations/{integration['id']}").status_code == 404
    assert call("DELETE", f"integrations/{integration['id']}").status_code == 404


def test_the_hmac_secret_is_never_given_back(call: Call) -> None:
    body = INTEGRATION | {"http": INTEGRATION["http"] | {"hmac_secret": "shh"}}
    made = call("POST", "integrations", body)
    assert "shh" not in made.text
    assert "shh" not in call("GET", "integrations").text


def without(body: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != field}


@pytest.mark.parametrize(
    "body",
    [
        without(INTEGRATION, "name"),
        without(INTEGRATION, "http"),
        INTEGRATION | {"type": "shopify"},
        INTEGRATION | {"colour": "red"},
        *(INTEGRATION | {"http": without(INTEGRATION["http"], name)} for name in ("url", "method")),
        *(
            INTEGRATION | {"http": INTEGRATION["http"] | change}
            for change in (
                {"method": "BREW"},
                {"response_content_type": "text/html"},
                {"headers": [{"key": "X", "value": "y"}]},
                {"triggers": {"ticket-opened": True}},
                {"triggers": {"ticket-created": "yes"}},
                {"url": "ftp://x"},
                {"timeout": 3},
            )
        ),
        [],
    ],
)
def test_a_wrong_integration_is_refused_with_400(call: Call, body: Any) -> None:
    refused = call("POST", "integrations", body)
    assert refused.status_code == 400
    assert refused.json()["error"]["msg"]
    assert call("GET", "integrations").json()["data"] == []


def test_a_body_that_is_no_json_is_400(sandbox: Sandbox) -> None:
    token = sandbox.access_token("acme", scope=SCOPE)
    answer = requests.post(
        f"{sandbox.url}/acme/api/macros",
        data="name=x",
        headers={"Authorization": f"Bearer {token}"},
        timeout=5,
    )
    assert answer.status_code == 400


def test_a_put_needs_a_name_and_inside_http_a_url(call: Call) -> None:
    made = call("POST", "integrations", INTEGRATION).json()["id"]
    assert call("PUT", f"integrations/{made}", {"http": {"url": "http://x.example/"}}).status_code == 400
    assert call("PUT", f"integrations/{made}", {"name": "x", "http": {"method": "POST"}}).status_code == 400
    assert call("PUT", f"integrations/{made}", {"name": "x"}).status_code == 200


def test_a_widget_belongs_to_an_integration_and_outlives_it(call: Call) -> None:
    integration = call("POST", "integrations", INTEGRATION).json()["id"]
    body = {"type": "http", "integration_id": integration, "template": TEMPLATE, "order": 2}
    made = call("POST", "widgets", body)
    assert made.status_code == 201
    assert made.json()["context"] == "ticket"
    template = {"type": "wrapper", "widgets": []}
    changed = call("PUT", f"widgets/{made.json()['id']}", {"template": template, "context": "customer"}).json()
    assert (changed["template"], changed["context"], changed["order"]) == (template, "customer", 2)
    call("DELETE", f"integrations/{integration}")
    assert call("GET", f"widgets/{made.json()['id']}").status_code == 200
    assert call("PUT", f"widgets/{made.json()['id']}", {"template": TEMPLATE}).status_code == 200
    assert call("DELETE", f"widgets/{made.json()['id']}").status_code == 204


@pytest.mark.parametrize(
    "change",
    [
        {"type": "loyalty"},
        {"integration_id": 1},
        {"integration_id": None},
        {"context": "sidebar"},
        {"order": -1},
        {"template": {"type": "card"}},
        {"position": 1},
    ],
)
def test_a_wrong_widget_is_refused_with_400(call: Call, change: dict[str, Any]) -> None:
    integration = call("POST", "integrations", INTEGRATION).json()["id"]
    body = {"type": "http", "integration_id": integration, "template": TEMPLATE} | change
    assert call("POST", "widgets", body).status_code == 400


def test_widgets_are_filtered_and_ordered(sandbox: Sandbox, call: Call) -> None:
    one, two = (call("POST", "integrations", INTEGRATION).json()["id"] for _ in range(2))
    for integration, order in ((one, 3), (two, 1), (one, 2)):
        call(
            "POST",
            "widgets",
            {"type": "http", "integration_id": integration, "template": TEMPLATE, "order": order},
        )
    assert [w["order"] for w in call("GET", "widgets", order_by="order:asc").json()["data"]] == [1, 2, 3]
    assert {w["integration_id"] for w in call("GET", "widgets", integration_id=one).json()["data"]} == {one}
    assert [w["order"] for w in sandbox.helpdesk("acme").widgets("ticket")] == [1, 2, 3]
    assert sandbox.helpdesk("acme").widgets("customer") == []


def test_a_macro_is_created_changed_and_deleted(call: Call) -> None:
    made = call("POST", "macros", MACRO)
    assert made.status_code == 201
    assert call("PUT", f"macros/{made.json()['id']}", MACRO | {"name": "New"}).json()["name"] == "New"
    assert call("POST", "macros", {"name": "x"}).status_code == 400
    assert call("POST", "macros", MACRO | {"actions": ["setResponseText"]}).status_code == 400
    assert call("DELETE", f"macros/{made.json()['id']}").status_code == 204


def test_cursors_lead_through_every_object_once_and_back(call: Call) -> None:
    made = [call("POST", "macros", MACRO | {"name": f"m{number}"}).json()["id"] for number in range(7)]
    pages: list[list[int]] = []
    cursor: str | None = None
    while True:
        page = call("GET", "macros", limit=3, **({"cursor": cursor} if cursor else {})).json()
        pages.append([macro["id"] for macro in page["data"]])
        assert (page["meta"]["prev_cursor"] is None) == (len(pages) == 1)
        cursor = page["meta"]["next_cursor"]
        if cursor is None:
            break
    assert [macro for page_of_ids in pages for macro in page_of_ids] == made[::-1]
    assert [len(page) for page in pages] == [3, 3, 1]
    back = call("GET", "macros", limit=3, cursor=page["meta"]["prev_cursor"]).json()
    assert [macro["id"] for macro in back["data"]] == pages[1]


def test_a_cursor_survives_deletions_and_insertions(call: Call) -> None:
    made = [call("POST", "macros", MACRO).json()["id"] for _ in range(4)]
    first = call("GET", "macros", limit=2, order_by="created_datetime:asc").json()
    call("DELETE", f"macros/{made[1]}")
    call("POST", "macros", MACRO)
    second = call("GET", "macros", limit=2, order_by="created_datetime:asc", cursor=first["meta"]["next_cursor"]).json()
    assert [macro["id"] for macro in second["data"]] == made[2:]


def test_thirty_come_on_a_page_unless_told(call: Call) -> None:
    for _ in range(31):
        call("POST", "macros", MACRO)
    page = call("GET", "macros").json()
    assert len(page["data"]) == 30
    assert page["meta"]["next_cursor"]
    assert len(call("GET", "macros", limit=100).json()["data"]) == 31


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 101},
        {"limit": "many"},
        {"per_page": 10},
        {"page": 2},
        {"cursor": "nonsense"},
        {"cursor": "é"},
        {"order_by": "name"},
        {"order_by": "colour:asc"},
    ],
)
def test_unknown_and_wrong_query_parameters_are_400(call: Call, query: dict[str, Any]) -> None:
    for kind in ("integrations", "widgets", "macros", "customers", "tickets", "users"):
        assert call("GET", kind, **query).status_code == 400


def test_integrations_are_filtered_by_type(call: Call) -> None:
    call("POST", "integrations", INTEGRATION)
    assert len(call("GET", "integrations", type="http").json()["data"]) == 1
    assert call("GET", "integrations", type="shopify").json()["data"] == []


def test_the_email_filter_knows_the_primary_address_and_the_channel_filter_every_one(
    sandbox: Sandbox, call: Call
) -> None:
    ticket_of(sandbox)
    assert len(call("GET", "customers", email="MIA@example.com").json()["data"]) == 1
    assert call("GET", "customers", email="mia@work.example").json()["data"] == []
    by_channel = call("GET", "customers", channel_type="email", channel_address="mia@work.example").json()["data"]
    assert [customer["email"] for customer in by_channel] == ["mia@example.com"]
    assert call("GET", "customers", channel_address="mia@work.example").status_code == 400


def test_a_ticket_carries_its_customer_and_the_account(sandbox: Sandbox, call: Call) -> None:
    ticket = call("GET", f"tickets/{ticket_of(sandbox)}").json()
    assert ticket["customer"]["email"] == "mia@example.com"
    assert [channel["address"] for channel in ticket["customer"]["channels"]] == [
        "mia@example.com",
        "mia@work.example",
    ]
    assert ticket["customer"]["integrations"] == {}
    assert ticket["account"] == {"domain": "acme"}
    assert ticket["messages"][0]["body_text"] == "Hello?"
    assert call("GET", "tickets", customer_id=ticket["customer"]["id"]).json()["data"][0]["id"] == ticket["id"]


def test_customer_data_is_replaced_unless_it_is_older(sandbox: Sandbox, call: Call) -> None:
    customer = sandbox.helpdesk("acme").create_customer("Mia", "mia@example.com")["id"]

    def put(data: Any, version: str | None = None) -> requests.Response:
        return call("PUT", f"customers/{customer}/data", {"data": data, "version": version})

    answer = put({"tier": "gold"}, "2026-02-01T00:00:00Z")
    assert (answer.status_code, answer.content) == (202, b"")
    put({"tier": "old"}, "2026-01-01T00:00:00Z")
    assert call("GET", f"customers/{customer}").json()["data"] == {"tier": "gold"}
    put({"tier": "new"})
    assert call("GET", f"customers/{customer}").json()["data"] == {"tier": "new"}
    assert put({}, "yesterday").status_code == 400


def test_an_internal_note_is_written_as_the_installing_user(sandbox: Sandbox, call: Call) -> None:
    ticket = ticket_of(sandbox)
    made = call("POST", f"tickets/{ticket}/messages", NOTE | {"external_id": "op-1", "public": False})
    assert made.status_code == 201
    note = made.json()
    assert (note["external_id"], note["public"], note["from_agent"]) == ("op-1", False, True)
    assert note["sender"]["email"] == "ada@acme.example"
    by_ben = call("POST", f"tickets/{ticket}/messages", NOTE | {"sender": {"email": "BEN@acme.example"}})
    assert by_ben.json()["sender"]["name"] == "Ben Lindqvist"
    messages = call("GET", f"tickets/{ticket}/messages", order_by="created_datetime:asc", limit=2).json()
    assert [message["body_text"] for message in messages["data"]] == ["Hello?", "50 points"]
    assert messages["meta"]["next_cursor"]


def test_an_external_id_is_used_once_per_ticket(sandbox: Sandbox, call: Call) -> None:
    one, two = ticket_of(sandbox), ticket_of(sandbox, "noor@example.com")
    assert call("POST", f"tickets/{one}/messages", NOTE | {"external_id": "op-1"}).status_code == 201
    assert call("POST", f"tickets/{one}/messages", NOTE | {"external_id": "op-1"}).status_code == 409
    assert call("POST", f"tickets/{two}/messages", NOTE | {"external_id": "op-1"}).status_code == 201
    assert len(sandbox.helpdesk("acme").messages(one)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"from_agent": False},
        {"from_agent": None},
        {"sender": {"email": "stranger@example.com"}},
        {"external_id": "x" * 256},
        {"body_text": ""},
        {"note": "x"},
    ],
)
def test_a_wrong_note_is_refused_with_400(sandbox: Sandbox, call: Call, change: dict[str, Any]) -> None:
    ticket = ticket_of(sandbox)
    assert call("POST", f"tickets/{ticket}/messages", NOTE | change).status_code == 400
    for field in ("channel", "via", "from_agent"):
        assert call("POST", f"tickets/{ticket}/messages", without(NOTE, field)).status_code == 400
    assert len(sandbox.helpdesk("acme").messages(ticket)) == 1


def test_a_message_for_no_ticket_is_404_and_a_huge_one_413(sandbox: Sandbox, call: Call) -> None:
    assert call("POST", "tickets/1/messages", NOTE).status_code == 404
    huge = NOTE | {"body_text": "x" * 1_100_000}
    assert call("POST", f"tickets/{ticket_of(sandbox)}/messages", huge).status_code == 413


def test_tags_are_added_case_sensitively(sandbox: Sandbox, call: Call) -> None:
    ticket = ticket_of(sandbox)
    made = call("POST", f"tickets/{ticket}/tags", {"names": ["vip"]})
    assert (made.status_code, made.content) == (201, b"")
    call("POST", f"tickets/{ticket}/tags", {"names": ["VIP", "vip"]})
    tags = sandbox.helpdesk("acme").ticket(ticket)["tags"]
    assert [tag["name"] for tag in tags] == ["vip", "VIP"]
    assert call("POST", f"tickets/{ticket}/tags", {"ids": [tags[0]["id"]]}).status_code == 201
    assert call("POST", f"tickets/{ticket}/tags", {"ids": [1]}).status_code == 400
    assert call("POST", f"tickets/{ticket}/tags", {}).status_code == 400


def test_what_does_not_exist_is_a_404_in_json(call: Call) -> None:
    for method, path in (
        ("GET", "nothing"),
        ("PATCH", "account"),
        ("GET", "widgets/1"),
        ("GET", "customers/1"),
    ):
        answer = call(method, path)
        assert answer.status_code == 404
        assert answer.json()["error"]["msg"]


def test_paths_may_end_in_a_slash_as_uris_do(call: Call) -> None:
    made = call("POST", "macros", MACRO).json()
    assert call("GET", made["uri"].removeprefix("/api/")).json() == made


def test_the_budget_is_a_leaky_bucket_per_account() -> None:
    """Of four calls in 20 seconds the fifth is 429 with the seconds to wait, and then there is room."""
    time = [100.0]
    with Sandbox(accounts=("acme", "globex"), calls_per_20_s=4, monotonic=lambda: time[0]) as sandbox:

        def call(account: str = "acme") -> requests.Response:
            token = sandbox.access_token(account, scope="account:read")
            return requests.get(
                f"{sandbox.url}/{account}/api/account",
                headers={"Authorization": f"Bearer {token}"},
                timeout=5,
            )

        limits = [call().headers["X-Gorgias-Account-Api-Call-Limit"] for _ in range(4)]
        assert limits == ["1/4", "2/4", "3/4", "4/4"]
        refused = call()
        assert refused.status_code == 429
        assert refused.headers["Retry-after"] == "5"
        assert refused.headers["X-Gorgias-Account-Api-Call-Limit"] == "4/4"
        assert refused.json()["error"]["msg"]
        assert call("globex").status_code == 200
        time[0] += 5
        assert call().status_code == 200
        assert call().status_code == 429


def test_eighty_calls_fit_by_default() -> None:
    with Sandbox(monotonic=lambda: 0.0) as ordinary:
        token = ordinary.access_token("acme", scope="account:read")
        answer = requests.get(
            f"{ordinary.url}/acme/api/account", headers={"Authorization": f"Bearer {token}"}, timeout=5
        )
        assert answer.headers["X-Gorgias-Account-Api-Call-Limit"] == "1/80"


def test_a_user_who_loses_the_admin_role_loses_the_right(sandbox: Sandbox, call: Call) -> None:
    ada = sandbox.helpdesk("acme").users()[0]["id"]
    sandbox.helpdesk("acme").set_role(ada, "agent")
    assert call("POST", "macros", MACRO).status_code == 403
    assert call("GET", f"users/{ada}").json()["role"] == {"name": "agent"}


def test_times_are_in_utc_with_an_offset(call: Call) -> None:
    made = datetime.fromisoformat(call("POST", "macros", MACRO).json()["created_datetime"])
    assert made.tzinfo == UTC


def test_a_full_disk_is_said_so_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Sandbox(data=tmp_path) as sandbox:
        token = sandbox.access_token("acme", scope=SCOPE)

        def save(name: str) -> requests.Response:
            return requests.post(
                f"{sandbox.url}/acme/api/macros",
                json=MACRO | {"name": name},
                headers={"Authorization": f"Bearer {token}"},
                timeout=5,
            )

        database = sandbox.runtime.records._database
        assert database is not None
        pages = database.execute("pragma page_count").fetchone()[0]
        database.execute(f"pragma max_page_count = {pages}")
        refused = save("x" * 100_000)
        assert refused.status_code == 500
        assert "could not keep this" in refused.json()["error"]["msg"]
        assert "Traceback" not in capsys.readouterr().err
        assert sandbox.helpdesk("acme").macros() == []
        database.execute(f"pragma max_page_count = {pages + 1000}")
        assert save("x" * 100_000).status_code == 201
    with Sandbox(data=tmp_path) as again:
        assert len(again.helpdesk("acme").macros()) == 1


def test_what_was_received_is_written_down(sandbox: Sandbox, call: Call) -> None:
    sandbox.requests.clear()
    call("POST", "macros", MACRO)
    call("GET", "macros", limit=3)
    post, get = sandbox.requests
    assert (post.account, post.method, post.path, post.status) == ("acme", "POST", "/api/macros", 201)
    assert post.json == MACRO
    assert post.headers["content-type"] == "application/json"
    assert get.query == {"limit": "3"}
    assert sandbox.requests.filter(method="GET", path=r"/api/.*") == [get]

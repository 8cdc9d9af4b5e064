"""/openapi.json is true: what is generated from it is answered as it says, with right keys, with wrong, in trouble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import text

from app import create_app
from storage.database import Database
from tests.console.steps import text_of
from tests.databases import Clock
from tests.house import House, running_house
from tests.webhooks.rivo_sends import SECRET, legacy_hex
from widget.connections import Connection

JANE = "jane@example.com"
TOKEN = "a token for metrics, long enough"
AS_DESCRIBED = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
AnyCase = Case[Any]
EXAMPLES, WITH_A_WRONG_KEY = 20, 5


@pytest.fixture
def house(sqlite_database: Database, clock: Clock) -> Iterator[House]:
    with running_house(sqlite_database.url, clock=clock, metrics_token=TOKEN) as house:
        yield house


@pytest.fixture
def connection(house: House) -> Connection:
    """A connection to the ledger, with a member in it."""
    _, connection = house.connect()
    house.add_member(connection.store, JANE, points=2_400)
    return connection


def test_whatever_is_sent_is_answered_as_described_and_never_with_an_error_of_ours(
    house: House, connection: Connection
) -> None:
    document = _document(house)
    for result in document.get_all_operations():
        operation = result.ok()
        right, *wrong = _keys(house, connection)
        _try(operation, partial(_call, house, right))
        for headers in wrong:
            _try(operation, partial(_call, house, headers), most=WITH_A_WRONG_KEY)
    assert house.lookup(connection, JANE).json()["loyalty_status"] == "Member"


def test_in_trouble_the_answers_are_as_described_too(house: House, connection: Connection) -> None:
    document = _document(house)
    right = _keys(house, connection)[0]
    with house.services.database.write() as tx:
        tx.execute(text("ALTER TABLE stores RENAME TO stores_away"))
    seen = set()
    for result in document.get_all_operations():
        operation = result.ok()

        def call(case: AnyCase) -> None:
            answer = case.call(base_url=house.url, headers=right(case), timeout=20)
            case.validate_response(answer, checks=AS_DESCRIBED)
            seen.add((case.method, case.path, answer.status_code))

        _try(operation, call, most=3, modes=(GenerationMode.POSITIVE,))
    assert ("GET", "/widget/customer", 200) in seen
    assert ("POST", "/widget/earnings", 503) in seen
    assert ("POST", "/rivo/webhooks/{connection_id}", 503) in seen


def test_every_answer_that_is_promised_to_a_button_and_a_card_is_described(house: House) -> None:
    _, rivo = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(JANE, points=120, credits="7.50", tier="Gold", dob="05-31")
    lookup, award = (_keys(house, rivo)[0](None), {"X-Api-Key": _award_key(house, rivo)})
    document = _document(house)

    def ask(**query: str) -> requests.Response:
        case = document["/widget/customer"]["GET"].Case(query=query)
        return _checked(house, case, lookup)

    def press(headers: dict[str, str] = award, **body: Any) -> requests.Response:
        case = document["/widget/earnings"]["POST"].Case(body=body, media_type="application/json")
        return _checked(house, case, headers)

    card = ask(email=JANE)
    assert card.json()["vip_tier_name"] == "Gold"
    assert ask(email="stranger@example.com").json()["loyalty_status"] == "Customer not found"
    asked = {"email": JANE, "points": 10, "award_key": card.json()["award_key"]}
    answers = [
        press(**asked),
        press(**asked),
        press(**{**asked, "points": 20}),
        press(email="stranger@example.com", points=1),
        press(email=JANE, points=0),
        press(email=JANE, store_credit="5.00"),
        press(email=JANE, points=1, reason="x" * 20_000),
        press({"X-Api-Key": "wrong"}, email=JANE, points=1),
        press(lookup, email=JANE, points=1),
    ]
    house.sandbox.faults.add(r"/merchant_api/v1/points_events", method="POST", account="rivo", kind="commit_late")
    answers.append(press(email=JANE, points=30, ticket_id="7"))
    assert [answer.status_code for answer in answers] == [200, 200, 409, 404, 422, 422, 413, 401, 401, 202]

    # A webhook, not signed and signed.
    house.services.stores.save_webhook_secret(rivo.store, secret=SECRET)
    hook = document["/rivo/webhooks/{connection_id}"]["POST"]
    case = hook.Case(path_parameters={"connection_id": rivo.id}, body=b"{}", media_type="application/json")
    assert [_checked(house, case, headers).status_code for headers in ({}, legacy_hex(b"{}"))] == [401, 200]


def test_the_document_names_every_route_that_programs_call(house: House) -> None:
    described = requests.get(f"{house.url}/openapi.json", timeout=20).json()
    assert described["servers"] == [{"url": house.url}]
    # Pages and the dance are for people.
    for_people = ("/connections/", "/oauth/", "/static/")
    routes = {
        rule.rule.replace("<int:connection_id>", "{connection_id}")
        for rule in create_app(house.services).url_map.iter_rules()
        if not rule.rule.startswith(for_people) and rule.rule not in ("/", "/api", "/sign-out", "/r/<code>")
    }
    assert set(described["paths"]) == routes
    # The card's keys are a promise to merchants' macros.
    _, connection = house.connect()
    assert set(described["components"]["schemas"]["Card"]["required"]) == set(house.lookup(connection, JANE).json())


def test_the_page_says_the_same_to_people(house: House) -> None:
    described = requests.get(f"{house.url}/openapi.json", timeout=20).json()
    page = requests.get(f"{house.url}/api", timeout=20)
    assert page.status_code == 200
    read = text_of(page.text)
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in read
            assert operation["summary"] in read
    for name, schema in described["components"]["schemas"].items():
        assert f'id="{name}"' in page.text
        for field in schema["properties"]:
            assert f"<code>{field}</code>" in page.text


def _document(house: House) -> Any:
    return schemathesis.openapi.from_url(f"{house.url}/openapi.json")


def _award_key(house: House, connection: Connection) -> str:
    return house.services.connections.newest_keys(connection.id).award


def _keys(house: House, connection: Connection) -> list[Callable[[AnyCase | None], dict[str, str]]]:
    """What a caller sends to prove itself: what is right for the operation, what is wrong, and nothing."""
    keys = house.services.connections.newest_keys(connection.id)

    def right(case: AnyCase | None) -> dict[str, str]:
        if case is not None and case.path == "/metrics":
            return {"Authorization": f"Bearer {TOKEN}"}
        return {"X-Api-Key": keys.award if case is not None and case.path == "/widget/earnings" else keys.lookup}

    return [right, lambda _: {"X-Api-Key": "wrong", "Authorization": "Bearer wrong"}, lambda _: {}]


def _call(house: House, headers: Callable[[AnyCase | None], dict[str, str]], case: AnyCase) -> None:
    _checked(house, case, headers(case))


def _checked(house: House, case: AnyCase, headers: dict[str, str]) -> requests.Response:
    answer: Any = case.call(base_url=house.url, headers=headers, timeout=20)
    case.validate_response(answer, checks=[not_a_server_error, *AS_DESCRIBED])
    return answer  # type: ignore[no-any-return]


def _try(
    operation: Any,
    call: Callable[[AnyCase], None],
    *,
    most: int = EXAMPLES,
    modes: tuple[GenerationMode, ...] = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE),
) -> None:
    """Call `operation` with what Schemathesis makes up for it, the same in every run."""
    takes_nothing = not operation.body and not list(operation.iter_parameters())
    if takes_nothing:
        most, modes = 1, (GenerationMode.POSITIVE,)

    @settings(
        max_examples=most,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes)))
    def run(case: AnyCase) -> None:
        call(case)

    run()

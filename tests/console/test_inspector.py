"""The inspector's page: what Gorgias asked, in sentences that say why a macro is blank and what to do."""

from __future__ import annotations

import re

from console.inspector import sentence_of
from loyalty.awards import Refusal
from schemas.widget import RequestFault
from tests.console.steps import text_of
from tests.house import Browser, House
from tests.oauth.test_connecting import users
from widget.connections import Connection
from widget.inspector import Inspected
from widget.room import CUSTOMER, EARNINGS, Outcome

ANA = "ana@example.com"
MEMBER = r"/merchant_api/v1/customers.*"


def page_of(browser: Browser, connection: Connection) -> str:
    return text_of(browser.get(f"/connections/{connection.id}/inspector").text)


def press(browser: Browser, connection: Connection, what: str) -> str:
    path = f"/connections/{connection.id}/inspector"
    answer = browser.submit(f"{path}/{what}", on=path, follow=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, path)
    return page_of(browser, connection)


def test_an_admin_watches_for_ten_minutes_and_reads_why_a_macro_is_blank(house: House) -> None:
    admin, connection = house.connect()
    house.add_member(connection.store, ANA, points=10)
    assert f'href="/connections/{connection.id}/inspector"' in admin.get(f"/connections/{connection.id}").text
    assert "Nothing is recorded." in page_of(admin, connection)
    told = press(admin, connection, "start")
    assert "Recording until 09:40:00 UTC; then it stops by itself." in told
    assert "Nothing has come yet." in told
    for email in (ANA, "stranger@example.com", "{{ticket.customer.email}}", "", "Ana"):
        house.lookup(connection, email)
    house.lookup(connection, params={"mail": ANA})
    house.award(connection, {"email": ANA, "points": "", "ticket_id": "7"})
    house.services.inspector.settle(10)
    shown = page_of(admin, connection)
    for sentence in (
        "Gorgias asked for a…@e….com: a member. The card and the macro variables were filled in.",
        "Gorgias asked for s…@e….com, who is not in the loyalty program.",
        "the e-mail arrived as {{ticket.customer.email}}, unresolved. The status says “Customer not found”",
        "Gorgias asked for a customer without an e-mail address",
        "What arrived as e-mail is no address (3 characters).",
        "Gorgias asked without an e-mail: the address of the integration was changed in Gorgias. Press Repair",
        "A button was pressed and refused: points invalid. Nothing was added. No points arrived",
        "mail text, 15 characters",
        "email {{ticket.customer.email}}, unresolved",
        "from python-requests",
    ):
        assert sentence in shown
    rows = re.findall(r'<tr role="row">', admin.get(f"/connections/{connection.id}/inspector").text)
    assert len(rows) == 1 + 7
    assert "@example.com" not in shown

    house.clock.advance(600)
    assert "Watch what Gorgias asks (10 minutes)" in page_of(admin, connection)
    press(admin, connection, "start")
    told = press(admin, connection, "stop")
    assert "Nothing is recorded any more." in told
    house.lookup(connection, ANA)
    house.services.inspector.settle(10)
    assert page_of(admin, connection).count("a member") == 1
    changes = text_of(admin.get("/connections/changes").text)
    assert "Started the inspector" in changes
    assert "Stopped the inspector" in changes


def test_agents_read_it_and_strangers_do_not_know_it(small_house: House) -> None:
    house = small_house
    _, connection = house.connect()
    agent = house.browser()
    agent.sign_in(user_id=users(house)["agent"])
    assert "A helpdesk admin can switch it on here." in page_of(agent, connection)
    stranger, _ = house.connect("globex")
    path = f"/connections/{connection.id}/inspector"
    assert stranger.get(path).status_code == 404
    for what in ("start", "stop"):
        assert stranger.submit(f"{path}/{what}", on="/connections/", follow=False).status_code == 404


def test_a_program_that_does_not_answer_is_told_apart_from_a_stranger(small_house: House) -> None:
    house = small_house
    admin, connection = house.connect_rivo()
    house.sandbox.faults.add(MEMBER, account="rivo", kind="status", status=503, times=None)
    press(admin, connection, "start")
    house.lookup(connection, ANA)
    house.services.inspector.settle(10)
    assert "Gorgias asked for a…@e….com, and the loyalty program did not tell in time." in page_of(admin, connection)


def test_every_outcome_there_is_has_a_sentence() -> None:
    for route, outcomes in ((CUSTOMER, Outcome), (EARNINGS, [*Outcome, *Refusal, *RequestFault])):
        for outcome in outcomes:
            for fields in ((), None):
                request = Inspected(
                    at=None,  # type: ignore[arg-type]
                    route=route,
                    outcome=outcome,
                    status=200,
                    took_ms=1,
                    fields=fields,
                    caller="",
                )
                said = sentence_of(request)
                assert said.endswith(".")
                assert not said.startswith((",", ":", " "))

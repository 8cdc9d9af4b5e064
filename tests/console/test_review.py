"""The activity of a Rivo connection: what stands there in words, and a person's decision where nobody else can tell."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from loyalty.activity import PAGE
from storage.tables import awards, connections
from tests.console.steps import (
    ANA,
    POINTS_EVENTS,
    InReview,
    activity_of,
    page_of,
    put_in_review,
    state_of,
    text_of,
)
from tests.house import Browser, House
from widget.connections import Connection


def signed_in(house: House, account: str = "acme") -> Browser:
    """The admin's browser, of now."""
    browser = house.browser()
    browser.sign_in(account)
    return browser


def press(browser: Browser, connection: Connection, operation_id: str, what: str, **fields: str) -> str:
    """Press a button of an award; the page at the end, as read."""
    answer = browser.submit(
        f"/connections/{connection.id}/awards/{operation_id}/{what}",
        fields,
        on=f"/connections/{connection.id}/activity",
        follow=False,
    )
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith(f"/connections/{connection.id}/activity")
    return text_of(browser.get(answer.headers["Location"]).text)


def in_review(house: House, **asked: Any) -> tuple[Browser, Connection, InReview]:
    _, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120, credits="0.00")
    waiting = put_in_review(house, connection, **asked)
    return signed_in(house), connection, waiting


def test_an_award_in_review_is_counted_with_a_link_and_explained(house: House) -> None:
    browser, connection, waiting = in_review(house)
    for path in ("/connections/", f"/connections/{connection.id}"):
        page = browser.get(path).text
        assert "1 award needs a decision" in text_of(page)
        assert f'href="/connections/{connection.id}/activity#{waiting.operation_id}"' in page
    page = activity_of(browser, connection)
    assert "? needs a decision" in page
    assert "Nothing is sent again by itself." in page
    for sentence in (
        "Look again asks Rivo once more.",
        "Mark applied says that you have seen it in Rivo.",
        "Mark not applied says that you are sure it is not in Rivo.",
    ):
        assert sentence in page


def test_looking_again_finds_what_rivo_did_at_last(house: House) -> None:
    browser, connection, waiting = in_review(house)
    page = press(browser, connection, waiting.operation_id, "look")
    assert "Rivo shows nothing of this award." in page
    assert "Nothing was changed." in page
    assert state_of(house, waiting.operation_id) == "needs_review"
    waiting.fault.commit()
    page = press(browser, connection, waiting.operation_id, "look")
    assert "Found: Rivo has this award, so it counts as applied. New balance: 170 points." in page
    assert "applied found in Rivo later" in page
    assert "? needs a decision" not in page
    assert len(house.sandbox.rivo("northwind").events(ANA)) == 1
    page = press(browser, connection, waiting.operation_id, "look")
    assert "This award no longer waits for a decision. Nothing was changed." in page


def test_looking_again_while_rivo_is_away_or_refuses_the_key_changes_nothing(house: House) -> None:
    browser, connection, waiting = in_review(house)
    house.sandbox.faults.add(POINTS_EVENTS, method="GET", account="rivo", kind="status", status=503)
    page = press(browser, connection, waiting.operation_id, "look")
    assert "Rivo cannot be reached right now. Try again in a minute. Nothing was changed." in page
    house.sandbox.faults.add(POINTS_EVENTS, method="GET", account="rivo", kind="status", status=422)
    page = press(browser, connection, waiting.operation_id, "look")
    assert "Rivo did not want to tell. Look for the award there yourself, then mark it." in page
    house.sandbox.rivo("northwind").regenerate_key()
    page = press(browser, connection, waiting.operation_id, "look")
    assert "Rivo refuses the key of this connection. Paste the present one under “Rivo key”" in page
    assert state_of(house, waiting.operation_id) == "needs_review"


def test_two_people_who_look_at_once_do_not_get_in_each_others_way(small_house: House) -> None:
    browser, connection, waiting = in_review(small_house)
    with small_house.services.database.write() as tx:
        held = {"lease_owner": "another", "lease_until": small_house.clock() + timedelta(seconds=60)}
        tx.execute(update(awards).where(awards.c.operation_id == waiting.operation_id).values(**held))
    page = press(browser, connection, waiting.operation_id, "look")
    assert "Somebody else is looking at this award just now." in page
    assert state_of(small_house, waiting.operation_id) == "needs_review"


@pytest.mark.parametrize(
    ("answer", "state", "told"),
    [
        ("yes", "applied", "Marked as applied. Nothing was sent"),
        ("no", "rejected", "Marked as not applied. Nothing was sent; an agent may add it again."),
    ],
)
def test_a_person_decides_and_their_name_stands_there(house: House, answer: str, state: str, told: str) -> None:
    browser, connection, waiting = in_review(house)
    page = press(browser, connection, waiting.operation_id, "mark", applied=answer)
    assert told in page
    assert re.search(rf"{state} marked by ada ?@acme.example", page)
    assert state_of(house, waiting.operation_id) == state
    assert house.sandbox.rivo("northwind").events(ANA) == []
    assert "decision" not in text_of(browser.get("/connections/").text)
    page = press(browser, connection, waiting.operation_id, "mark", applied="yes")
    assert "This award no longer waits for a decision. Nothing was changed." in page


@pytest.mark.parametrize("answer", ["", "maybe", "YES"])
def test_a_decision_is_yes_or_no(small_house: House, answer: str) -> None:
    browser, connection, waiting = in_review(small_house)
    page = press(browser, connection, waiting.operation_id, "mark", applied=answer)
    assert "Press either Mark applied or Mark not applied." in page
    assert state_of(small_house, waiting.operation_id) == "needs_review"


def test_only_what_waits_can_be_decided(small_house: House) -> None:
    browser, connection = small_house.connect_rivo()
    small_house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    applied = small_house.award(connection, {"email": ANA, "points": 50}).json()["operation_id"]
    assert "no longer waits" in press(browser, connection, applied, "look")
    assert "no longer waits" in press(browser, connection, applied, "mark", applied="no")
    for made_up in ("an-award", "td_" + "a" * 24):
        assert "This connection has no such award." in press(browser, connection, made_up, "look")
        assert "This connection has no such award." in press(browser, connection, made_up, "mark", applied="no")
    assert state_of(small_house, applied) == "applied"


def test_an_award_in_review_on_an_older_page_is_one_click_away_and_the_button_leads_back(small_house: House) -> None:
    house = small_house
    browser, connection, waiting = in_review(house)
    _many(house, connection, PAGE + 5)
    browser = signed_in(house)
    first = browser.get(f"/connections/{connection.id}/activity").text
    assert "1 award needs a decision on another page." in text_of(first)
    found = re.search(rf'href="(/connections/{connection.id}/activity\?before=[^"#]+)#{waiting.operation_id}"', first)
    assert found is not None
    assert f'href="{found[1]}#' in browser.get("/connections/").text
    page = browser.get(found[1])
    rows = re.findall(r'<tr role="row" id="(td_\w+)"', page.text)
    assert rows[0] == waiting.operation_id
    before = found[1].partition("before=")[2]
    assert f'name="before" value="{before}"' in page.text
    answer = browser.submit(
        f"/connections/{connection.id}/awards/{waiting.operation_id}/mark",
        {"applied": "no", "before": before},
        on=found[1],
        follow=False,
    )
    assert answer.headers["Location"] == found[1]
    answer = browser.submit(
        f"/connections/{connection.id}/awards/{waiting.operation_id}/mark",
        {"applied": "no", "before": "https://evil.example/"},
        on=found[1],
        follow=False,
    )
    assert answer.headers["Location"] == f"/connections/{connection.id}/activity"


@pytest.mark.parametrize("newer", [PAGE - 1, PAGE])
def test_the_link_leads_to_the_page_on_which_the_award_stands(small_house: House, newer: int) -> None:
    house = small_house
    browser, connection, waiting = in_review(house)
    _many(house, connection, newer)
    browser = signed_in(house)
    page = browser.get("/connections/").text
    found = re.search(rf'href="([^"]+)#{waiting.operation_id}"', page)
    assert found is not None
    assert ("before=" in found[1]) is (newer == PAGE)
    assert f'id="{waiting.operation_id}"' in browser.get(found[1]).text


def test_every_state_stands_there_in_words_with_how_it_came_about(house: House) -> None:
    browser, connection = house.connect_rivo()
    store = house.sandbox.rivo("northwind")
    store.add_customer(ANA, points=120)
    # Refused in Rivo's own words, while the card still says otherwise.
    assert house.balance(connection, ANA) == 120
    store.update_customer(ANA, status="excluded")
    assert house.award(connection, {"email": ANA, "points": 10, "ticket_id": "1"}).status_code == 422
    store.update_customer(ANA, status="member")
    house.clock.advance(61)
    # No answer came, and it was not there: sent once more.
    house.sandbox.faults.add(POINTS_EVENTS, method="POST", account="rivo", kind="reset_before")
    assert house.award(connection, {"email": ANA, "points": 20, "ticket_id": "2"}).status_code == 202
    assert "… being confirmed" in activity_of(browser, connection)
    for _ in range(20):
        house.clock.advance(20)
        house.work()
    page = activity_of(browser, connection)
    assert "✓ applied sent 2 times" in page
    assert "✕ rejected" in page
    assert "excluded" in page.partition("✕ rejected")[2]
    # Done, and no answer came: found by itself.
    house.sandbox.faults.add(POINTS_EVENTS, method="POST", account="rivo", kind="reset_after")
    assert house.award(connection, {"email": ANA, "points": 30, "ticket_id": "3"}).status_code == 202
    house.clock.advance(20)
    house.work()
    assert "✓ applied found in Rivo later" in activity_of(browser, connection)
    assert [event["points_diff"] for event in store.events(ANA)] == [20, 30]
    # Not sent, since Rivo asked to wait.
    house.sandbox.faults.add(POINTS_EVENTS, method="POST", account="rivo", kind="rate_limited", retry_after=60)
    assert house.award(connection, {"email": ANA, "points": 40, "ticket_id": "4"}).status_code == 202
    assert "… being sent" in activity_of(browser, connection)
    assert "being sent" in page_of(browser, connection)


@pytest.mark.parametrize("settled_by", ["webhook", "person"])
def test_an_award_says_who_settled_it(small_house: House, settled_by: str) -> None:
    house = small_house
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120)
    operation_id = house.award(connection, {"email": ANA, "points": 50}).json()["operation_id"]
    by = house.services.sealer.seal("boss@acme.example")
    with house.services.database.write() as tx:
        tx.execute(
            update(awards)
            .where(awards.c.operation_id == operation_id)
            .values(settled_by=settled_by, marked_by_sealed=by if settled_by == "person" else None)
        )
    told = {"webhook": "told by a webhook of Rivo", "person": "marked by boss @acme.example"}[settled_by]
    assert told in activity_of(browser, connection)


def test_store_credit_stands_there_as_an_amount_and_can_be_undone(house: House) -> None:
    browser, connection = house.connect_rivo()
    house.sandbox.rivo("northwind").add_customer(ANA, points=120, credits="1.00")
    with house.services.database.write() as tx:
        limits = {"max_credit_cents_per_award": 2_000_00, "max_credit_cents_per_day": 2_000_00}
        tx.execute(update(connections).where(connections.c.id == connection.id).values(**limits))
    answer = house.award(connection, {"email": ANA, "store_credit": "1250,5", "ticket_id": "7"}).json()
    page = browser.get(f"/connections/{connection.id}/activity").text
    assert "+1,250.50 store credit points balance 120" in text_of(page)
    assert f'aria-label="Undo 1,250.50 store credit for {ANA}"' in page
    assert "+1,250.50 store credit" in page_of(browser, connection)
    page = press(browser, connection, answer["operation_id"], "undo")
    assert "Took back 1,250.50 store credit." in page
    assert "-1,250.50 store credit" in page


def test_an_undo_that_is_being_confirmed_or_cannot_be_tried_says_so(house: House) -> None:
    browser, connection = house.connect_rivo()
    store = house.sandbox.rivo("northwind")
    store.add_customer(ANA, points=120)
    operation_id = house.award(connection, {"email": ANA, "points": 50, "ticket_id": "7"}).json()["operation_id"]
    other = house.award(connection, {"email": ANA, "points": 60, "ticket_id": "8"}).json()["operation_id"]
    house.sandbox.faults.add(POINTS_EVENTS, method="POST", account="rivo", kind="reset_after")
    page = press(browser, connection, operation_id, "undo")
    assert "The undo of 50 points is being confirmed; do not repeat it." in page
    assert "undo not settled:" in page
    assert "undone by" not in page
    assert "· undone" not in page_of(browser, connection)
    house.clock.advance(20)
    house.work()
    assert "undone by" in activity_of(browser, connection)
    assert "· undone" in page_of(browser, connection)
    store.regenerate_key()
    page = press(browser, connection, other, "undo")
    assert "Rivo refuses the key of this connection." in page
    assert "Nothing was changed." in page
    assert "Rivo refuses the key of this connection." in press(browser, connection, other, "undo")
    assert [event["points_diff"] for event in store.events(ANA)] == [50, 60, -50]


def test_an_agent_sees_what_waits_and_no_buttons(small_house: House) -> None:
    _, connection, _ = in_review(small_house)
    agent = small_house.browser()
    ben = next(u["id"] for u in small_house.sandbox.helpdesk("acme").users() if u["role"]["name"] == "agent")
    agent.sign_in("acme", user_id=ben)
    page = agent.get(f"/connections/{connection.id}/activity").text
    assert "A helpdesk admin looks into the customer’s events in Rivo and decides here." in text_of(page)
    assert "Look again" not in page


def _many(house: House, connection: Connection, count: int) -> None:
    """Awards after the one in review."""
    for number in range(count):
        house.clock.advance(1)
        answer = house.award(connection, {"email": ANA, "points": 1, "ticket_id": str(1000 + number)})
        assert answer.status_code == 200, answer.text

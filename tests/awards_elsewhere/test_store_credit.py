"""Store credit: off until an admin allows it, within its own limits, otherwise an award like any other."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from loyalty.awards import AwardResult, Status
from sandbox.rivo_shapes import RivoShapes
from tests.awards_elsewhere.shop import ANA, Shop, ledger_connection
from widget.sentences import result_sentence


def allow(shop: Shop, *, award: int = 2_000, day: int = 5_000) -> None:
    """An admin allows store credit, in hundredths."""
    shop.rule(max_credit_cents_per_award=award, max_credit_cents_per_day=day)


def refused(shop: Shop, amount: Any = "5.00", **fields: Any) -> dict[str, Any]:
    answer = shop.credit(amount, **fields)
    assert answer.status_code == 422, answer.text
    told: dict[str, Any] = answer.json()
    assert told["status"] == "rejected"
    assert told["message"].endswith("Nothing was added.")
    return told


def test_store_credit_is_off_until_it_is_allowed(shop: Shop) -> None:
    assert refused(shop) == {
        "status": "rejected",
        "reason": "credit_not_allowed",
        "message": "Store credit cannot be given from this helpdesk. An admin can allow it on the connection's page. "
        "Nothing was added.",
    }
    assert shop.awards() == 0
    assert shop.applied(50), "points are as before"


@pytest.mark.parametrize("shapes", [RivoShapes(), RivoShapes(credits_as="number", create="empty")])
def test_store_credit_is_given_and_shown(shop: Shop, shapes: RivoShapes) -> None:
    allow(shop)
    shop.rivo.shapes = shapes
    assert shop.card()["store_credit_balance"] == "25.00"
    answer = shop.credit("5.50", reason="Late parcel")
    assert answer.status_code == 200
    done = answer.json()["operation_id"]
    assert answer.json() == {
        "status": "applied",
        "message": "Added 5.50 store credit. Points balance: 100 points.",
        "points_balance": 100,
        "operation_id": done,
    }
    assert shop.book() == [(done, 0, Decimal("5.50"))]
    card = shop.card()
    assert (card["store_credit_balance"], card["points_balance"]) == ("30.50", 100)
    assert card["recent_activity"] == [], "the activity is of points"
    row = shop.row(done)
    assert (row.points, row.credit_cents, row.balance_after) == (0, 550, 100)


@pytest.mark.parametrize(
    ("amount", "cents"),
    [("5", 500), ("5.5", 550), ("5,50", 550), (" 5.00 ", 500), (5, 500), (5.5, 550), ("0.01", 1), ("020.00", 2000)],
)
def test_amounts_are_read_as_people_write_them(small_shop: Shop, amount: Any, cents: int) -> None:
    allow(small_shop)
    answer = small_shop.credit(amount)
    assert answer.status_code == 200, answer.text
    assert small_shop.row(answer.json()["operation_id"]).credit_cents == cents
    assert small_shop.book()[0][2] == Decimal(cents) / 100


def test_the_form_and_the_query_are_read_like_json(small_shop: Shop) -> None:
    allow(small_shop)
    fields = {"email": ANA, "store_credit": "3,25", "ticket_id": "7"}
    assert small_shop.house.award(small_shop.connection, data=fields).status_code == 200
    assert small_shop.house.award(small_shop.connection, params={**fields, "ticket_id": "8"}).status_code == 200
    assert [credits for _, _, credits in small_shop.book()] == [Decimal("3.25")] * 2


@pytest.mark.parametrize(
    "amount",
    ["0", "0.00", "-5", "5.001", "5.", ".5", "1e3", "five", "5 00", "١", "NaN", "1,000.00", [5], {"a": 1}, True],
)
def test_what_is_no_amount_is_told(small_shop: Shop, amount: Any) -> None:
    allow(small_shop)
    told = refused(small_shop, amount)
    assert told["reason"] == "credit_invalid"
    assert "such as 5 or 5.00" in told["message"]
    assert small_shop.awards() == 0


def test_points_and_store_credit_together_are_refused(small_shop: Shop) -> None:
    allow(small_shop)
    told = refused(small_shop, "5", points=50)
    assert (told["reason"], told["message"]) == (
        "credit_invalid",
        "Enter points or store credit, not both. Nothing was added.",
    )
    assert small_shop.awards() == 0


@pytest.mark.parametrize("empty", ["", None, "{{credit}}", " "])
def test_an_empty_field_of_store_credit_leaves_an_award_of_points(small_shop: Shop, empty: Any) -> None:
    allow(small_shop)
    answer = small_shop.press(50, store_credit=empty)
    assert answer.status_code == 200
    assert small_shop.book()[0][1:] == (50, Decimal(0))


@pytest.mark.parametrize("empty", ["", None, "{{points}}"])
def test_an_empty_field_of_points_leaves_an_award_of_store_credit(small_shop: Shop, empty: Any) -> None:
    allow(small_shop)
    assert small_shop.credit("5", points=empty).status_code == 200


def test_the_limits_of_an_award_and_of_a_day_hold(shop: Shop) -> None:
    allow(shop, award=2_000, day=5_000)
    told = refused(shop, "20.01")
    assert (told["reason"], told["message"]) == (
        "credit_above_award_cap",
        "20.01 store credit is too much for one award; the limit is 20.00 store credit. Nothing was added.",
    )
    for ticket in (1, 2):
        assert shop.credit("20.00", ticket_id=ticket).status_code == 200
    told = refused(shop, "10.01", ticket_id=3)
    assert told["reason"] == "credit_above_connection_cap"
    assert "has given 40.00 store credit today; its limit is 50.00 store credit a day (UTC)" in told["message"]
    assert shop.credit("10.00", ticket_id=3).status_code == 200
    assert refused(shop, "0.01", ticket_id=4)["reason"] == "credit_above_connection_cap"
    shop.clock.advance(24 * 3600)
    assert shop.credit("20", ticket_id=4).status_code == 200, "another day"


def test_unsettled_store_credit_counts_and_undone_does_not(shop: Shop) -> None:
    allow(shop, award=2_000, day=3_000)
    shop.card()
    shop.fault("reset_before")
    unknown = shop.credit("20", ticket_id=1)
    assert unknown.status_code == 202
    assert refused(shop, "10.01", ticket_id=2)["reason"] == "credit_above_connection_cap"
    shop.work(120)
    assert shop.state(unknown.json()["operation_id"]) == "applied"
    assert not isinstance(shop.undo(unknown.json()["operation_id"]), str)
    assert shop.credit("20", ticket_id=3).status_code == 200


def test_points_do_not_use_up_store_credit_nor_the_other_way_round(shop: Shop) -> None:
    allow(shop, award=500, day=500)
    shop.rule(max_points_per_day=60, max_points_per_agent_per_day=60)
    assert shop.applied(60, ticket_id=1)
    assert shop.credit("5", ticket_id=2).status_code == 200
    assert shop.press(1, ticket_id=3).json()["reason"] == "points_above_agent_cap"


def test_a_double_click_gives_store_credit_once(shop: Shop) -> None:
    allow(shop)
    first = shop.credit("5")
    second = shop.credit("5,00")
    assert second.json()["status"] == "already_applied"
    assert second.json()["operation_id"] == first.json()["operation_id"]
    assert "5.00 store credit" in second.json()["message"]
    third = shop.credit("6")
    assert third.json()["status"] == "applied", "another amount is another award"
    assert shop.press(5).json()["status"] == "applied", "and so are points"
    assert [(points, credits) for _, points, credits in shop.book()] == [
        (0, Decimal("5.00")),
        (0, Decimal("6.00")),
        (5, Decimal("0.0")),
    ]


def test_the_key_of_a_card_used_for_store_credit_is_not_taken_for_points(shop: Shop) -> None:
    allow(shop)
    key = shop.card()["award_key"]
    assert shop.credit("5", award_key=key).status_code == 200
    assert shop.press(5, award_key=key).status_code == 409
    assert shop.credit("7", award_key=key).status_code == 409
    assert shop.credit("5", award_key=key).json()["status"] == "already_applied"


@pytest.mark.parametrize("kind", ["reset_after", "html_after"])
def test_store_credit_whose_answer_was_lost_is_found_and_not_given_twice(shop: Shop, kind: str) -> None:
    allow(shop)
    shop.card()
    shop.fault(kind)
    answer = shop.credit("5")
    assert answer.status_code == 202
    assert answer.json()["message"].startswith(
        "The award of 5.00 store credit is being confirmed; do not add it again."
    )
    shop.work(20)
    assert shop.state(answer.json()["operation_id"]) == "applied"
    assert [credits for _, _, credits in shop.book()] == [Decimal("5.00")]
    assert shop.card()["store_credit_balance"] == "30.00"


def test_the_programs_own_word_settles_store_credit_of_that_amount_only(shop: Shop) -> None:
    allow(shop)
    shop.card()
    shop.fault("reset_before")
    done = shop.credit("5").json()["operation_id"]
    seen, store = shop.house.services.delivery.seen, shop.connection.store
    assert not seen(store, operation_id=done, points=0, credit_cents=501)
    assert not seen(store, operation_id=done, points=500, credit_cents=0)
    assert seen(store, operation_id=done, points=0, credit_cents=500)


def test_store_credit_is_taken_back_by_an_undo(shop: Shop) -> None:
    allow(shop)
    done = shop.credit("5.50").json()["operation_id"]
    result = shop.undo(done)
    assert isinstance(result, AwardResult)
    assert (result.status, result.points, result.credit_cents) == (Status.APPLIED, 0, -550)
    assert result_sentence(result) == "Took back 5.50 store credit. Points balance: 100 points."
    assert [credits for _, _, credits in shop.book()] == [Decimal("5.50"), Decimal("-5.50")]
    assert shop.card()["store_credit_balance"] == "25.00"


@pytest.mark.parametrize("allowed", [0, 2_000])
def test_the_built_in_ledger_gives_no_store_credit_whatever_its_settings_say(small_shop: Shop, allowed: int) -> None:
    ledger = Shop(house=small_shop.house, connection=ledger_connection(small_shop.house))
    ledger.rule(max_credit_cents_per_award=allowed, max_credit_cents_per_day=allowed)
    ledger.house.add_member(ledger.connection.store, ANA, points=10)
    assert refused(ledger)["reason"] == "credit_not_allowed"
    assert ledger.awards() == 0

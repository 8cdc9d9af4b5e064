"""Undo at a program elsewhere: a negative event under an operation id of its own, once."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest

from loyalty.activity import AwardRecord, recent_awards
from loyalty.awards import AwardResult, Status
from loyalty.journal import AwardState
from sandbox.rivo_shapes import RivoShapes
from tests.awards.test_at_once import at_once
from tests.awards_elsewhere.shop import ANA, Shop
from tests.awards_elsewhere.test_outcomes import in_review


def undone(shop: Shop, operation_id: str) -> AwardResult:
    """An undo that must not be refused."""
    result = shop.undo(operation_id)
    assert isinstance(result, AwardResult), result
    return result


def test_an_undo_is_a_negative_event_with_an_operation_id_of_its_own(shop: Shop) -> None:
    done = shop.applied(50)
    result = undone(shop, done)
    assert (result.status, result.points, result.points_balance) == (Status.APPLIED, -50, 100)
    assert shop.book() == [(done, 50, Decimal(0)), (result.operation_id, -50, Decimal(0))]
    row = shop.row(result.operation_id)
    assert (row.reverses, row.state, row.ticket_id, row.agent_proof) == (done, "applied", "7", "proven")
    card = shop.card()
    assert card["points_balance"] == 100
    assert [entry["points"] for entry in card["recent_activity"]] == [-50, 50]
    shop.clock.advance(60)
    assert [entry["points"] for entry in shop.refreshed()["recent_activity"]] == [-50, 50]


def test_an_undo_that_is_unknown_is_found_and_until_then_no_other_is_taken(shop: Shop) -> None:
    done = shop.applied(50)
    shop.fault("reset_after")
    result = undone(shop, done)
    assert result.status is Status.BEING_CONFIRMED
    assert shop.state(result.operation_id) == "unknown"
    assert shop.undo(done) == "already_undone"
    shop.work(20)
    row = shop.row(result.operation_id)
    assert (row.state, row.settled_by, row.balance_after) == ("applied", "found", 100)
    assert [points for _, points, _ in shop.book()] == [50, -50]
    assert shop.undo(done) == "already_undone"


def test_an_undo_that_rivo_never_had_is_sent_again(shop: Shop) -> None:
    done = shop.applied(50)
    shop.fault("reset_before")
    result = undone(shop, done)
    shop.work(120)
    assert shop.state(result.operation_id) == "applied"
    assert [points for _, points, _ in shop.book()] == [50, -50]


def test_an_undo_that_rivo_refused_can_be_tried_again(shop: Shop) -> None:
    shop.rivo.shapes = RivoShapes(overdraft="refused")
    done = shop.applied(50)
    # The shopper spent it meanwhile.
    shop.rivo.add_event(ANA, points=-140)
    assert shop.undo(done) == "program_refused"
    assert shop.undo(done) == "program_refused"
    assert shop.awards() == 3
    shop.rivo.add_event(ANA, points=100)
    result = undone(shop, done)
    assert result.status is Status.APPLIED
    assert [points for _, points, _ in shop.book()] == [50, -50]
    assert shop.undo(done) == "already_undone"
    shown = {record.operation_id: record for record in _activity(shop)}
    assert len(shown) == 4, "an award with two refused undoes is one row"
    assert shown[done].undone_by == result.operation_id
    assert not shown[done].can_be_undone


def test_an_award_whose_undo_was_refused_still_counts_as_there(shop: Shop) -> None:
    shop.rivo.shapes = RivoShapes(overdraft="refused")
    done = shop.applied(50)
    shop.rivo.add_event(ANA, points=-140)
    shop.undo(done)
    again = shop.press(50)
    assert (again.json()["status"], again.json()["operation_id"]) == ("already_applied", done)
    assert next(record for record in _activity(shop) if record.operation_id == done).can_be_undone


def test_an_undo_of_an_undo_is_refused(shop: Shop) -> None:
    result = undone(shop, shop.applied(50))
    assert shop.undo(result.operation_id) == "not_applied"
    assert len(shop.book()) == 2


def test_only_what_is_applied_can_be_undone(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_before")
    unknown = shop.queued(50, ticket_id=1)
    assert shop.undo(unknown) == "not_applied"
    shop.fault("rate_limited", retry_after=30)
    pending = shop.queued(50, ticket_id=2)
    assert shop.undo(pending) == "not_applied"
    assert shop.undo("td_" + "a" * 24) == "award_not_found"
    assert shop.undo("td_nonsense") == "award_not_found"


def test_what_waits_for_a_person_cannot_be_undone(shop: Shop) -> None:
    assert shop.undo(in_review(shop)) == "not_applied"


def test_undoing_at_once_takes_back_once(shop: Shop) -> None:
    done = shop.applied(50)
    results = at_once(5, lambda _: shop.undo(done))
    assert Counter(type(result).__name__ for result in results) == {"AwardResult": 1, "str": 4}
    assert {result for result in results if isinstance(result, str)} == {"already_undone"}
    assert [points for _, points, _ in shop.book()] == [50, -50]


def test_what_was_undone_may_be_given_again_at_once(shop: Shop) -> None:
    done = shop.applied(50)
    undone(shop, done)
    assert shop.applied(50) != done
    assert shop.card()["points_balance"] == 150


def test_while_an_undo_is_unknown_the_award_still_stands(shop: Shop) -> None:
    done = shop.applied(50)
    shop.fault("reset_before")
    undone(shop, done)
    assert shop.press(50).json()["operation_id"] == done


def test_an_undo_while_the_key_is_refused_changes_nothing(shop: Shop) -> None:
    done = shop.applied(50)
    shop.rivo.regenerate_key()
    assert shop.undo(done) == "key_refused"
    assert [points for _, points, _ in shop.book()] == [50]
    made = shop.awards()
    assert shop.undo(done) == "key_refused"
    assert shop.awards() == made, "and where it is known before, nothing is recorded"
    shop.house.services.stores.replace_key(shop.connection.store, account="acme", key=shop.rivo.key)
    assert undone(shop, done).status is Status.APPLIED


@pytest.mark.parametrize("kind", ["reset_after", "status_after", "html_after"])
def test_a_lost_answer_to_an_undo_never_takes_twice(shop: Shop, kind: str) -> None:
    done = shop.applied(50)
    shop.fault(kind)
    result = undone(shop, done)
    shop.work(120)
    assert shop.state(result.operation_id) is AwardState.APPLIED
    assert [points for _, points, _ in shop.book()] == [50, -50]
    assert shop.card()["points_balance"] == 100


def _activity(shop: Shop) -> list[AwardRecord]:
    services = shop.house.services
    return recent_awards(services.database, sealer=services.sealer, connection_id=shop.connection.id)

"""What only a person can tell: look again, mark applied, mark not applied."""

from __future__ import annotations

from collections import Counter

import pytest

from loyalty.activity import recent_awards
from loyalty.awards import AwardRefused, Refusal
from loyalty.delivery import Confirmation
from loyalty.journal import AwardState
from loyalty.program import ProgramReason, ProgramUnavailable
from tests.awards.test_at_once import at_once
from tests.awards_elsewhere.shop import ANA, EVENTS, Shop
from tests.awards_elsewhere.test_outcomes import in_review

ADMIN = "admin@acme.example"


def look(shop: Shop, operation_id: str) -> Confirmation:
    awards = shop.house.services.awards
    return awards.look_again(operation_id=operation_id, connection_id=shop.connection.id).outcome


def mark(shop: Shop, operation_id: str, *, applied: bool, connection_id: int | None = None) -> None:
    shop.house.services.awards.mark(
        operation_id=operation_id, connection_id=connection_id or shop.connection.id, applied=applied, by=ADMIN
    )


def test_looking_again_finds_what_arrived_meanwhile(shop: Shop) -> None:
    done = in_review(shop)
    shop.rivo.add_event(ANA, points=50, source="manual", internal_note=f"Tallydesk {done}: Added by support")
    assert look(shop, done) is Confirmation.FOUND
    row = shop.row(done)
    assert (row.state, row.settled_by, row.balance_after) == ("applied", "found", 150)
    assert shop.card()["points_balance"] == 150


def test_looking_again_sends_nothing_and_leaves_what_is_absent_in_review(shop: Shop) -> None:
    done = in_review(shop)
    posts = shop.calls(EVENTS, "POST")
    for _ in range(3):
        assert look(shop, done) is Confirmation.ABSENT
        assert shop.state(done) is AwardState.NEEDS_REVIEW
        shop.work(300, step_s=30)
    assert shop.calls(EVENTS, "POST") == posts
    row = shop.row(done)
    assert (row.state, row.lease_owner) == ("needs_review", None)


def test_looking_again_while_rivo_is_down_says_so_and_changes_nothing(shop: Shop) -> None:
    done = in_review(shop)
    shop.fault("status", method="GET", status=503)
    found = shop.house.services.awards.look_again(operation_id=done, connection_id=shop.connection.id)
    assert found.outcome is Confirmation.PROGRAM_UNAVAILABLE
    assert isinstance(found.error, ProgramUnavailable)
    assert found.error.reason is ProgramReason.SERVER_ERROR
    assert shop.state(done) is AwardState.NEEDS_REVIEW
    assert look(shop, done) is Confirmation.ABSENT


@pytest.mark.parametrize("applied", [True, False])
def test_a_persons_word_decides(shop: Shop, applied: bool) -> None:
    done = in_review(shop)
    mark(shop, done, applied=applied)
    row = shop.row(done)
    assert (row.state, row.settled_by) == ("applied" if applied else "rejected", "person")
    services = shop.house.services
    (record,) = recent_awards(services.database, sealer=services.sealer, connection_id=shop.connection.id)
    assert record.marked_by == ADMIN
    assert ADMIN not in repr(row)
    posts = shop.calls(EVENTS, "POST")
    shop.work(300, step_s=30)
    assert shop.calls(EVENTS, "POST") == posts, "nothing is sent because of it"
    with pytest.raises(AwardRefused) as refused:
        mark(shop, done, applied=not applied)
    assert refused.value.reason is Refusal.NOT_IN_REVIEW
    with pytest.raises(AwardRefused):
        look(shop, done)


def test_what_was_marked_not_applied_may_be_given_again(shop: Shop) -> None:
    done = in_review(shop)
    assert shop.press(50).status_code == 202
    mark(shop, done, applied=False)
    again = shop.applied(50)
    assert again != done
    assert [operation_id for operation_id, _, _ in shop.book()] == [again]


def test_what_was_marked_applied_can_be_undone_and_counts(shop: Shop) -> None:
    done = in_review(shop)
    shop.rule(max_points_per_agent_per_day=60)
    assert shop.press(20, ticket_id=9).json()["reason"] == "points_above_agent_cap"
    mark(shop, done, applied=True)
    assert shop.press(20, ticket_id=9).json()["reason"] == "points_above_agent_cap"
    assert not isinstance(shop.undo(done), str)
    assert [points for _, points, _ in shop.book()] == [-50]


def test_two_words_at_once_are_one(shop: Shop) -> None:
    done = in_review(shop)

    def say(number: int) -> str:
        try:
            mark(shop, done, applied=number % 2 == 0)
        except AwardRefused as error:
            return error.reason
        return "said"

    assert Counter(at_once(6, say)) == {"said": 1, "not_in_review": 5}
    assert shop.state(done) in ("applied", "rejected")


@pytest.mark.parametrize("applied", [True, False])
def test_only_what_waits_for_a_person_can_be_marked(shop: Shop, applied: bool) -> None:
    done = shop.applied(50, ticket_id=1)
    shop.fault("reset_before")
    unknown = shop.queued(50, ticket_id=2)
    shop.fault("rate_limited", retry_after=30)
    pending = shop.queued(50, ticket_id=3)
    for operation_id in (done, unknown, pending):
        before = shop.state(operation_id)
        with pytest.raises(AwardRefused) as refused:
            mark(shop, operation_id, applied=applied)
        assert refused.value.reason is Refusal.NOT_IN_REVIEW
        with pytest.raises(AwardRefused):
            look(shop, operation_id)
        assert shop.state(operation_id) is before


@pytest.mark.parametrize("operation_id", ["", "td_nonsense", "td_" + "a" * 24, "' OR 1=1 --"])
def test_an_award_that_is_not_there_can_be_neither_looked_at_nor_marked(shop: Shop, operation_id: str) -> None:
    for act in (lambda: look(shop, operation_id), lambda: mark(shop, operation_id, applied=True)):
        with pytest.raises(AwardRefused) as refused:
            act()
        assert refused.value.reason is Refusal.AWARD_NOT_FOUND


def test_the_next_card_after_a_persons_word_asks_rivo(shop: Shop) -> None:
    done = in_review(shop)
    shop.refreshed()
    shop.rivo.add_event(ANA, points=50, source="manual")
    shop.clock.advance(1)
    mark(shop, done, applied=True)
    assert shop.refreshed()["points_balance"] == 150

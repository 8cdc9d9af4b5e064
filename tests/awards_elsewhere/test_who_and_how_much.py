"""Who may be given points at a program elsewhere, and how much, in every state that an award can be in."""

from __future__ import annotations

import pytest

from tests.awards_elsewhere.shop import ANA, Shop


@pytest.mark.parametrize(
    ("status", "reason"), [("excluded", "member_excluded"), ("guest", "member_guest"), ("unknown", "member_not_found")]
)
def test_whoever_cannot_be_given_points_is_told_before_anything_is_sent(shop: Shop, status: str, reason: str) -> None:
    email = f"{status}@example.com"
    if status != "unknown":
        shop.rivo.add_customer(email, status=status)
    answer = shop.press(50, email=email)
    assert (answer.status_code, answer.json()["reason"]) == (404 if status == "unknown" else 422, reason)
    assert answer.json()["message"].endswith("Nothing was added.")
    assert shop.awards() == 0
    assert shop.calls("/merchant_api/v1/points_events", "POST") == 0


def test_guests_may_be_given_points_where_an_admin_allows_it(shop: Shop) -> None:
    shop.rivo.add_customer("guest@example.com", status="guest")
    shop.rule(allow_guests=True)
    assert shop.card("guest@example.com")["loyalty_status"] == "Guest"
    assert shop.applied(50, email="guest@example.com")


def test_unsettled_awards_count_towards_the_limits_and_rejected_ones_do_not(shop: Shop) -> None:
    shop.rule(max_points_per_agent_per_day=100)
    shop.card()
    shop.fault("reset_before")
    shop.queued(60, ticket_id=1)
    refused = shop.press(50, ticket_id=2)
    assert (refused.status_code, refused.json()["reason"]) == (422, "points_above_agent_cap")
    shop.fault("rate_limited", retry_after=40)
    shop.queued(40, ticket_id=3)
    assert shop.press(1, ticket_id=4).json()["reason"] == "points_above_agent_cap"
    shop.work(180)
    assert sorted(points for _, points, _ in shop.book()) == [40, 60]
    shop.clock.advance(24 * 3600)
    shop.refreshed()
    shop.rivo.update_customer(ANA, status="excluded")
    assert shop.press(100, ticket_id=5).json()["reason"] == "program_refused"
    shop.rivo.update_customer(ANA, status="member")
    shop.clock.advance(61)
    shop.refreshed()
    assert shop.applied(100, ticket_id=6)


def test_the_limit_of_a_connection_counts_all_agents(shop: Shop) -> None:
    shop.rule(max_points_per_day=100)
    shop.applied(60, agent_email="ada@acme.example")
    answer = shop.press(50, agent_email="ben@acme.example")
    assert answer.json()["reason"] == "points_above_connection_cap"
    assert shop.applied(40, agent_email="ben@acme.example")


def test_an_undo_gives_room_only_once_it_is_confirmed(shop: Shop) -> None:
    """And then to the agent who had given the award, whoever took it back."""
    shop.rule(max_points_per_agent_per_day=100, max_points_per_day=150)
    done = shop.applied(100, agent_email="ada@acme.example")
    shop.fault("reset_before")
    undo = shop.undo(done)
    assert not isinstance(undo, str)
    assert shop.state(undo.operation_id) == "unknown"
    for agent, reason in (("ada", "points_above_agent_cap"), ("ben", "points_above_connection_cap")):
        refused = shop.press(51, agent_email=f"{agent}@acme.example", ticket_id=8)
        assert (refused.status_code, refused.json()["reason"]) == (422, reason)
    shop.work(180)
    assert shop.state(undo.operation_id) == "applied"
    assert shop.applied(100, agent_email="ada@acme.example", ticket_id=8)
    assert shop.press(51, agent_email="ben@acme.example", ticket_id=9).json()["reason"] == "points_above_connection_cap"


def test_an_award_key_alone_means_the_member_whom_the_card_showed(shop: Shop) -> None:
    key = shop.card()["award_key"]
    assert shop.applied(50, email="{{ticket.customer.email}}", award_key=key)
    assert shop.card()["points_balance"] == 150
    assert len(shop.book()) == 1


def test_an_award_key_whose_member_is_kept_no_longer_is_told(shop: Shop) -> None:
    key = shop.card()["award_key"]
    shop.house.services.snapshots.forget(shop.connection.store)
    answer = shop.press(50, email="{{ticket.customer.email}}", award_key=key)
    assert (answer.status_code, answer.json()["reason"]) == (422, "member_missing")
    assert shop.applied(50, award_key=key), "with the address it serves"


def test_an_award_key_of_another_member_is_refused(shop: Shop) -> None:
    shop.rivo.add_customer("ben@example.com")
    key = shop.card("ben@example.com")["award_key"]
    answer = shop.press(50, award_key=key)
    assert (answer.status_code, answer.json()["reason"]) == (409, "member_mismatch")
    assert shop.awards() == 0


def test_a_used_award_key_is_the_same_award_for_as_long_as_it_is_not_settled(shop: Shop) -> None:
    key = shop.card()["award_key"]
    shop.fault("reset_before")
    done = shop.queued(50, award_key=key)
    shop.clock.advance(3600)
    shop.fault("status", method=None, path=".*", times=None, status=503)
    again = shop.press(50, award_key=key)
    assert (again.status_code, again.json()["operation_id"]) == (202, done)
    assert shop.press(51, award_key=key).status_code == 409


def test_a_press_again_while_it_is_being_confirmed_is_the_same_award_even_after_the_window(shop: Shop) -> None:
    shop.card()
    shop.fault("reset_before")
    done = shop.queued(50)
    shop.clock.advance(600)
    assert shop.queued(50) == done
    shop.work(180)
    assert shop.state(done) == "applied"
    shop.clock.advance(61)
    assert shop.applied(50) != done
    assert len(shop.book()) == 2


def test_what_was_rejected_may_be_tried_again_at_once(shop: Shop) -> None:
    key = shop.card()["award_key"]
    shop.rivo.update_customer(ANA, status="excluded")
    assert shop.press(50, award_key=key).json()["reason"] == "program_refused"
    shop.rivo.update_customer(ANA, status="member")
    shop.clock.advance(1)
    shop.refreshed()
    shop.clock.advance(61)
    shop.refreshed()
    assert shop.applied(50, award_key=key)
    assert len(shop.book()) == 1

"""A double click never awards twice; a deliberate second award is possible, and the answer says how."""

from __future__ import annotations

from typing import Any

import pytest

from loyalty.award_key import verify
from storage.tables import awards
from tests.awards.desk import JANE, Desk

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_two_clicks_on_one_card_award_once(desk: Desk) -> None:
    key = desk.key()
    first = desk.told(50, award_key=key)
    again = desk.told(50, award_key=key)
    assert again == {
        "status": "already_applied",
        "message": "Already added a moment ago: 50 points, the balance is 150 points. "
        "To add them once more on purpose, press the button again in 60 seconds.",
        "points_balance": 150,
        "operation_id": first["operation_id"],
    }
    assert desk.balance() == 150


def test_a_card_loaded_after_an_award_awards_again_at_once(desk: Desk) -> None:
    first = desk.told(50, award_key=desk.key())
    second = desk.told(50, award_key=desk.key())
    assert second["status"] == "applied"
    assert second["operation_id"] != first["operation_id"]
    assert desk.balance() == 200


@pytest.mark.parametrize(
    "other", [{"points": 51}, {"reason": "Other"}, {"ticket_id": 8}, {"agent_email": "b@a.example"}]
)
@only_sqlite
def test_a_used_key_with_another_body_is_a_conflict_within_the_window(desk: Desk, other: dict[str, Any]) -> None:
    key = desk.key()
    desk.told(50, award_key=key)
    body: dict[str, Any] = {"points": 50, "award_key": key, **other}
    desk.clock.advance(59.999)
    refused = desk.refused(status=409, **body)
    assert refused["reason"] == "key_reused"
    assert "(50 points)" in refused["message"]
    assert "Press the button again in 1 second, or as soon as the card shows the new balance." in refused["message"]
    desk.clock.advance(0.001)
    assert desk.told(**body)["status"] == "applied"


def test_after_its_window_a_used_key_counts_as_no_key(desk: Desk) -> None:
    key = desk.key()
    desk.told(50, award_key=key)
    desk.clock.advance(60)
    second = desk.told(50, award_key=key)
    assert second["status"] == "applied"
    third = desk.told(50, award_key=key)
    assert third["status"] == "already_applied"
    assert third["operation_id"] == second["operation_id"], "the window guards where the key no longer does"


def test_without_a_key_the_same_press_counts_once_for_a_minute(desk: Desk) -> None:
    first = desk.told(50, agent_email="a@acme.example")
    desk.clock.advance(59.5)
    again = desk.told(50, agent_email="a@acme.example")
    assert again["status"] == "already_applied"
    assert again["operation_id"] == first["operation_id"]
    assert again["message"].endswith("To add them once more on purpose, press the button again in 1 second.")
    desk.clock.advance(0.5)
    assert desk.told(50, agent_email="a@acme.example")["status"] == "applied"
    assert desk.balance() == 200


@only_sqlite
def test_the_wait_that_is_told_is_long_enough_and_no_longer(desk: Desk) -> None:
    desk.told(50)
    assert desk.told(50)["message"].endswith("press the button again in 60 seconds.")
    desk.clock.advance(60)
    assert desk.told(50)["status"] == "applied"


@pytest.mark.parametrize(
    "other", [{"points": 51}, {"ticket_id": 8}, {"agent_email": "b@acme.example"}, {"email": "joe@example.com"}]
)
@only_sqlite
def test_what_differs_in_ticket_member_points_or_agent_is_another_award(desk: Desk, other: dict[str, Any]) -> None:
    desk.enrol("joe@example.com")
    body: dict[str, Any] = {"points": 50, "agent_email": "a@acme.example"}
    desk.told(**body)
    assert desk.told(**{**body, **other})["status"] == "applied"


@only_sqlite
def test_another_reason_is_still_a_double_click(desk: Desk) -> None:
    desk.told(50, reason="Late")
    assert desk.told(50, reason="Later")["status"] == "already_applied"


def test_an_undone_award_stands_in_nobodys_way(desk: Desk) -> None:
    for fields in ({}, {"award_key": desk.key()}):
        first = desk.told(50, **fields)
        assert first["status"] == "applied"
        desk.undo(first["operation_id"])
        second = desk.told(50, **fields)
        assert second["status"] == "applied"
        desk.undo(second["operation_id"])
    assert desk.balance() == 100


@only_sqlite
def test_a_key_that_is_not_ours_counts_as_no_key(desk: Desk) -> None:
    """Forged, damaged, of another connection, unresolved: the window guards."""
    _, other = desk.house.connect("globex")
    desk.house.add_member(other.store, JANE)
    foreign = desk.house.lookup(other, JANE).json()["award_key"]
    good = desk.key()
    assert verify(good, hasher=desk.house.services.hasher, connection_id=desk.connection.id) is not None
    assert verify(foreign, hasher=desk.house.services.hasher, connection_id=desk.connection.id) is None
    first = desk.told(50)
    for key in (
        foreign,
        ("A" if good[0] != "A" else "B") + good[1:],
        good[:-1],
        good + "AAAA",
        "A" * len(good),
        "ключ",
        "\x00",
        "=",
        "A",
        "x" * 5_000,
        "{{ticket.customer.integrations[1].award_key}}",
        "",
        None,
        12345,
    ):
        again = desk.told(50, award_key=key)
        assert (again["status"], again["operation_id"]) == ("already_applied", first["operation_id"]), key
    assert desk.rows()[0].award_key_nonce is None


def test_the_card_of_one_customer_gives_nothing_to_another(desk: Desk) -> None:
    desk.enrol("joe@example.com")
    refused = desk.refused(50, email="joe@example.com", award_key=desk.key(JANE), status=409)
    assert refused["reason"] == "member_mismatch"
    assert "another customer" in refused["message"]


@pytest.mark.parametrize("unresolved", ["", None, "{{ticket.customer.email}}"])
@only_sqlite
def test_an_unresolved_address_with_a_good_key_means_the_cards_member(desk: Desk, unresolved: str | None) -> None:
    told = desk.told(50, email=unresolved, award_key=desk.key())
    assert told["points_balance"] == desk.balance() == 150


@only_sqlite
def test_of_several_addresses_the_one_on_the_card_is_meant(desk: Desk) -> None:
    """The customer's other address became a member after the card was loaded."""
    both = "joe@example.com, jane@example.com"
    key = desk.key(both)
    desk.enrol("joe@example.com")
    desk.told(50, email=both, award_key=key)
    assert (desk.balance(JANE), desk.balance("joe@example.com")) == (150, 0)


@only_sqlite
def test_an_award_that_is_not_settled_blocks_until_it_is(desk: Desk) -> None:
    """No program of today leaves one; the next will. The double-click window lasts until the award is settled."""
    for fields in ({}, {"award_key": desk.key()}):
        first = desk.told(50, **fields)
        for state in ("pending", "sending", "unknown", "needs_review"):
            _set_state(desk, first["operation_id"], state)
            desk.clock.advance(3_600)
            answer = desk.press(50, **fields)
            assert answer.status_code == 202
            told = answer.json()
            assert (told["status"], told["operation_id"]) == ("being_confirmed", first["operation_id"])
            assert "do not add it again" in told["message"]
            assert told["points_balance"] == desk.balance()
        _set_state(desk, first["operation_id"], "rejected")
        second = desk.told(50, **fields)
        assert second["status"] == "applied", "what was rejected added nothing"
        desk.clock.advance(60)


@only_sqlite
def test_unsettled_awards_count_towards_the_caps_and_rejected_ones_do_not(desk: Desk) -> None:
    desk.rule(max_points_per_day=100)
    first = desk.told(100)
    _set_state(desk, first["operation_id"], "unknown")
    desk.refused(1, status=422)
    _set_state(desk, first["operation_id"], "rejected")
    desk.told(100)


def _set_state(desk: Desk, operation_id: str, state: str) -> None:
    with desk.house.services.database.write() as tx:
        tx.execute(awards.update().where(awards.c.operation_id == operation_id).values(state=state))

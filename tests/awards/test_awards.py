"""One press of the button, from the click to the journal: what it answers, what it keeps, what it refuses."""

from __future__ import annotations

from datetime import timedelta

import pytest
import requests

from loyalty.program import MemberStatus
from tests.awards.desk import JANE, Desk

# Who undoes at the desk.
ADMIN = "admin@example.com"
AGENT_CAP, CONNECTION_CAP = "points_above_agent_cap", "points_above_connection_cap"

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_an_award_is_on_the_balance_at_once_and_says_so(desk: Desk) -> None:
    answer = desk.press(50)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in answer.headers
    told = answer.json()
    assert list(told) == ["status", "message", "points_balance", "operation_id"]
    assert told["status"] == "applied"
    assert told["message"] == "Added 50 points. New balance: 150 points."
    assert told["points_balance"] == desk.balance() == 150
    assert told["operation_id"].startswith("td_")
    assert desk.told(1)["message"] == "Added 1 point. New balance: 151 points."


def test_the_journal_tells_where_an_award_came_from(desk: Desk) -> None:
    told = desk.told(50, agent_email="Agent@Acme.example", reason="  Late\ndelivery ", ticket_id="7")
    [row] = desk.rows()
    assert row.operation_id == told["operation_id"]
    assert (row.state, row.points, row.balance_after) == ("applied", 50, 150)
    assert (row.reason, row.channel, row.ticket_id, row.agent_proof) == ("Late delivery", "button", "7", "claimed")
    assert row.created_at == row.settled_at == desk.clock()
    assert row.note_state == "due"
    opened = desk.house.services.sealer.open
    assert (opened(row.member_email_sealed), opened(row.agent_email_sealed)) == (JANE, "agent@acme.example")
    assert desk.made() == (1, 2, 1)


def test_without_a_ticket_there_is_no_note_to_write(desk: Desk) -> None:
    desk.told(50, ticket_id="")
    assert desk.rows()[0].note_state == "none"
    assert desk.made() == (1, 2, 0)


def test_who_cannot_receive_points_is_refused_by_name_of_the_reason(desk: Desk) -> None:
    desk.enrol("guest@example.com", status=MemberStatus.GUEST)
    desk.enrol("out@example.com", status=MemberStatus.EXCLUDED)
    assert desk.refused(email="out@example.com", status=422)["reason"] == "member_excluded"
    guest = desk.refused(email="guest@example.com", status=422)
    assert guest["reason"] == "member_guest"
    assert "An admin can allow it" in guest["message"]
    assert desk.refused(email="stranger@example.com", status=404)["reason"] == "member_not_found"
    for unresolved in ("", "{{ticket.customer.email}}", "nobody"):
        assert desk.refused(email=unresolved, status=422)["reason"] == "member_missing"
    desk.rule(allow_guests=True)
    assert desk.told(email="guest@example.com")["points_balance"] == 50
    assert desk.refused(email="out@example.com", status=422)["reason"] == "member_excluded"


@only_sqlite
def test_only_the_buttons_key_opens_awards(desk: Desk) -> None:
    keys = desk.house.services.connections.newest_keys(desk.connection.id)
    url = f"{desk.house.url}/widget/earnings"
    body = {"email": JANE, "points": 5}
    for headers in ({}, {"X-Api-Key": keys.lookup}, {"X-Api-Key": "ключ".encode()}):
        answer = requests.post(url, json=body, headers=headers, timeout=20)
        assert (answer.status_code, answer.json()["reason"]) == (401, "wrong_key")
    assert requests.get(url, headers={"X-Api-Key": keys.award}, timeout=20).status_code == 405
    assert desk.balance() == 100


def test_a_helpdesk_awards_to_its_own_members_only(desk: Desk) -> None:
    _, other = desk.house.connect("globex")
    answer = desk.house.award(other, {"email": JANE, "points": 5})
    assert (answer.status_code, answer.json()["reason"]) == (404, "member_not_found")
    assert desk.balance() == 100


def test_a_reason_must_be_on_the_list_where_there_is_one(desk: Desk) -> None:
    desk.rule(reasons=["Late delivery", "Goodwill"])
    refused = desk.refused(reason="Friendship", status=422)
    assert refused["reason"] == "reason_not_allowed"
    assert "Late delivery, Goodwill" in refused["message"]
    desk.told(1, reason="Goodwill")
    desk.told(2, reason=" Late  delivery ")
    desk.told(3)  # preset buttons carry none


def test_the_cap_of_one_award_lets_the_cap_itself_through(desk: Desk) -> None:
    desk.rule(max_points_per_award=200)
    assert "the limit is 200 points" in desk.refused(201, status=422)["message"]
    desk.told(200)


def test_the_cap_of_an_agent_is_by_agent_and_utc_day(desk: Desk) -> None:
    desk.rule(max_points_per_agent_per_day=100)
    desk.told(60, agent_email="a@acme.example", ticket_id=1)
    refused = desk.refused(41, agent_email="A@acme.example ", ticket_id=2, status=422)
    assert refused["reason"] == "points_above_agent_cap"
    assert refused["message"].startswith("You have added 60 points today; the limit for one agent is 100 points")
    desk.told(40, agent_email="a@acme.example", ticket_id=3)
    desk.told(100, agent_email="b@acme.example", ticket_id=4)
    desk.clock.advance(timedelta(hours=14, minutes=29, seconds=59).total_seconds())
    assert desk.clock().isoformat() == "2026-03-14T23:59:59+00:00"
    desk.refused(1, agent_email="a@acme.example", ticket_id=5, status=422)
    desk.clock.advance(1)
    desk.told(100, agent_email="a@acme.example", ticket_id=6)


def test_all_agents_without_a_name_count_as_one(desk: Desk) -> None:
    desk.rule(max_points_per_agent_per_day=100)
    desk.told(60, ticket_id=1)
    for unknown in ("", "{{current_user.email}}", None, "someone"):
        refused = desk.refused(41, agent_email=unknown, ticket_id=2, status=422)
        assert refused["message"].startswith("Agents whose name is not known have added 60 points today")
    desk.told(41, agent_email="named@acme.example", ticket_id=2)


def test_the_cap_of_a_connection_counts_every_agent(desk: Desk) -> None:
    desk.rule(max_points_per_day=100)
    desk.told(60, agent_email="a@acme.example")
    refused = desk.refused(41, agent_email="b@acme.example", status=422)
    assert refused["reason"] == "points_above_connection_cap"
    assert "its limit is 100 points a day" in refused["message"]
    desk.told(40, agent_email="b@acme.example")
    desk.refused(1, agent_email="c@acme.example", status=422)
    desk.clock.advance(24 * 3600)
    desk.told(100, agent_email="c@acme.example")


def test_an_undone_award_frees_the_cap_and_its_undo_takes_none(desk: Desk) -> None:
    desk.rule(max_points_per_agent_per_day=100, max_points_per_day=100)
    told = desk.told(100)
    desk.refused(1, status=422)
    desk.undo(told["operation_id"])
    desk.told(99)
    desk.refused(2, status=422)


def test_an_undo_gives_room_back_to_whoever_had_given_the_award(desk: Desk) -> None:
    """And to the connection; whoever takes it back (here an admin) has neither more room than before nor less."""
    desk.rule(max_points_per_agent_per_day=100, max_points_per_day=150)
    told = desk.told(100, agent_email="a@acme.example", ticket_id=1)
    desk.told(50, agent_email=ADMIN, ticket_id=2)
    assert desk.refused(1, agent_email="b@acme.example", ticket_id=3, status=422)["reason"] == CONNECTION_CAP
    desk.undo(told["operation_id"])
    assert desk.refused(51, agent_email=ADMIN, ticket_id=3, status=422)["reason"] == AGENT_CAP
    desk.told(100, agent_email="a@acme.example", ticket_id=3)
    assert desk.refused(1, agent_email="a@acme.example", ticket_id=4, status=422)["reason"] == AGENT_CAP
    assert desk.refused(1, agent_email="b@acme.example", ticket_id=4, status=422)["reason"] == CONNECTION_CAP


def test_an_undo_of_yesterdays_award_gives_no_room_today(desk: Desk) -> None:
    desk.rule(max_points_per_agent_per_day=100, max_points_per_day=150)
    told = desk.told(100, agent_email="a@acme.example", ticket_id=1)
    desk.clock.advance(timedelta(hours=14, minutes=30).total_seconds())
    assert desk.clock().isoformat() == "2026-03-15T00:00:00+00:00"
    assert isinstance(desk.undo(told["operation_id"]), dict)
    assert desk.refused(101, agent_email="a@acme.example", ticket_id=2, status=422)["reason"] == AGENT_CAP
    desk.told(100, agent_email="a@acme.example", ticket_id=2)
    assert desk.refused(51, agent_email="b@acme.example", ticket_id=3, status=422)["reason"] == CONNECTION_CAP
    desk.told(50, agent_email="b@acme.example", ticket_id=3)


def test_an_undo_takes_back_once_with_an_entry_and_a_note_of_its_own(desk: Desk) -> None:
    told = desk.told(50, ticket_id=7)
    undone = desk.undo(told["operation_id"])
    assert isinstance(undone, dict)
    assert undone["message"] == "Took back 50 points. New balance: 100 points."
    assert desk.balance() == undone["points_balance"] == 100
    award, undo = desk.rows()
    assert (award.state, award.points, award.balance_after) == ("applied", 50, 150)
    assert (undo.state, undo.points, undo.balance_after, undo.reverses) == ("applied", -50, 100, award.operation_id)
    assert (undo.ticket_id, undo.channel, undo.agent_proof, undo.note_state) == ("7", "console", "proven", "due")
    assert desk.made() == (2, 3, 2)
    assert desk.undo(told["operation_id"]) == "already_undone"
    assert desk.undo(undone["operation_id"]) == "not_applied"
    assert desk.undo("td_nothing") == "award_not_found"
    assert desk.made() == (2, 3, 2)


def test_an_undo_reaches_awards_of_its_own_connection_only(desk: Desk) -> None:
    _, other = desk.house.connect("globex")
    told = desk.told(50)
    assert desk.undo(told["operation_id"], connection=other) == "award_not_found"
    assert desk.balance() == 150

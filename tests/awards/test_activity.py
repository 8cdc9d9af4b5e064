"""The journal for people: newest first, page by page, each connection its own."""

from __future__ import annotations

import pytest

from loyalty.activity import AwardRecord, recent_awards
from tests.awards.desk import JANE, Desk
from widget.connections import Connection


def test_awards_and_undoes_are_listed_newest_first(desk: Desk) -> None:
    first = desk.told(50, reason="Late", agent_email="a@acme.example", ticket_id=7)
    desk.clock.advance(1)
    desk.told(20, ticket_id="")
    desk.clock.advance(1)
    undone = desk.undo(first["operation_id"])
    assert isinstance(undone, dict)
    undo, second, award = _activity(desk)
    assert (award.operation_id, award.points, award.reason, award.ticket_id) == (first["operation_id"], 50, "Late", "7")
    assert (award.member_email, award.agent_email, award.agent_proven) == (JANE, "a@acme.example", False)
    assert (award.undone_by, award.can_be_undone) == (undone["operation_id"], False)
    assert (second.agent_email, second.note_state, second.can_be_undone) == (None, "none", True)
    assert (undo.reverses, undo.points, undo.agent_proven, undo.can_be_undone) == (award.operation_id, -50, True, False)
    assert [record.balance_after for record in (award, second, undo)] == [150, 170, 120]


def test_pages_follow_each_other_without_gap_or_overlap(desk: Desk) -> None:
    for number in range(7):
        desk.told(1 + number, ticket_id=number)
        if number != 3:
            # Two awards of the same moment come to stand on different pages.
            desk.clock.advance(1)
    pages = []
    before = None
    while page := recent_awards(
        desk.house.services.database,
        sealer=desk.house.services.sealer,
        connection_id=desk.connection.id,
        before=before,
        limit=3,
    ):
        pages.append([record.points for record in page])
        before = page[-1].operation_id
    assert [len(page) for page in pages] == [3, 3, 1]
    shown = [points for page in pages for points in page]
    assert [*shown[:2], set(shown[2:4]), *shown[4:]] == [7, 6, {5, 4}, 3, 2, 1]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_connection_shows_its_own_awards_only(desk: Desk) -> None:
    _, other = desk.house.connect("globex")
    desk.told(50)
    assert _activity(desk, other) == []


def _activity(desk: Desk, connection: Connection | None = None) -> list[AwardRecord]:
    services = desk.house.services
    return recent_awards(services.database, sealer=services.sealer, connection_id=(connection or desk.connection).id)

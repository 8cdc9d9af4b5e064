"""The inspector: what Gorgias asked, without its values, while a merchant watches, and never on a card's way."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import requests
from sqlalchemy import event, func, select, text

from storage.database import erase_older
from storage.tables import connections, inspected_requests
from tests.house import House
from widget.connections import Connection
from widget.inspector import (
    KEPT_OF_CONNECTION,
    MAX_WAITING,
    WATCHED_FOR,
    Inspected,
    inspected,
    masked,
)

JANE = "jane.roe+vip@shop.example.com"
only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def watch(house: House, connection: Connection) -> None:
    with house.services.database.write() as tx:
        house.services.connections.inspect(tx, connection.id, until=house.clock() + WATCHED_FOR)


def seen(house: House, connection: Connection) -> list[Inspected]:
    house.services.inspector.settle(10)
    return inspected(house.services.database, connection.id)


def fields(request: Inspected) -> dict[str, tuple[str, str, int]]:
    assert request.fields is not None
    return {field.name: (field.kind.value, field.shown, field.length) for field in request.fields}


def test_while_a_merchant_watches_requests_are_recorded_without_values_and_it_stops_by_itself(
    house: House, connection: Connection
) -> None:
    house.add_member(connection.store, JANE, points=10)
    house.lookup(connection, JANE)
    assert seen(house, connection) == []

    watch(house, connection)
    shown = house.lookup(connection, JANE, headers={"User-Agent": "Gorgias/1.0 (jane@example.com)"}).json()
    award = {
        "email": "{{ticket.customer.email}}",
        "award_key": shown["award_key"],
        "points": "5",
        "ticket_id": 7,
        "agent_email": "",
        "reason": "for Jane Roe, jane@example.com",
    }
    assert house.award(connection, award).status_code == 200
    pressed, asked = seen(house, connection)
    assert (asked.route, asked.outcome, asked.status, asked.caller) == ("/widget/customer", "found", 200, "Gorgias")
    assert fields(asked) == {"email": ("address", "j…@s….com", len(JANE))}
    assert (pressed.route, pressed.outcome, pressed.status) == ("/widget/earnings", "applied", 200)
    assert fields(pressed) == {
        "email": ("variable", "{{ticket.customer.email}}", 25),
        "award_key": ("text", "", len(shown["award_key"])),
        "points": ("number", "5", 1),
        "ticket_id": ("number", "7", 1),
        "agent_email": ("empty", "", 0),
        "reason": ("text", "", 30),
    }
    with house.services.database.read() as tx:
        kept = str(tx.execute(select(inspected_requests)).all())
    for secret in ("jane", "Jane", shown["award_key"], house.services.connections.newest_keys(connection.id).lookup):
        assert secret not in kept

    # A wrong key is nobody's request.
    requests.get(f"{house.url}/widget/customer", headers={"X-Api-Key": "wrong"}, timeout=10)
    house.clock.advance(WATCHED_FOR.total_seconds())
    house.lookup(connection, JANE)
    assert len(seen(house, connection)) == 2
    # And after an hour nothing of it is left.
    house.clock.advance(3_000)
    house.services.jobs.sweep()
    assert len(seen(house, connection)) == 2
    house.clock.advance(60)
    house.services.jobs.sweep()
    assert seen(house, connection) == []


@only_sqlite
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("email=", {"email": ("empty", "", 0)}),
        ("email=null", {"email": ("empty", "null", 4)}),
        ("email=%257B%257Bticket.customer.email%257D%257D", {"email": ("variable", "{{ticket.customer.email}}", 33)}),
        ("email={{jane@example.com}}", {"email": ("variable", "{{…}}", 20)}),
        ("email=Jane Roe", {"email": ("no_address", "", 8)}),
        ("email=Jane%2540Example.com", {"email": ("address", "j…@e….com", 18)}),
        ("email=a@one.example,b@two.example", {"email": ("address", "a…@o….example, b…@t….example", 27)}),
        ("mail=jane@example.com&jane@example.com=x", {"mail": ("text", "", 16), "(another)": ("text", "", 1)}),
    ],
)
def test_what_came_in_a_field_is_told_by_its_kind(
    house: House, connection: Connection, query: str, expected: dict[str, Any]
) -> None:
    watch(house, connection)
    assert house.lookup(connection, params=query).status_code == 200
    [asked] = seen(house, connection)
    assert fields(asked) == expected


@only_sqlite
def test_a_button_that_sends_what_cannot_be_read_is_recorded_as_such(house: House, connection: Connection) -> None:
    watch(house, connection)
    broken = house.award(connection, data=b'{"points": ', headers={"Content-Type": "application/json"})
    assert broken.status_code == 422
    house.award(connection, {f"field{number}": "x" for number in range(50)})
    strange, unreadable = seen(house, connection)
    assert (unreadable.fields, unreadable.outcome) == (None, "request_unreadable")
    assert strange.fields is not None
    assert len(strange.fields) == 12


@only_sqlite
def test_watching_costs_a_card_no_statement(
    house: House, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time until which it is recorded comes with the key; what is recorded is written by another thread."""
    house.add_member(connection.store, JANE, points=10)
    statements: list[tuple[str, str]] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append((threading.current_thread().name, statement))

    counts = []
    database = house.services.database
    event.listen(database.engine, "before_cursor_execute", note)
    look_up = database.look_up

    def noting_look_up(statement: Any, **values: Any) -> Any:
        note(None, None, str(statement))
        return look_up(statement, **values)

    monkeypatch.setattr(database, "look_up", noting_look_up)
    for watching in (False, True):
        if watching:
            watch(house, connection)
        # The key is read anew, as it is every second.
        house.clock.advance(1)
        statements.clear()
        key = {"X-Api-Key": house.services.connections.newest_keys(connection.id).lookup}
        statements.clear()
        requests.get(f"{house.url}/widget/customer", params={"email": JANE}, headers=key, timeout=10)
        house.services.inspector.settle(10)
        counts.append(len([statement for thread, statement in statements if thread != "inspect"]))
    assert any(thread == "inspect" for thread, _ in statements)
    assert counts[0] == counts[1] > 0


@only_sqlite
def test_neither_a_full_queue_nor_a_broken_table_touches_the_cards_answer(
    house: House, connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    house.add_member(connection.store, JANE, points=10)
    watch(house, connection)
    database = house.services.database
    # The writer waits for the lock that this transaction holds; cards only read.
    with database.write() as tx:
        tx.execute(select(func.count()).select_from(connections))
        for _ in range(MAX_WAITING + 60):
            house.services.inspector.note(
                connection_id=connection.id, at=house.clock(), route="/widget/customer", outcome="found", status=200,
                took_ms=1, sent=[], user_agent="",
            )  # fmt: skip
        assert house.lookup(connection, JANE).json()["points_balance"] == 10
    assert MAX_WAITING <= len(seen(house, connection)) < MAX_WAITING + 60
    assert "queue_full" in capsys.readouterr().out

    with database.write() as tx:
        tx.execute(text("ALTER TABLE inspected_requests RENAME TO elsewhere"))
    for _ in range(3):
        assert house.lookup(connection, JANE).json()["points_balance"] == 10
        house.services.inspector.settle(10)
    said = capsys.readouterr().out
    assert "storage_trouble" in said
    assert "Traceback" not in said


def test_of_one_connection_only_the_newest_are_kept(house: House, connection: Connection) -> None:
    inspector, database = house.services.inspector, house.services.database
    for number in range(KEPT_OF_CONNECTION + 30):
        inspector.note(
            connection_id=connection.id, at=house.clock(), route="r", outcome="o", status=200, took_ms=number,
            sent=None, user_agent="",
        )  # fmt: skip
        if number % 100 == 0:
            inspector.settle(20)
    kept = seen(house, connection)
    assert len(kept) == KEPT_OF_CONNECTION
    assert kept[0].took_ms == KEPT_OF_CONNECTION + 29
    later = house.clock() + timedelta(seconds=1)
    assert erase_older(database, inspected_requests.c.at, than=later, limit=400) == 400
    assert erase_older(database, inspected_requests.c.at, than=later) == 100


@pytest.mark.parametrize(
    ("address", "shown"),
    [("jane@example.com", "j…@e….com"), ("j@janeroe.name", "j…@j….name"), ("ÿ@ß.example", "ÿ…@ß….example")],
)
def test_of_an_address_the_first_letters_are_shown(address: str, shown: str) -> None:
    assert masked(address) == shown

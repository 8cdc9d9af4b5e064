"""Intent, entries and outcome are one transaction: whatever breaks in the middle, nothing of the award remains."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event

from loyalty.ledger import Ledger
from loyalty.program import Member, NewPointsEvent, PointsEvent, ProgramKind, Store, UnknownMember
from tests.awards.desk import JANE, Desk
from tests.databases import at_every_checkout, let_writer_go

SORRY = (
    "Tallydesk cannot save anything right now. Try again in a moment; if it goes on, tell an admin. Nothing was added."
)
only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


class Breaking(Ledger):
    """The ledger, with something going wrong right after it has booked."""

    def __init__(self, ledger: Any, fail: Callable[[], None]) -> None:
        self._ledger = ledger
        self._fail = fail

    def member(
        self, store: Store, *, email: str, with_date_of_birth: bool = False, within_s: float | None = None
    ) -> Member | None:
        found: Member | None = self._ledger.member(store, email=email)
        return found

    def email_of(self, store: Store, *, member_hmac: str) -> str | None:
        found: str | None = self._ledger.email_of(store, member_hmac=member_hmac)
        return found

    def add_points(
        self, store: Store, *, event: NewPointsEvent, within: Connection | None = None, within_s: float | None = None
    ) -> PointsEvent:
        done: PointsEvent = self._ledger.add_points(store, event=event, within=within)
        self._fail()
        return done


def _break(desk: Desk, error: Exception) -> Callable[[], None]:
    """Let every booking end in `error`; returns what mends it."""
    programs = desk.house.services.programs
    kept = programs[ProgramKind.LEDGER]

    def fail() -> None:
        raise error

    programs[ProgramKind.LEDGER] = Breaking(kept, fail)

    def mend() -> None:
        programs[ProgramKind.LEDGER] = kept

    return mend


def test_a_bug_after_the_entries_leaves_nothing_of_the_award(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    before = desk.made()
    mend = _break(desk, RuntimeError("a bug"))
    answer = desk.press(50, award_key=desk.key())
    assert answer.status_code == 500
    assert answer.json()["reason"] == "crashed"
    assert "look at the balance" in answer.json()["message"]
    assert "Traceback" in "".join(capfd.readouterr()), "for the operator"
    assert desk.made() == before
    assert desk.balance() == 100
    mend()
    assert desk.told(50)["status"] == "applied"


def test_a_bug_in_an_undo_leaves_the_award_as_it_was(desk: Desk) -> None:
    told = desk.told(50)
    before = desk.made()
    mend = _break(desk, RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        desk.undo(told["operation_id"])
    assert desk.made() == before
    mend()
    assert isinstance(desk.undo(told["operation_id"]), dict)


def test_a_member_gone_in_the_middle_is_a_member_not_found(desk: Desk) -> None:
    told = desk.told(1)
    before = desk.made()
    mend = _break(desk, UnknownMember())
    assert desk.refused(50, status=404)["reason"] == "member_not_found"
    assert desk.undo(told["operation_id"]) == "member_not_found"
    mend()
    assert desk.made() == before


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_transactions", "jobs", "awards"])
@only_sqlite
def test_a_database_that_refuses_one_row_keeps_none(desk: Desk, table: str) -> None:
    before = desk.made()
    _sql(desk, f"CREATE TRIGGER broken BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'broken'); END")
    _sorry(desk)
    assert desk.balance() == 100
    _sql(desk, "DROP TRIGGER broken")
    assert desk.made() == before
    assert desk.told(50)["points_balance"] == 150


@only_sqlite
def test_a_locked_database_adds_nothing_and_then_works_again(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    @event.listens_for(desk.house.services.database.engine, "checkout")
    def wait_less(connection: Any, *_: Any) -> None:
        connection.execute("PRAGMA busy_timeout=50").close()

    before = desk.made()
    capfd.readouterr()
    with desk.house.services.database.write():
        _sorry(desk)
        assert desk.balance() == 100, "the card is not held up"
    said = "".join(capfd.readouterr())
    assert "The database is busy" in said, "the operator reads what it was"
    assert "Traceback" not in said
    assert desk.made() == before
    assert desk.told(50)["status"] == "applied"


@only_sqlite
def test_a_full_disk_adds_nothing_and_the_card_still_answers(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    database = desk.house.services.database
    limit = ["PRAGMA max_page_count=1"]  # never below what is there already: SQLite raises it to that

    at_every_checkout(database, lambda connection, *_: connection.execute(limit[0]).close())
    balance = 100
    for ticket in range(500):
        answer = desk.press(1, ticket_id=ticket)
        if answer.status_code != 200:
            break
        balance += 1
    assert answer.status_code == 503
    assert answer.json() == {"status": "rejected", "reason": "unavailable", "message": SORRY}
    assert "The disk of the database is full" in "".join(capfd.readouterr())
    assert desk.balance() == balance
    assert desk.made()[:2] == (balance - 100, balance - 99)
    limit[0] = "PRAGMA max_page_count=1000000"
    let_writer_go(database)
    assert desk.told(1, ticket_id=9_999)["points_balance"] == balance + 1


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_server_that_is_away_adds_nothing_and_then_works_again(desk: Desk, request: pytest.FixtureRequest) -> None:
    before = desk.made()
    engine = desk.house.services.database.engine
    key = desk.house.services.connections.newest_keys(desk.connection.id).award
    postgres = request.getfixturevalue("postgres")
    postgres.run(f"ALTER DATABASE {engine.url.database} ALLOW_CONNECTIONS false")
    postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{engine.url.database}'")
    answer = _post(desk, key)
    assert answer.status_code == 503
    assert "DATABASE_URL" not in answer.text, "an agent is not told of settings"
    postgres.run(f"ALTER DATABASE {engine.url.database} ALLOW_CONNECTIONS true")
    assert desk.made() == before
    assert desk.told(50)["status"] == "applied"


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_line_cut_in_the_middle_adds_nothing_and_does_not_promise_it(desk: Desk) -> None:
    """The server ends the session between the entries and the commit."""
    before = desk.made()
    programs = desk.house.services.programs
    kept = programs[ProgramKind.LEDGER]

    class Cutting(Breaking):
        def add_points(
            self,
            store: Store,
            *,
            event: NewPointsEvent,
            within: Connection | None = None,
            within_s: float | None = None,
        ) -> PointsEvent:
            done = super().add_points(store, event=event, within=within)
            assert within is not None
            pid = within.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            with desk.house.services.database.read() as other:
                other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
            return done

    programs[ProgramKind.LEDGER] = Cutting(kept, lambda: None)
    answer = desk.press(50)
    assert answer.status_code == 503
    assert "look at the balance" in answer.json()["message"]
    programs[ProgramKind.LEDGER] = kept
    assert desk.made() == before
    assert desk.told(50)["status"] == "applied"


@only_sqlite
def test_every_exit_is_counted_under_its_reason(desk: Desk) -> None:
    """One count more for each, in both metrics; no label holds an address."""
    exits: list[tuple[str, Callable[[], object]]] = [
        ("applied", lambda: desk.press(50)),
        ("already_applied", lambda: desk.press(50)),
        ("points_invalid", lambda: desk.press("x")),
        ("points_above_award_cap", lambda: desk.press(5_000)),
        ("member_not_found", lambda: desk.press(email="stranger@example.com")),
        ("request_too_large", lambda: desk.press(reason="x" * 20_000)),
        ("wrong_key", lambda: _post(desk, "wrong")),
    ]
    for reason, act in exits:
        awards, requests_ = (f'tallydesk_awards_total{{outcome="{reason}"}}',
                             f'tallydesk_requests_total{{outcome="{reason}",route="/widget/earnings"}}')  # fmt: skip
        before = _metric(desk, awards), _metric(desk, requests_)
        act()
        assert (_metric(desk, awards), _metric(desk, requests_)) == (before[0] + 1, before[1] + 1), reason
    assert "@" not in _metrics(desk)


def _sorry(desk: Desk) -> None:
    answer = desk.press(50)
    assert answer.status_code == 503
    assert answer.json() == {"status": "rejected", "reason": "unavailable", "message": SORRY}


def _post(desk: Desk, key: str) -> Any:
    import requests

    body = {"email": JANE, "points": 50}
    return requests.post(f"{desk.house.url}/widget/earnings", json=body, headers={"X-Api-Key": key}, timeout=20)


def _metrics(desk: Desk) -> str:
    return desk.house.browser().get("/metrics").text


def _metric(desk: Desk, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", _metrics(desk), re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def _sql(desk: Desk, statement: str) -> None:
    with desk.house.services.database.write() as tx:
        tx.exec_driver_sql(statement)

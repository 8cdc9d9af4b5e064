"""A card in bad weather: the database is locked, gone, damaged or in the wrong hands, and the card says so calmly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from loyalty.ledger import Ledger
from loyalty.program import Member, ProgramKind, Store
from storage.sealing import Sealer
from tests.databases import SECOND_KEY
from tests.house import House
from widget.connections import Connection

JANE = "jane.secret@example.com"
only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


class Program(Ledger):
    """A ledger with a bug in it."""

    def __init__(self, fail: Callable[[], Any]) -> None:
        self._fail = fail

    def member(
        self, store: Store, *, email: str, with_date_of_birth: bool = False, within_s: float | None = None
    ) -> Member | None:
        self._fail()
        return None


def test_a_bug_in_the_card_itself_is_a_card_that_says_so(
    house: House, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.add_member(connection.store, JANE)

    def crash(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("widget.card.found", crash)
    _assert_unavailable(house, connection)


def test_a_crash_of_ours_is_a_card_that_says_so(house: House, connection: Connection) -> None:
    def crash() -> None:
        raise KeyError("a bug")

    kept = house.services.programs[ProgramKind.LEDGER]
    house.services.programs[ProgramKind.LEDGER] = Program(crash)
    _assert_unavailable(house, connection)
    house.services.programs[ProgramKind.LEDGER] = kept
    assert house.lookup(connection, JANE).json()["loyalty_status"] == "Customer not found"


@only_sqlite
def test_a_writer_that_holds_the_database_does_not_hold_up_a_lookup(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE, points=5)
    with house.services.database.write():
        assert house.balance(connection, JANE) == 5


@only_sqlite
def test_a_database_locked_against_readers_is_a_card_that_says_so(house: House, connection: Connection) -> None:
    key = house.services.connections.newest_keys(connection.id).lookup
    house.services.database.close()
    holder = house.services.database.engine.raw_connection()
    cursor = holder.cursor()
    for statement in ("PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE"):
        cursor.execute(statement)
    cursor.execute("UPDATE connections SET allow_guests = allow_guests")
    _assert_unavailable(house, connection, key=key)
    cursor.execute("ROLLBACK")
    cursor.execute("PRAGMA locking_mode=NORMAL")
    cursor.execute("SELECT 1 FROM connections").fetchall()
    cursor.close()
    holder.invalidate()
    assert house.services.connections.all()


@only_sqlite
def test_a_database_file_that_is_gone_is_a_card_that_says_so(
    house: House, connection: Connection, tmp_path: Path
) -> None:
    key = house.services.connections.newest_keys(connection.id).lookup
    house.services.database.close()
    for file in tmp_path.glob("tallydesk.db*"):
        file.unlink()
    _assert_unavailable(house, connection, key=key)


@only_sqlite
def test_a_damaged_database_file_is_a_card_that_says_so(house: House, connection: Connection, tmp_path: Path) -> None:
    key = house.services.connections.newest_keys(connection.id).lookup
    house.services.database.close()
    (tmp_path / "tallydesk.db-wal").unlink(missing_ok=True)
    (tmp_path / "tallydesk.db").write_bytes(b"this was a database once" * 1_000)
    _assert_unavailable(house, connection, key=key)


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_server_that_is_away_is_a_card_that_says_so_and_then_all_is_well(
    house: House, connection: Connection, request: pytest.FixtureRequest
) -> None:
    house.add_member(connection.store, JANE, points=5)
    key = house.services.connections.newest_keys(connection.id).lookup
    name = house.services.database.engine.url.database
    postgres = request.getfixturevalue("postgres")
    postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    _assert_unavailable(house, connection, key=key)
    postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert house.balance(connection, JANE) == 5


@only_sqlite
def test_a_secret_sealed_with_a_lost_key_is_a_card_that_says_so(house: House, connection: Connection) -> None:
    house.add_member(connection.store, JANE)
    sealed = Sealer((SECOND_KEY,)).seal("1990-02-03")
    with house.services.database.write() as tx:
        tx.exec_driver_sql("UPDATE members SET date_of_birth_sealed = ?", (sealed,))
    assert house.lookup(connection, JANE).json()["loyalty_status"] == "Member", "what is not shown is not opened"
    with house.services.database.write() as tx:
        tx.exec_driver_sql("UPDATE connections SET show_date_of_birth = 1")
    house.clock.advance(1)
    _assert_unavailable(house, connection)


@only_sqlite
def test_trouble_is_one_line_for_the_operator_and_a_bug_has_its_traceback(
    house: House, connection: Connection, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key = house.services.connections.newest_keys(connection.id).lookup

    def crash() -> None:
        raise KeyError("a bug")

    kept = house.services.programs[ProgramKind.LEDGER]
    house.services.programs[ProgramKind.LEDGER] = Program(crash)
    house.lookup(connection, JANE)
    said = capfd.readouterr()
    assert "Traceback" in said.out + said.err
    house.services.programs[ProgramKind.LEDGER] = kept

    house.services.database.close()
    (tmp_path / "tallydesk.db-wal").unlink(missing_ok=True)
    (tmp_path / "tallydesk.db").write_bytes(b"this was a database once" * 1_000)
    capfd.readouterr()
    _assert_unavailable(house, connection, key=key)
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert re.search(r"outcome=\S*unavailable", said.out)


@only_sqlite
def test_a_preflight_without_a_database_is_answered_without_a_promise(
    house: House, connection: Connection, tmp_path: Path
) -> None:
    house.services.database.close()
    (tmp_path / "tallydesk.db-wal").unlink(missing_ok=True)
    (tmp_path / "tallydesk.db").write_bytes(b"this was a database once" * 1_000)
    origin = house.sandbox.gorgias_url.removesuffix("/{account}")
    answer = requests.options(f"{house.url}/widget/earnings", headers={"Origin": origin}, timeout=20)
    assert answer.status_code == 204
    assert "Access-Control-Allow-Origin" not in answer.headers


def _assert_unavailable(house: House, connection: Connection, *, key: str | None = None) -> None:
    if key is None:
        answer = house.lookup(connection, JANE)
    else:
        answer = requests.get(
            f"{house.url}/widget/customer", params={"email": JANE}, headers={"X-Api-Key": key}, timeout=20
        )
    assert answer.status_code == 200
    shown = answer.json()
    assert len(shown) == 11
    assert shown.pop("loyalty_status") == "Temporarily unavailable"
    assert shown.pop("as_of") == f"{house.clock():%Y-%m-%dT%H:%M:%SZ}"
    assert shown.pop("recent_activity") == []
    assert set(shown.values()) == {""}
    assert answer.headers["Cache-Control"] == "no-store"

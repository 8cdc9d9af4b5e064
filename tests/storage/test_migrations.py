"""The migrations bring a database to the shape of the tables, whoever runs them and however many at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from loyalty.ledger import Kind, book, open_store, verify
from storage.database import Database
from storage.tables import members, metadata
from tests.databases import Clock, migrate

ROOT = Path(__file__).resolve().parents[2]


def _is_ours(_object: Any, name: str | None, kind: str, _reflected: bool, _compared: Any) -> bool:
    """On PostgreSQL two of our tables are views of what the job engine keeps in tables of its own."""
    return kind != "table" or (not str(name).startswith("procrastinate_") and name not in ("jobs", "workers"))


COMPARED = {"compare_type": True, "compare_server_default": True}
COMPARED_ON_POSTGRESQL = {**COMPARED, "include_object": _is_ours}

MIGRATE = """
import sys
from storage.database import Database
from tests.databases import migrate
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
database = Database(sys.argv[1])
migrate(database)
database.require_current()
database.close()
"""


def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    with database.read() as tx:
        context = MigrationContext.configure(tx, opts=COMPARED if database.sqlite else COMPARED_ON_POSTGRESQL)
        assert compare_metadata(context, metadata) == []


def test_two_processes_migrating_at_once_both_succeed(empty_database: Database) -> None:
    processes = [_python(MIGRATE, empty_database.url) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told = [process.communicate("go\n", timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    empty_database.require_current()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger_entries SET points = points + 1",
        "DELETE FROM ledger_entries",
        "UPDATE ledger_transactions SET what = 'nothing'",
        "UPDATE ledger_transactions SET what = '', kind = 'opening'",
        "UPDATE ledger_transactions SET points = points + 1",
        "UPDATE ledger_transactions SET what = '', points = points + 1",
        "UPDATE ledger_transactions SET what = '', created_at = created_at + 1",
        "DELETE FROM ledger_transactions",
    ],
)
def test_the_database_refuses_to_change_what_was_booked(database: Database, clock: Clock, change: str) -> None:
    _book_once(database, now=clock())
    with pytest.raises(DBAPIError, match="append-only: book a reversal instead"), database.write() as tx:
        tx.execute(text(change))


def test_the_words_of_a_booking_may_be_erased_and_nothing_else(database: Database, clock: Clock) -> None:
    """They may be about a person; what was booked is not."""
    _book_once(database, now=clock())
    before = _rows(database, "ledger_transactions")
    with database.write() as tx:
        tx.execute(text("UPDATE ledger_transactions SET what = ''"))
    assert _rows(database, "ledger_transactions") == [{**row, "what": ""} for row in before]


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_transactions"])
def test_postgres_refuses_to_truncate_the_ledger(postgres_database: Database, clock: Clock, table: str) -> None:
    _book_once(postgres_database, now=clock())
    with pytest.raises(DBAPIError, match="append-only"), postgres_database.write() as tx:
        tx.execute(text(f"TRUNCATE {table} CASCADE"))


def test_the_migration_to_programs_elsewhere_keeps_every_award_with_its_undo(empty_database: Database) -> None:
    database = empty_database
    command.upgrade(database.alembic_config(), "0002")
    _awards_of_0002(database, undone=True)
    before = _rows(database, "awards")
    migrate(database)
    database.require_current()
    after = _rows(database, "awards")
    assert [{name: row[name] for name in before[0]} for row in after] == before
    new = {name: value for name, value in after[0].items() if name not in before[0]}
    assert new == {
        "credit_cents": 0,
        "settled_by": None,
        "told": None,
        "marked_by_sealed": None,
        "note_due_at": None,
        "key_version": 0,
        "sends": 0,
        "lease_owner": None,
        "lease_until": None,
        "attempt_ended_at": None,
        "looks": 0,
        "erased_at": None,
    }
    (store,) = _rows(database, "stores")
    assert (store["identity"], store["key_sealed"], store["key_version"], store["key_state"]) == (
        "ledger:acme",
        None,
        0,
        "ok",
    )
    (connection,) = _rows(database, "connections")
    assert (connection["max_credit_cents_per_award"], connection["max_credit_cents_per_day"]) == (0, 0)
    assert connection["max_points_per_award"] == 1000
    with database.read() as tx:
        context = MigrationContext.configure(tx, opts=COMPARED if database.sqlite else COMPARED_ON_POSTGRESQL)
        assert compare_metadata(context, metadata) == []


def test_after_the_migration_the_database_itself_refuses_a_second_undo(empty_database: Database) -> None:
    """Also of an award that was undone before the migration."""
    database = empty_database
    command.upgrade(database.alembic_config(), "0002")
    _awards_of_0002(database, undone=True)
    migrate(database)
    for state in ("applied", "pending", "sending", "unknown", "needs_review"):
        with pytest.raises(IntegrityError), database.write() as tx:
            _add_award(tx, f"second-{state}", reverses="op-award", state=state)
    assert len(_rows(database, "awards")) == 2
    with database.write() as tx:
        _add_award(tx, "op-other", reverses=None)
        _add_award(tx, "op-yet-another", reverses=None)


def test_a_rejected_undo_allows_another_one(database: Database) -> None:
    _awards_of_0002(database, undone=False)
    with database.write() as tx:
        for number in range(2):
            _add_award(tx, f"op-rejected-{number}", reverses="op-award", state="rejected")
        _add_award(tx, "op-undo", reverses="op-award", state="unknown")
    with pytest.raises(IntegrityError), database.write() as tx:
        _add_award(tx, "op-second", reverses="op-award", state="pending")
    with database.write() as tx:
        tx.execute(text("UPDATE awards SET state = 'rejected' WHERE operation_id = 'op-undo'"))
        _add_award(tx, "op-second", reverses="op-award", state="pending")
    with pytest.raises(IntegrityError), database.write() as tx:
        tx.execute(text("UPDATE awards SET state = 'applied' WHERE operation_id = 'op-undo'"))


def test_the_migration_keeps_what_the_awards_table_promised_before(empty_database: Database) -> None:
    """The table is made anew on SQLite: keys, uniqueness and not-null must come along."""
    database = empty_database
    command.upgrade(database.alembic_config(), "0002")
    _awards_of_0002(database, undone=False)
    migrate(database)
    with pytest.raises(IntegrityError), database.write() as tx:
        _add_award(tx, "op-award", reverses=None)
    with pytest.raises(IntegrityError), database.write() as tx:
        _add_award(tx, "op-2", reverses=None, nonce="nonce-1")
    with pytest.raises(IntegrityError), database.write() as tx:
        _add_award(tx, "op-3", reverses="op-of-nobody")
    with pytest.raises(IntegrityError), database.write() as tx:
        _add_award(tx, "op-4", reverses=None, state=None)


def test_the_ledger_is_still_append_only_after_the_migration(empty_database: Database, clock: Clock) -> None:
    database = empty_database
    command.upgrade(database.alembic_config(), "0002")
    _awards_of_0002(database, undone=False)
    migrate(database)
    _book_once(database, now=clock())
    with pytest.raises(DBAPIError, match="append-only"), database.write() as tx:
        tx.execute(text("DELETE FROM ledger_entries"))


def test_the_migration_tells_the_points_of_every_old_transaction_by_its_entry(empty_database: Database) -> None:
    """With their sign, and of the member's entry whichever of the two comes first."""
    database = empty_database
    command.upgrade(database.alembic_config(), "0004")
    _bookings_of_0004(database)
    before = _rows(database, "ledger_transactions")
    assert "points" not in before[0]
    migrate(database)
    database.require_current()
    after = _rows(database, "ledger_transactions")
    assert {row["operation_id"]: row["points"] for row in after} == {
        "opening": 120,
        "award": 50,
        "undo": -50,
        "big": 2**40,
    }
    assert [{name: row[name] for name in before[0]} for row in after] == before, "and nothing else has changed"
    with database.read() as tx:
        assert list(verify(tx)) == []


def test_damaged_books_come_through_that_migration_and_are_told_by_the_proof(empty_database: Database) -> None:
    command.upgrade(empty_database.alembic_config(), "0004")
    with empty_database.write() as tx:
        for statement in (
            "INSERT INTO stores (id, program, identity, created_at) VALUES (1, 'ledger', 'x', 5)",
            "INSERT INTO members (id, store_id, email_hmac, email_sealed, status, referral_code, balance, "
            "lifetime_points, created_at, updated_at) VALUES (1, 1, 'h', 's', 'member', 'c', 0, 0, 5, 5)",
            "INSERT INTO ledger_transactions (id, store_id, member_id, operation_id, kind, what, created_at) "
            "VALUES (1, 1, 1, 'a', 'award', '', 5)",
        ):
            tx.execute(text(statement))
    migrate(empty_database)
    with empty_database.read() as tx:
        assert [fault.split(":")[0] for fault in verify(tx)] == ["Transaction 1 does not balance"]


def test_the_migration_to_a_card_in_one_row_keeps_what_each_member_was_shown(empty_database: Database) -> None:
    """The latest five of the books, oldest first; nothing of who has nothing."""
    database = empty_database
    command.upgrade(database.alembic_config(), "0004")
    _bookings_of_0004(database)
    command.upgrade(database.alembic_config(), "0007")
    with database.write() as tx:
        tx.execute(
            text(
                "INSERT INTO members (id, store_id, email_hmac, email_sealed, status, referral_code, balance,"
                " lifetime_points, created_at, updated_at) VALUES (3, 1, 'new', 'sealed', 'member', 'new', 0, 0, 5, 5)"
            )
        )
        for number in range(5, 9):
            tx.execute(
                text(
                    "INSERT INTO ledger_transactions (id, store_id, member_id, operation_id, kind, what, points,"
                    " created_at) VALUES (:id, 1, 1, :name, 'opening_spent', :what, :points, :at)"
                ),
                {"id": number, "name": f"op-{number}", "what": 'It\'s "ü"', "points": number, "at": number},
            )
            for owner, side in ((None, "debit"), (1, "credit")):
                tx.execute(
                    text(
                        "INSERT INTO ledger_entries (transaction_id, member_id, side, points)"
                        " VALUES (:id, :owner, :side, :points)"
                    ),
                    {"id": number, "owner": owner, "side": side, "points": number},
                )
        tx.execute(text("UPDATE members SET balance = balance + 26 WHERE id = 1"))
    migrate(database)
    database.require_current()
    with database.read() as tx:
        kept = {row.id: row.latest_activity for row in tx.execute(select(members))}
        assert list(verify(tx)) == []
    assert kept == {
        1: [[1_000_000, "Undo", -50], *([number, 'It\'s "ü"', number] for number in range(5, 9))],
        2: [[1_000_000, "Big", 2**40]],
        3: [],
    }


def test_after_that_migration_old_bookings_are_as_fixed_as_new_ones(empty_database: Database) -> None:
    database = empty_database
    command.upgrade(database.alembic_config(), "0004")
    _bookings_of_0004(database)
    migrate(database)
    before = _rows(database, "ledger_transactions")
    for change in (
        "UPDATE ledger_transactions SET points = points + 1",
        "UPDATE ledger_transactions SET points = 0, what = ''",
        "UPDATE ledger_transactions SET what = 'other'",
        "UPDATE ledger_transactions SET what = '', member_id = NULL",
        "UPDATE ledger_entries SET points = points + 1",
        "DELETE FROM ledger_transactions",
        "DELETE FROM ledger_entries",
    ):
        with pytest.raises(DBAPIError, match="append-only"), database.write() as tx:
            tx.execute(text(change))
    assert _rows(database, "ledger_transactions") == before
    with database.write() as tx:
        tx.execute(text("UPDATE ledger_transactions SET what = '' WHERE operation_id = 'award'"))
    told = {row["operation_id"]: (row["what"], row["points"]) for row in _rows(database, "ledger_transactions")}
    assert told == {"opening": ("Opening", 120), "award": ("", 50), "undo": ("Undo", -50), "big": ("Big", 2**40)}


def _bookings_of_0004(database: Database) -> None:
    """Two members with what was booked for them, by the columns that the schema had before 0005."""
    bookings = (
        (1, 1, "opening", None, 120, "Opening"),
        (2, 1, "award", None, 50, "Award"),
        (3, 1, "undo", 2, -50, "Undo"),
        (4, 2, "big", None, 2**40, "Big"),
    )
    with database.write() as tx:
        tx.execute(
            text("INSERT INTO stores (id, program, identity, created_at) VALUES (1, 'ledger', 'ledger:acme', 5)")
        )
        for number, points in ((1, 120), (2, 2**40)):
            tx.execute(
                text(
                    "INSERT INTO members (id, store_id, email_hmac, email_sealed, status, referral_code, balance,"
                    " lifetime_points, created_at, updated_at)"
                    " VALUES (:id, 1, :name, 'sealed', 'member', :name, :points, :points, 5, 5)"
                ),
                {"id": number, "name": f"member {number}", "points": points},
            )
        for number, member_id, name, reverses_id, points, what in bookings:
            kind = {"opening": "opening", "undo": "reversal"}.get(name, "award")
            tx.execute(
                text(
                    "INSERT INTO ledger_transactions (id, store_id, member_id, operation_id, kind, what, reverses_id,"
                    " created_at) VALUES (:id, 1, :member_id, :name, :kind, :what, :reverses_id, 1000000)"
                ),
                {
                    "id": number,
                    "member_id": member_id,
                    "name": name,
                    "kind": kind,
                    "what": what,
                    "reverses_id": reverses_id,
                },
            )
            sides = [(None, "debit"), (member_id, "credit")] if points > 0 else [(member_id, "debit"), (None, "credit")]
            for owner, side in sides:
                tx.execute(
                    text(
                        "INSERT INTO ledger_entries (transaction_id, member_id, side, points)"
                        " VALUES (:transaction_id, :owner, :side, :points)"
                    ),
                    {"transaction_id": number, "owner": owner, "side": side, "points": abs(points)},
                )


def _awards_of_0002(database: Database, *, undone: bool) -> None:
    """An account with a ledger, one award and perhaps its undo, by the columns that the schema had before 0003."""
    with database.write() as tx:
        for statement in (
            "INSERT INTO accounts (id, name, state, token_version, connected_at, updated_at)"
            " VALUES (1, 'acme', 'connected', 0, 5, 5)",
            "INSERT INTO stores (id, program, identity, created_at) VALUES (1, 'ledger', 'ledger:acme', 5)",
            "INSERT INTO connections (id, account_id, store_id, state, max_points_per_award,"
            " max_points_per_agent_per_day, max_points_per_day, reasons, presets, allow_guests, show_date_of_birth,"
            " created_at) VALUES (1, 1, 1, 'active', 1000, 10000, 50000, '[]', '[]', false, false, 5)",
        ):
            tx.execute(text(statement))
        _add_award(tx, "op-award", reverses=None, nonce="nonce-1")
        if undone:
            _add_award(tx, "op-undo", reverses="op-award")


def _add_award(
    tx: Connection, operation_id: str, *, reverses: str | None, state: str | None = "applied", nonce: str | None = None
) -> None:
    tx.execute(
        text(
            "INSERT INTO awards (operation_id, store_id, connection_id, state, member_hmac, member_email_sealed,"
            " points, reason, channel, ticket_id, agent_hmac, agent_proof, award_key_nonce, fingerprint, reverses,"
            " balance_after, created_at, settled_at, note_state, note_attempts)"
            " VALUES (:operation_id, 1, 1, :state, 'hmac', 'sealed', 50, 'Goodwill', 'button', '7', '', 'claimed',"
            " :nonce, 'print', :reverses, 150, 1000000, 2000000, 'none', 0)"
        ),
        {"operation_id": operation_id, "state": state, "nonce": nonce, "reverses": reverses},
    )


def _rows(database: Database, table: str) -> list[dict[str, Any]]:
    key = "operation_id" if table == "awards" else "id"
    with database.read() as tx:
        return [dict(row) for row in tx.execute(text(f"SELECT * FROM {table} ORDER BY {key}")).mappings()]


def _book_once(database: Database, *, now: datetime) -> None:
    with database.write() as tx:
        store = open_store(tx, identity="ledger:acme", now=now)
        member_id = tx.execute(
            members.insert()
            .values(
                store_id=store.id,
                email_hmac="0" * 32,
                email_sealed="sealed",
                status="member",
                referral_code="abcd",
                balance=0,
                lifetime_points=0,
                created_at=now,
                updated_at=now,
            )
            .returning(members.c.id)
        ).scalar_one()
        book(
            tx,
            store_id=store.id,
            member_id=member_id,
            operation_id="op-1",
            kind=Kind.AWARD,
            points=5,
            what="Goodwill",
            now=now,
        )


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command: Sequence[str] = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

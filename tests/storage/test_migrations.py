"""The migrations bring a database to the shape of the tables, whoever runs them and however many at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from loyalty.ledger import Kind, book, open_store
from storage.database import Database
from storage.tables import members, metadata
from tests.databases import Clock

ROOT = Path(__file__).resolve().parents[2]

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
        context = MigrationContext.configure(tx, opts={"compare_type": True, "compare_server_default": True})
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
        "DELETE FROM ledger_transactions",
    ],
)
def test_the_database_refuses_to_change_what_was_booked(database: Database, clock: Clock, change: str) -> None:
    _book_once(database, now=clock())
    with pytest.raises(DBAPIError, match="append-only: book a reversal instead"), database.write() as tx:
        tx.execute(text(change))


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_transactions"])
def test_postgres_refuses_to_truncate_the_ledger(postgres_database: Database, clock: Clock, table: str) -> None:
    _book_once(postgres_database, now=clock())
    with pytest.raises(DBAPIError, match="append-only"), postgres_database.write() as tx:
        tx.execute(text(f"TRUNCATE {table} CASCADE"))


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

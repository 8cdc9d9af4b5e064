"""What the databases promise: durable writes, a known schema, and a sentence when something is wrong."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

import threads
from storage.database import Database, DatabaseUnavailable, unavailable_sentence
from storage.queue import defer
from storage.tables import app_keys, jobs
from tests.databases import Clock, migrate
from threads import Threads


def _pragma(database: Database, name: str) -> object:
    with database.read() as tx:
        return tx.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def test_sqlite_keeps_what_it_acknowledged_and_forgets_what_was_erased(sqlite_database: Database) -> None:
    assert _pragma(sqlite_database, "journal_mode") == "wal"
    assert _pragma(sqlite_database, "synchronous") == 2, "FULL"
    assert _pragma(sqlite_database, "secure_delete") == 1
    assert _pragma(sqlite_database, "foreign_keys") == 1


def test_a_block_that_raises_leaves_nothing_behind(database: Database) -> None:
    def write_and_fail() -> None:
        with database.write() as tx:
            tx.execute(insert(app_keys).values(name="half", sealed="x"))
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_and_fail()
    with database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(app_keys)) == 0


def test_a_read_sees_one_consistent_view(database: Database) -> None:
    """Whatever others commit meanwhile: a member's balance and its activity belong together."""
    with database.write() as tx:
        tx.execute(insert(app_keys).values(name="first", sealed="before"))
    with database.read() as tx:
        assert tx.scalar(select(app_keys.c.sealed)) == "before"
        with database.write() as other:
            other.execute(update(app_keys).values(sealed="after"))
        assert tx.scalar(select(app_keys.c.sealed)) == "before"
    with database.read() as tx:
        assert tx.scalar(select(app_keys.c.sealed)) == "after"


def test_writers_that_read_first_wait_for_each_other(database: Database) -> None:
    """Read, add one, write, from four threads: under the lock no addition is lost."""
    with database.write() as tx:
        tx.execute(insert(app_keys).values(name="count", sealed="0"))

    def add_ten() -> None:
        for _ in range(10):
            with database.write() as tx:
                database.lock(tx, "count")
                found = tx.scalars(select(app_keys.c.sealed)).one()
                tx.execute(update(app_keys).values(sealed=str(int(found) + 1)))

    threads = [threading.Thread(target=add_ten) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as tx:
        assert tx.scalar(select(app_keys.c.sealed)) == "40"


def test_whoever_waits_to_write_lets_another_thread_run(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a web server's few: at once, and not only when it has taken long."""
    monkeypatch.setattr(threads, "PATIENCE_S", 60)
    one = Threads(running=1, most=2, name="test")
    held = threading.Event()

    def write() -> None:
        held.set()
        with database.write("name"):
            pass

    with database.write("name"):
        waiting = one.submit(write)
        assert held.wait(30)
        assert one.submit(lambda: "ran").result(30) == "ran"
        assert not waiting.done()
    waiting.result(30)


def test_a_database_of_this_version_is_accepted(database: Database) -> None:
    database.require_current()


def test_an_empty_database_says_which_command_to_run(empty_database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"is empty\. Run: flask db-upgrade"):
        empty_database.require_current()


def test_an_older_database_says_which_command_to_run(database: Database) -> None:
    with database.write() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(DatabaseUnavailable, match=r"older version \(0001, .*Run: flask db-upgrade"):
        database.require_current()


def test_a_newer_database_is_not_touched(database: Database) -> None:
    with database.write() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseUnavailable, match=r"newer version of Tallydesk \(9999;"):
        database.require_current()


def test_a_server_that_does_not_run_is_named(tmp_path: Path) -> None:
    database = Database(f"postgresql+psycopg://nobody@/nothing?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable, match=r"cannot be reached\. Check DATABASE_URL"):
        database.require_current()
    database.close()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable, match="cannot be written"):
        Database(f"sqlite:///{tmp_path / 'file' / 'tallydesk.db'}")


def test_a_file_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a database. " * 100)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(DatabaseUnavailable, match=r"^The database"):
        database.require_current()
    database.close()


def test_a_writer_waits_for_the_one_before_it(sqlite_database: Database, clock: Clock) -> None:
    holder = sqlite3.connect(_file(sqlite_database), isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    started = threading.Event()

    def write() -> None:
        started.set()
        with sqlite_database.write() as tx:
            defer(tx, "job", "1", run_at=clock())

    writer = threading.Thread(target=write)
    writer.start()
    started.wait()
    holder.execute("COMMIT")
    writer.join()
    holder.close()
    with sqlite_database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(jobs)) == 1


def test_a_database_that_stays_locked_is_a_sentence(sqlite_database: Database, clock: Clock) -> None:
    holder = sqlite3.connect(_file(sqlite_database), isolation_level=None)
    with sqlite_database.read() as tx:  # the pooled connection that the writer will get
        tx.exec_driver_sql("PRAGMA busy_timeout=50")
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DBAPIError) as refused, sqlite_database.write() as tx:
        defer(tx, "job", "1", run_at=clock())
    assert unavailable_sentence(refused.value) == "The database is busy. Try again in a moment."
    holder.execute("COMMIT")
    holder.close()


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(sqlite_database: Database, clock: Clock) -> None:
    with sqlite_database.read() as tx:
        pages = tx.exec_driver_sql("PRAGMA page_count").scalar_one()
        tx.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")

    def fill() -> None:
        with sqlite_database.write() as tx:
            for number in range(10_000):
                defer(tx, "job", str(number), run_at=clock() + timedelta(seconds=number))

    with pytest.raises(DBAPIError) as refused:
        fill()
    assert unavailable_sentence(refused.value) == "The disk of the database is full. Make room and try again."
    with sqlite_database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(jobs)) == 0
    with sqlite_database.write() as tx:
        defer(tx, "job", "1", run_at=clock())
    with sqlite_database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(jobs)) == 1


def test_the_sentence_never_shows_sql_or_its_values(database: Database) -> None:
    def insert_twice() -> None:
        with database.write() as tx:
            for _ in range(2):
                tx.execute(insert(app_keys).values(name="secret-name", sealed="secret-value"))

    with pytest.raises(DBAPIError) as refused:
        insert_twice()
    assert unavailable_sentence(refused.value) == "The database refused the operation."


def test_upgrading_twice_changes_nothing(database: Database) -> None:
    migrate(database)
    database.require_current()


def _file(database: Database) -> str:
    return database.url.removeprefix("sqlite:///")


def test_a_silent_postgresql_does_not_hold_a_request() -> None:
    """It takes the connection and never answers: a card must still be out within its deadline."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = Database(f"postgresql+psycopg://user@127.0.0.1:{port}/tallydesk")
        began = time.monotonic()
        with pytest.raises(OperationalError), database.read():
            pass
        assert time.monotonic() - began < 10, "without a limit it would never end"
        database.close()


def test_a_statement_on_postgresql_has_a_limit_and_a_report_has_none(postgres_database: Database) -> None:
    limits = []
    with postgres_database.read() as tx:
        limits.append(tx.scalar(text("SHOW statement_timeout")))
    with postgres_database.write() as tx:
        limits.append(tx.scalar(text("SHOW statement_timeout")))
    with postgres_database.read(unhurried=True) as tx:
        limits.append(tx.scalar(text("SHOW statement_timeout")))
    assert limits == ["2s", "8s", "0"]


def test_sqlite_refuses_to_replace_what_was_booked(sqlite_database: Database) -> None:
    with sqlite_database.write() as tx:
        tx.execute(text("INSERT INTO stores (program, identity, created_at) VALUES ('ledger', 'x', 0)"))
        tx.execute(
            text(
                "INSERT INTO members (store_id, email_hmac, email_sealed, status, referral_code, balance,"
                " lifetime_points, created_at, updated_at) VALUES (1, 'h', 's', 'member', 'c', 0, 0, 0, 0)"
            )
        )
        transaction = "ledger_transactions (id, store_id, member_id, operation_id, kind, what, created_at)"
        tx.execute(text(f"INSERT INTO {transaction} VALUES (1, 1, 1, 'a', 'award', '', 0)"))
    for replacing in ("(1, 1, 1, 'b', 'award', '', 0)", "(2, 1, 1, 'a', 'award', '', 0)"):
        with pytest.raises(IntegrityError, match="append-only"), sqlite_database.write() as tx:
            tx.execute(text(f"INSERT OR REPLACE INTO {transaction} VALUES {replacing}"))

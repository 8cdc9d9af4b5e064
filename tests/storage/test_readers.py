"""Single questions: they see what was committed, cannot write, and outlive whatever happens to their connections."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Integer, bindparam, func, insert, literal_column, select, text, update
from sqlalchemy.exc import DataError, DBAPIError, OperationalError

from loyalty.ledger import verify
from storage import single_statements
from storage.database import Database, unavailable_sentence
from storage.sealing import RandomBytes, Sealer
from storage.single_statements import SqliteReaders
from storage.tables import app_keys
from tests.databases import Clock, Postgres
from tests.ledgers import LedgerRoom
from tests.storage.together import at_once

SEALED = select(app_keys.c.sealed).where(app_keys.c.name == bindparam("name"))
ANSWERED_BY = select(func.pg_backend_pid().label("pid"))
DIVIDED = select((literal_column("1", Integer) // bindparam("by", type_=Integer)).label("result"))


@pytest.fixture
def path(tmp_path: Path, migrated_file: Path) -> Path:
    """A migrated SQLite file that nobody has opened."""
    path = tmp_path / "alone.db"
    shutil.copyfile(migrated_file, path)
    return path


@pytest.fixture
def readers(path: Path) -> Iterator[SqliteReaders]:
    with closing(SqliteReaders(str(path))) as readers:
        yield readers


def test_a_question_sees_exactly_what_was_committed_before_it(database: Database) -> None:
    with database.write() as tx:
        tx.execute(insert(app_keys).values(name="x", sealed="0"))
    for number in range(1, 20):
        with database.write(may_be_lost=number % 2 == 0) as tx:
            tx.execute(update(app_keys).values(sealed=str(number)))
            assert _sealed(database) == str(number - 1)
        assert _sealed(database) == str(number)


def test_many_threads_each_get_the_answer_to_their_own_question(database: Database) -> None:
    names = [f"name {number}" for number in range(12)]
    with database.write() as tx:
        tx.execute(insert(app_keys), [{"name": name, "sealed": f"of {name}"} for name in names])

    def ask(number: int) -> set[str]:
        return {_sealed(database, names[number]) for _ in range(40)}

    assert at_once(12, ask) == [{f"of {name}"} for name in names]


def test_a_balance_and_its_activity_are_of_one_moment(
    database: Database, sealer: Sealer, clock: Clock, random_bytes: RandomBytes
) -> None:
    """While points are booked: what a card lists adds up to what it says, as long as it lists everything."""
    room = LedgerRoom(database, sealer=sealer, clock=clock, random_bytes=random_bytes)
    emails = [f"member{number}@example.com" for number in range(10)]
    for email in emails:
        room.enrol(room.store, email=email)
    booked = threading.Event()
    looks: list[tuple[int, int, int]] = []

    def book(_: int) -> None:
        try:
            for points in (3, -1, 50, 700):
                for email in emails:
                    room.award(email, points)
        finally:
            booked.set()

    def look(_: int) -> None:
        last_round = False
        while not last_round:
            last_round = booked.is_set()
            for email in emails:
                member = room.program.member(room.store, email=email)
                assert member is not None
                shown = [entry.points for entry in member.recent_activity]
                looks.append((member.points_balance, member.lifetime_points or 0, sum(shown)))

    at_once(3, lambda number: (book if number == 0 else look)(number))
    assert {look for look in looks if len(set(look)) != 1} == set()
    assert looks[-1] == (752, 752, 752)
    with database.read() as tx:
        assert list(verify(tx)) == []


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO app_keys (name, sealed) VALUES ('x', 'y') RETURNING name",
        "DELETE FROM alembic_version",
        "CREATE TABLE more (id INTEGER)",
        "PRAGMA user_version = 7",
    ],
)
def test_who_only_reads_a_sqlite_file_cannot_write_to_it(readers: SqliteReaders, path: Path, sql: str) -> None:
    readers.fetch("SELECT * FROM alembic_version", ())
    before = path.read_bytes()
    with pytest.raises(OperationalError, match="readonly"):
        readers.fetch(sql, ())
    assert path.read_bytes() == before
    assert readers.fetch("SELECT count(*) FROM alembic_version", ()) == [(1,)], "and goes on reading"


def test_a_sqlite_file_locked_against_readers_is_told_and_read_again_afterwards(
    readers: SqliteReaders, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_statements, "BUSY_MS", 20)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        for statement in ("PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE", "DELETE FROM app_keys"):
            holder.execute(statement)
        with pytest.raises(OperationalError) as refused:
            readers.fetch("SELECT * FROM app_keys", ())
        assert unavailable_sentence(refused.value) == "The database is busy. Try again in a moment."
        holder.execute("ROLLBACK")
    assert readers.fetch("SELECT * FROM app_keys", ()) == []


def test_a_sqlite_file_that_has_vanished_is_told_and_not_made_anew(readers: SqliteReaders, path: Path) -> None:
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(OperationalError) as refused:
        readers.fetch("SELECT * FROM app_keys", ())
    assert "cannot be written" in unavailable_sentence(refused.value)
    assert not path.exists()
    path.write_bytes(kept)
    assert readers.fetch("SELECT * FROM app_keys", ()) == []


def test_a_file_that_is_no_database_is_told_until_it_is_one_again(readers: SqliteReaders, path: Path) -> None:
    kept = path.read_bytes()
    path.write_bytes(b"this was a database once" * 1_000)
    for _ in range(2):
        with pytest.raises(DBAPIError, match="not a database"):
            readers.fetch("SELECT * FROM app_keys", ())
    path.write_bytes(kept)
    assert readers.fetch("SELECT * FROM app_keys", ()) == []


def test_questions_go_on_after_postgresql_dropped_every_connection(
    postgres_database: Database, postgres: Postgres
) -> None:
    """However many there were: the next question is asked once more, on a connection of its own."""
    before = set(at_once(4, lambda _: _answered_by(postgres_database)))
    _drop_connections(postgres_database, postgres)
    after = {_answered_by(postgres_database) for _ in range(5)}
    assert before.isdisjoint(after)


def test_who_only_reads_postgresql_cannot_write(postgres_database: Database) -> None:
    steal = insert(app_keys).values(name="x", sealed="x").returning(app_keys.c.name)
    with pytest.raises(DBAPIError, match="read-only transaction"):
        postgres_database.look_up(steal)  # type: ignore[arg-type]


def test_many_who_lose_their_connections_at_once_leave_none_open(
    postgres_database: Database, postgres: Postgres
) -> None:
    name = postgres_database.engine.url.database
    for _ in range(3):
        at_once(6, lambda _: _answered_by(postgres_database))
        _drop_connections(postgres_database, postgres)
        at_once(6, lambda _: _answered_by(postgres_database))
        with postgres_database.read() as tx:
            open_ = tx.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name"), {"name": name})
        # Four that only read, and this one.
        assert open_ <= 5


def test_a_postgresql_that_takes_nobody_is_told_and_asked_again_afterwards(
    postgres_database: Database, postgres: Postgres
) -> None:
    name = postgres_database.engine.url.database
    _answered_by(postgres_database)
    postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    _drop_connections(postgres_database, postgres)
    for _ in range(2):
        with pytest.raises(OperationalError) as refused:
            _answered_by(postgres_database)
        assert "cannot be reached" in unavailable_sentence(refused.value)
    postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert _answered_by(postgres_database)


def test_a_question_that_postgresql_refuses_leaves_its_connection_as_it_was(postgres_database: Database) -> None:
    pid = _answered_by(postgres_database)
    with pytest.raises(DataError, match="division by zero") as refused:
        postgres_database.look_up(DIVIDED, by=0)
    assert not refused.value.connection_invalidated
    assert _answered_by(postgres_database) == pid


def _sealed(database: Database, name: str = "x") -> str:
    (row,) = database.look_up(SEALED, name=name)
    sealed: str = row.sealed
    return sealed


def _answered_by(database: Database) -> int:
    """Which of the server's processes answers."""
    (row,) = database.look_up(ANSWERED_BY)
    pid: int = row.pid
    return pid


def _drop_connections(database: Database, postgres: Postgres) -> None:
    """End every connection to `database`, and wait until they have ended."""
    name = database.engine.url.database
    postgres.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")

"""Transactions on PostgreSQL: what is sent together, in which order, and what becomes of errors on the way."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError

from storage.database import Database
from storage.queue import defer
from storage.statements import ask, change, run, run_one
from storage.tables import app_keys
from tests.databases import Clock

WRITE = insert(app_keys).values(name=bindparam("name"), sealed=bindparam("sealed"))
CHANGE = update(app_keys).where(app_keys.c.name == bindparam("of")).values(sealed=bindparam("becomes"))
COUNT = select(func.count().label("all")).select_from(app_keys)
SETTINGS = ("statement_timeout", "enable_seqscan", "jit")
NAMES = select(app_keys.c.name).order_by(app_keys.c.name)


@pytest.fixture
def database(postgres_database: Database) -> Database:
    """These are about PostgreSQL alone."""
    return postgres_database


@pytest.fixture
def messages(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many statements went to the server in each message, on a connection that is there already."""
    with database.write():
        pass
    sent: list[int] = []
    within: list[int] = []
    execute, enter, leave = psycopg.Cursor.execute, psycopg.Pipeline.__enter__, psycopg.Pipeline.__exit__

    def count(self: Any, *args: Any, **more: Any) -> Any:
        if within:
            within[-1] += 1
        else:
            sent.append(1)
        return execute(self, *args, **more)

    def begin(self: Any) -> Any:
        within.append(0)
        return enter(self)

    def end(self: Any, *why: Any) -> Any:
        sent.append(within.pop())
        return leave(self, *why)

    monkeypatch.setattr(psycopg.Cursor, "execute", count)
    monkeypatch.setattr(psycopg.Pipeline, "__enter__", begin)
    monkeypatch.setattr(psycopg.Pipeline, "__exit__", end)
    return sent


def names(database: Database) -> list[str]:
    with database.read() as tx:
        return list(tx.scalars(NAMES))


def test_what_gives_no_rows_goes_along_with_the_end_of_the_transaction(database: Database, messages: list[int]) -> None:
    with database.write("a lock", "another", may_be_lost=True) as tx:
        for name in "abc":
            run(tx, WRITE, name=name, sealed="")
        assert messages == [1], "begun, with its locks"
    assert messages == [1, 4]
    assert names(database) == ["a", "b", "c"]


def test_rows_are_those_after_everything_that_was_asked_for_before(database: Database, messages: list[int]) -> None:
    with database.write() as tx:
        before = ask(tx, COUNT)
        run(tx, WRITE, name="a", sealed="")
        after = ask(tx, COUNT)
        run(tx, WRITE, name="b", sealed="")
        assert run_one(tx, COUNT).all == 2
        assert messages == [1, 5]
        assert [before()[0].all, after()[0].all, after()[0].all] == [0, 1, 1]
        last = ask(tx, NAMES)
        assert change(tx, CHANGE, of="a", becomes="x") == 1
        assert [row.name for row in last()] == ["a", "b"]
        assert messages == [1, 5, 2], "what was asked for is sent once"


def test_what_goes_past_these_statements_finds_what_was_written_before(database: Database) -> None:
    with database.write() as tx:
        run(tx, WRITE, name="a", sealed="")
        assert tx.execute(NAMES).scalars().all() == ["a"]
        run(tx, WRITE, name="b", sealed="")
        database.lock(tx, "a lock")
        assert tx.execute(NAMES).scalars().all() == ["a", "b"]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_the_first_that_is_refused_ends_the_transaction_with_its_own_error(database: Database, after: int) -> None:
    """Whether it is sent alone or with others that are not run then."""
    with database.write() as tx:
        run(tx, WRITE, name="taken", sealed="")

    def write() -> None:
        with database.write() as tx:
            run(tx, WRITE, name="before", sealed="")
            run(tx, WRITE, name="taken", sealed="secret")
            for number in range(after):
                run(tx, WRITE, name=f"after {number}", sealed="")

    # Until the driver has prepared it, and after.
    for _ in range(20):
        with pytest.raises(IntegrityError) as refused:
            write()
        assert "duplicate key" in str(refused.value.orig)
        assert str(refused.value.statement).startswith("INSERT INTO app_keys")
        assert "secret" not in str(refused.value)
    assert names(database) == ["taken"]
    with database.write() as tx:
        run(tx, WRITE, name="next", sealed="")
    assert names(database) == ["next", "taken"], "the connection is as good as new"


def test_it_is_refused_at_the_rows_that_come_after_it(database: Database) -> None:
    with database.write() as tx:
        run(tx, WRITE, name="taken", sealed="")

    def go_on_as_if_nothing_had_happened() -> None:
        with database.write() as tx:
            run(tx, WRITE, name="taken", sealed="")
            asked = ask(tx, COUNT)
            with pytest.raises(IntegrityError):
                run(tx, NAMES)
            with pytest.raises(DBAPIError):
                run(tx, NAMES)
            with pytest.raises(InvalidRequestError, match="was not run"):
                asked()

    for _ in range(20):
        with pytest.raises(InvalidRequestError, match="nothing was written"):
            go_on_as_if_nothing_had_happened()
    assert names(database) == ["taken"]
    with database.write() as tx:
        run(tx, WRITE, name="next", sealed="")
    assert names(database) == ["next", "taken"]


@pytest.mark.parametrize("sealed", ["a\0b", "\ud800", {}])
def test_what_the_driver_itself_refuses_ends_the_transaction_too(database: Database, sealed: object) -> None:
    """Although the server never heard of it, nor of what was to come after."""

    def go_on_as_if_nothing_had_happened() -> None:
        with database.write() as tx:
            run(tx, WRITE, name="before", sealed="")
            run(tx, WRITE, name="bad", sealed=sealed)
            run(tx, WRITE, name="after", sealed="")
            with suppress(Exception):
                run(tx, NAMES)

    for _ in range(7):
        with pytest.raises(InvalidRequestError, match="nothing was written"):
            go_on_as_if_nothing_had_happened()
    assert names(database) == []


def test_of_a_block_that_raises_nothing_is_sent_any_more(database: Database, messages: list[int]) -> None:
    def write() -> None:
        with database.write() as tx:
            run(tx, WRITE, name="a", sealed="")
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        write()
    assert messages == [1], "no statement"
    assert names(database) == []


def test_connections_that_the_server_has_ended_meanwhile_are_not_noticed(database: Database) -> None:
    with database.write() as tx, database.write() as other:
        for each in (tx, other):
            run(each, COUNT)
    with database.write() as tx:
        tx.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    for name in "abc":
        with database.write() as tx:
            run(tx, WRITE, name=name, sealed="")
    assert names(database) == ["a", "b", "c"]


def test_a_connection_that_ends_in_the_middle_is_trouble_and_nothing_was_written(database: Database) -> None:
    def write() -> None:
        with database.write() as tx:
            pid = tx.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            with database.write() as other:
                other.exec_driver_sql(f"SELECT pg_terminate_backend({pid:d}, 5000)")
            run(tx, WRITE, name="a", sealed="")

    with pytest.raises(DBAPIError) as lost:
        write()
    assert lost.value.connection_invalidated
    assert names(database) == []


def test_asking_for_a_job_reads_as_little_when_very_many_wait(database: Database, clock: Clock) -> None:
    """PostgreSQL keeps the plans that a connection made while the queue was empty, and known to be."""
    with database.write() as tx:
        tx.exec_driver_sql("ANALYZE procrastinate_jobs")
    for number in range(300):
        with database.write() as tx:
            defer(tx, "job", str(number), run_at=clock())
    with database.write() as tx:
        tx.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    with database.read() as tx:
        read_through = tx.exec_driver_sql(
            "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'procrastinate_jobs'"
        ).scalar_one()
    assert read_through == 0


def test_every_connection_has_its_time_limit_and_finds_rows_by_an_index(database: Database) -> None:
    with database.write() as tx, database.write() as other:
        for each in (tx, other):
            told = [each.exec_driver_sql(f"SHOW {name}").scalar_one() for name in SETTINGS]
            assert told == ["8s", "off", "off"]

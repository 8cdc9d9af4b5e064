"""Statements put to the driver: the types of the columns, errors as SQLAlchemy has them, transactions that end well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, NoResultFound

from loyalty.awards import _ALIKE
from storage.database import Database
from storage.statements import ask, prepared, run, run_one
from storage.tables import UtcTime, app_keys
from tests.databases import Postgres

NOON = datetime(2026, 3, 14, 12, 0, 0, 123_456, tzinfo=UTC)

things = Table(
    "things",
    MetaData(),
    Column("name", String(20), primary_key=True),
    Column("at", UtcTime),
    Column("said", JSON),
    Column("is_open", Boolean),
    Column("number", Integer),
    Column("secret", String(40), unique=True),
)
VALUES = ("name", "at", "said", "is_open", "number")

WRITE = insert(things).values({name: bindparam(name) for name in VALUES})
WRITE_AND_TELL = WRITE.returning(things.c.at, things.c.said, things.c.is_open)
WRITE_SECRET = insert(things).values(name=bindparam("name"), secret=bindparam("secret"))
READ = select(*[things.c[name] for name in VALUES]).where(things.c.name == bindparam("of"))
NUMBERS = select(things.c.number).order_by(things.c.number)


@pytest.fixture
def things_database(empty_database: Database) -> Database:
    """A database with the table of these tests, empty."""
    with empty_database.write() as tx:
        things.metadata.create_all(tx)
    return empty_database


@pytest.mark.parametrize(
    "values",
    [
        {"at": NOON, "said": {"a": [1, None, "ж"], "b": {}}, "is_open": True, "number": 2**31 - 1},
        {"at": datetime(1969, 12, 31, tzinfo=UTC), "said": [], "is_open": False, "number": 0},
        {"at": None, "said": None, "is_open": None, "number": None},
    ],
)
def test_values_go_in_and_come_out_as_the_types_of_their_columns_say(
    things_database: Database, values: dict[str, Any]
) -> None:
    """The same as SQLAlchemy reads them, in rows that a statement returns and rows that it selects."""
    with things_database.write() as tx:
        told = run_one(tx, WRITE_AND_TELL, name="x", **values)
        (row,) = run(tx, READ, of="x")
        known = tx.execute(READ, {"of": "x"}).one()
    for name, value in values.items():
        assert getattr(row, name) == value == getattr(known, name), name
        assert type(getattr(row, name)) is type(value), name
    assert (told.at, told.said, told.is_open) == (values["at"], values["said"], values["is_open"])
    assert things_database.look_up(READ, of="x") == [row]


def test_a_time_of_another_zone_is_the_same_moment(things_database: Database) -> None:
    later = NOON.astimezone(timezone(timedelta(hours=2))) + timedelta(microseconds=1)
    with things_database.write() as tx:
        run(tx, WRITE, name="x", at=later, said=None, is_open=None, number=None)
        row = run_one(tx, READ, of="x")
    assert row.at == later
    assert row.at.tzinfo is UTC


WRITE_CONSTANTS = insert(things).values(
    name=bindparam("name"), at=NOON, said={"k": [1]}, is_open=True, number=7, secret=None
)
CHANGE_CONSTANTS = (
    update(things)
    .where(things.c.is_open == True, things.c.at >= NOON, things.c.name == bindparam("of"))  # noqa: E712 (SQL)
    .values(at=NOON + timedelta(days=1), number=things.c.number + bindparam("more"), is_open=False)
    .returning(things.c.number, things.c.at, things.c.is_open)
)


def test_constants_of_a_statement_are_written_as_the_types_say_too(things_database: Database) -> None:
    with things_database.write() as tx:
        for name in ("x", "y"):
            assert run(tx, WRITE_CONSTANTS, name=name) == []
        row = run_one(tx, READ, of="x")
        assert (row.at, row.said, row.is_open, row.number) == (NOON, {"k": [1]}, True, 7)
        changed = run_one(tx, CHANGE_CONSTANTS, of="x", more=3)
        assert tuple(changed) == (10, NOON + timedelta(days=1), False)
        assert run(tx, CHANGE_CONSTANTS, of="x", more=3) == [], "it is no longer open"
        assert run_one(tx, READ, of="y").number == 7, "and values of one run are not those of the next"


TWICE = (
    select(
        things.c.number.label("second"),
        (things.c.number + bindparam("more", type_=Integer)).label("first"),
        func.coalesce(things.c.secret, literal_column("'none'")).label("spoken"),
        things.c.at,
    )
    .where(or_(things.c.name == bindparam("of"), things.c.secret == bindparam("of")))
    .order_by(things.c.number)
)


def test_rows_are_read_by_name_whatever_the_order_of_columns_and_parameters(things_database: Database) -> None:
    with things_database.write() as tx:
        run(tx, WRITE, name="x", at=NOON, said=None, is_open=None, number=1)
        run(tx, WRITE_SECRET, name="other", secret="x")
        rows = run(tx, TWICE, of="x", more=10)
    by_secret = {row.spoken: row for row in rows}
    assert set(by_secret) == {"none", "x"}
    assert (by_secret["none"].first, by_secret["none"].second, by_secret["none"].at) == (11, 1, NOON)
    assert by_secret["none"]._fields == ("second", "first", "spoken", "at")


def test_the_first_statement_of_a_reading_begins_its_transaction(things_database: Database) -> None:
    """Else each statement would see the newest commits."""
    with things_database.read() as tx:
        assert not tx.in_transaction()
        assert run(tx, NUMBERS) == []
        assert tx.in_transaction()
        with things_database.write() as other:
            run(other, WRITE_CONSTANTS, name="x")
        assert run(tx, NUMBERS) == []
    assert [row.number for row in things_database.look_up(NUMBERS)] == [7]


def test_a_value_that_was_forgotten_or_misspelt_is_an_error_and_no_null(database: Database) -> None:
    find = select(app_keys.c.sealed).where(app_keys.c.name == bindparam("name"))
    for values in ({}, {"nmae": "x"}, {"name": "x", "more": "y"}):
        with pytest.raises(TypeError, match=r"Needed are \['name'\]"):
            database.look_up(find, **values)


def test_one_row_is_one_row_and_neither_none_nor_two(things_database: Database) -> None:
    with things_database.write() as tx:
        with pytest.raises(NoResultFound, match="0 rows"):
            run_one(tx, NUMBERS)
        run(tx, WRITE_CONSTANTS, name="x")
        assert run_one(tx, NUMBERS).number == 7
        run(tx, WRITE_CONSTANTS, name="y")
        with pytest.raises(NoResultFound, match="2 rows"):
            run_one(tx, NUMBERS)


def test_what_the_database_refuses_is_an_integrity_error_without_the_values_and_leaves_nothing(
    things_database: Database,
) -> None:
    with things_database.write() as tx:
        run(tx, WRITE, name="taken", at=None, said=None, is_open=None, number=1)

    def write_twice() -> None:
        with things_database.write() as tx:
            run(tx, WRITE_CONSTANTS, name="first")
            run(tx, WRITE, name="taken", at=NOON, said={"said": "in confidence"}, is_open=True, number=987_654)

    with pytest.raises(IntegrityError) as refused:
        write_twice()
    assert not refused.value.connection_invalidated
    assert refused.value.params is None
    for value in ("in confidence", "987654", str((NOON - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1))):
        assert value not in str(refused.value)
        assert value not in repr(refused.value)
    assert [row.number for row in things_database.look_up(NUMBERS)] == [1], "the first of the two is gone as well"


GONE = delete(Table("gone", MetaData(), Column("id", Integer)))


def test_a_table_that_is_not_there_is_sqlalchemys_error_and_the_connection_serves_on(things_database: Database) -> None:
    with pytest.raises(DBAPIError, match="gone") as refused, things_database.write() as tx:
        run(tx, GONE)
    assert not refused.value.connection_invalidated
    with things_database.write() as tx:
        run(tx, WRITE_CONSTANTS, name="x")
    assert [row.number for row in things_database.look_up(NUMBERS)] == [7]


@pytest.mark.parametrize("empty_database", ["postgres"], indirect=True)
def test_a_connection_that_was_lost_is_told_and_the_transaction_ends_cleanly(
    things_database: Database, postgres: Postgres
) -> None:
    """In a writing and in a reading transaction; the next ones have connections of their own."""

    def lose_connection(transaction: Any, statement: Any, **values: Any) -> None:
        with transaction as tx:
            run(tx, statement, **values)
            pid = tx.scalar(text("SELECT pg_backend_pid()"))
            postgres.run(f"SELECT pg_terminate_backend({pid}, 10000)")
            run(tx, NUMBERS)

    with pytest.raises(DBAPIError) as lost:
        lose_connection(things_database.write(), WRITE_CONSTANTS, name="lost")
    assert lost.value.connection_invalidated
    with pytest.raises(DBAPIError) as lost:
        lose_connection(things_database.read(), NUMBERS)
    assert lost.value.connection_invalidated
    with things_database.write() as tx:
        run(tx, WRITE_CONSTANTS, name="after")
    with things_database.read() as tx:
        assert [row.number for row in run(tx, NUMBERS)] == [7], "what was begun was not committed"


def test_rows_that_are_looked_at_later_are_those_of_the_moment_they_were_asked_for(things_database: Database) -> None:
    with things_database.write() as tx:
        numbers = ask(tx, NUMBERS)
        run(tx, WRITE, name="x", at=NOON, said={}, is_open=True, number=1)
        assert [row.number for row in run(tx, NUMBERS)] == [1]
        assert (numbers(), numbers()) == ([], [])


@pytest.mark.parametrize("said", ["it's", "back\\slash \\'", 'a "name"; --', "100 %", "100 %s %(x)s", ":of ? $1"])
def test_constants_are_written_out_and_come_through_whole(things_database: Database, said: str) -> None:
    found = select(things.c.name).where(things.c.name == said, things.c.is_open == bindparam("open")).limit(1)
    with things_database.write() as tx:
        run(tx, WRITE, name=said, at=NOON, said={}, is_open=True, number=1)
        assert [row.name for row in run(tx, found, open=True)] == [said]
        run(tx, update(things).where(things.c.name == said).values(number=bindparam("number")), number=2)
        assert [row.number for row in run(tx, NUMBERS)] == [2]


def test_what_an_award_is_compared_with_is_found_by_the_index_of_what_is_open(sqlite_database: Database) -> None:
    """A parameter in the place of a constant would hide from SQLite that the index serves, until it plans again."""
    statement = prepared(_ALIKE, sqlite_database.engine.dialect)
    assert statement.sql.count("!= 'rejected'") == 5
    with sqlite_database.read() as tx:
        driver: Any = tx.connection.driver_connection
        asked: dict[str, Any] = dict.fromkeys(("member_hmac", "ticket_id", "agent_hmac"), "")
        asked |= dict.fromkeys(("points", "credit_cents", "store_id", "connection_id"), 1) | {"since": NOON}
        plan = [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters(asked))]
    assert "SEARCH awards USING INDEX ix_awards_open (connection_id=? AND member_hmac=?)" in plan
    assert not [step for step in plan if step.startswith(("SCAN", "USE TEMP"))]

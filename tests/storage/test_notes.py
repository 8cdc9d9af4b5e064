"""Single statements that write: a transaction each, for what can be asked for again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError

from storage.database import Database
from storage.tables import app_keys
from tests.databases import Postgres
from tests.processes.serving import wait_for
from tests.storage.together import at_once

ADD = insert(app_keys).values(name=bindparam("of"), sealed=bindparam("value"))
COUNT = (
    update(app_keys)
    .where(app_keys.c.name == bindparam("of"), app_keys.c.sealed == bindparam("was"))
    .values(sealed=bindparam("value"))
)
VALUE = select(app_keys.c.sealed).where(app_keys.c.name == bindparam("of"))
TIMES = 50


@pytest.fixture
def other(database: Database) -> Iterator[Database]:
    """The same database, as another process has it."""
    found = Database(database.url)
    yield found
    found.close()


def value_of(database: Database) -> str:
    (row,) = database.look_up(VALUE, of="count")
    return str(row.sealed)


def test_a_note_is_there_for_everybody_and_tells_how_many_rows_it_changed(database: Database, other: Database) -> None:
    assert database.note(ADD, of="count", value="0") == 1
    assert other.note(COUNT, of="count", was="0", value="1") == 1
    assert database.note(COUNT, of="count", was="0", value="2") == 0
    assert value_of(database) == value_of(other) == "1"


def test_a_note_that_is_refused_says_so_and_changes_nothing(database: Database) -> None:
    database.note(ADD, of="count", value="0")
    with pytest.raises(DBAPIError):
        database.note(ADD, of="count", value="1")
    assert value_of(database) == "0"
    assert database.note(COUNT, of="count", was="0", value="1") == 1, "and the next one is taken"


def test_a_note_that_waited_in_line_and_finds_the_disk_full_says_so(sqlite_database: Database) -> None:
    told: list[BaseException] = []

    def note() -> None:
        try:
            sqlite_database.note(ADD, of="big", value="x" * 1_000_000)
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=note)

    def hold() -> None:
        with sqlite_database.write() as tx:
            pages = tx.exec_driver_sql("PRAGMA page_count").scalar_one()
            tx.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            thread.start()
            line = sqlite_database._writer._line  # type: ignore[union-attr]
            wait_for(lambda: bool(line._places), "the note never stood in line")

    # Who shares a transaction with it hears so too.
    with pytest.raises(DBAPIError):
        hold()
    thread.join(timeout=30)
    assert [isinstance(error, DBAPIError) for error in told] == [True]


def test_a_note_for_which_no_connection_can_be_made_says_so(tmp_path: Path) -> None:
    path = tmp_path / "gone.db"
    database = Database(f"sqlite:///{path}")
    path.unlink()
    path.mkdir()
    with pytest.raises(DBAPIError, match="unable to open"):
        database.note(ADD, of="count", value="0")
    database.close()


def test_of_many_who_write_under_a_condition_each_counts_once(database: Database, other: Database) -> None:
    """Beside transactions, which it waits for where it must."""
    database.note(ADD, of="count", value="0")

    def count(number: int) -> None:
        here = (database, other)[number % 2]
        for _ in range(TIMES):
            while True:
                was = value_of(here)
                if here.note(COUNT, of="count", was=was, value=str(int(was) + 1)):
                    break

    def write(number: int) -> None:
        for turn in range(TIMES):
            with (database, other)[number % 2].write() as tx:
                tx.execute(app_keys.insert().values(name=f"{number}-{turn}", sealed=""))

    at_once(8, lambda number: (count if number < 4 else write)(number))
    assert value_of(database) == str(4 * TIMES)
    with database.read() as tx:
        assert len(tx.execute(select(app_keys.c.name).where(app_keys.c.name.like("%-%"))).all()) == 4 * TIMES


def test_a_note_waits_for_whoever_writes_just_now(sqlite_database: Database) -> None:
    noted = threading.Event()

    def note() -> None:
        sqlite_database.note(ADD, of="count", value="0")
        noted.set()

    with sqlite_database.write() as tx:
        tx.execute(app_keys.insert().values(name="first", sealed=""))
        thread = threading.Thread(target=note)
        thread.start()
        assert not noted.wait(0.1)
    thread.join(timeout=30)
    assert value_of(sqlite_database) == "0"


def test_a_server_that_was_started_anew_costs_no_note_and_no_transaction(
    postgres_database: Database, postgres: Postgres
) -> None:
    postgres_database.note(ADD, of="count", value="0")
    with postgres_database.write() as tx:
        tx.execute(app_keys.insert().values(name="before", sealed=""))
    name = postgres_database.engine.url.database
    postgres.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")
    assert postgres_database.note(COUNT, of="count", was="0", value="1") == 1
    with postgres_database.write("a lock") as tx:
        tx.execute(app_keys.insert().values(name="after", sealed=""))
    with postgres_database.read() as tx:
        assert {"before", "after"} <= set(tx.scalars(select(app_keys.c.name)))


def test_a_transaction_that_cannot_have_its_lock_leaves_its_connection_clean(postgres_database: Database) -> None:
    """The next one on it begins anew, and nothing of the first is held."""

    def wait_in_vain() -> None:
        with postgres_database.write() as waiting:
            postgres_database.limit_statements(waiting, seconds=1)
            postgres_database.lock(waiting, "taken")

    with postgres_database.write("taken") as tx:
        with pytest.raises(DBAPIError, match="timeout"):
            wait_in_vain()
        tx.execute(app_keys.insert().values(name="first", sealed=""))
    for _ in range(3):
        with postgres_database.write("taken") as tx:
            tx.execute(app_keys.insert().values(name="then", sealed=""))
            tx.execute(app_keys.delete().where(app_keys.c.name == "then"))

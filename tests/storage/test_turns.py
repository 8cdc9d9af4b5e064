"""Writers take turns: all of them come to write, whoever vanishes gives its turn back, and nobody waits for ever."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import OperationalError

from storage.database import UNWRITABLE, Database, unavailable_sentence
from storage.tables import app_keys
from tests.databases import Postgres
from tests.storage.together import at_once
from tests.storage.write_many import THREADS, TIMES, count_up

ROOT = Path(__file__).parents[2]


@pytest.fixture
def other_database(sqlite_database: Database) -> Iterator[Database]:
    """The same file as `sqlite_database`, as another process has it."""
    other = Database(sqlite_database.url)
    yield other
    other.close()


def test_writers_of_several_processes_and_threads_all_come_to_write(
    sqlite_database: Database, other_database: Database
) -> None:
    """None of them is refused, and none writes over what another has just written."""
    _add(sqlite_database, "count", "0")
    databases = [sqlite_database, other_database]
    with _process(sqlite_database, "count") as one, _process(sqlite_database, "count") as two:
        for process in (one, two):
            assert _line(process) == "ready"
        for process in (one, two):
            _say(process, "go")
        at_once(4, lambda number: count_up(databases[number % 2], times=TIMES))
        for process in (one, two):
            assert process.wait(timeout=60) == 0
    assert _rows(sqlite_database) == {"count": str(2 * THREADS * TIMES + 4 * TIMES)}


def test_a_process_killed_in_its_transaction_gives_its_turn_back(sqlite_database: Database) -> None:
    """Also to whoever waits for it already, and with nothing of what it had begun."""
    with _process(sqlite_database, "hold") as process:
        assert _line(process) == "inside"
        waiting = threading.Thread(target=_add, args=(sqlite_database, "waited", "yes"))
        waiting.start()
        process.kill()
        waiting.join(timeout=30)
    _add(sqlite_database, "after", "yes")
    assert _rows(sqlite_database) == {"waited": "yes", "after": "yes"}


def test_a_turn_that_does_not_come_is_a_database_that_is_busy(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite_writer.TURN_S", 0.02)

    def add(name: str) -> str:
        with pytest.raises(OperationalError) as refused:
            _add(sqlite_database, name, "in vain")
        assert not refused.value.connection_invalidated
        return unavailable_sentence(refused.value)

    with sqlite_database.write() as tx:
        _insert(tx, "held", "yes")
        told = at_once(2, lambda number: add(f"waiting {number}"))
    assert set(told) == {"The database is busy. Try again in a moment."}
    _add(sqlite_database, "after", "yes")
    assert _rows(sqlite_database) == {"held": "yes", "after": "yes"}


def test_a_turn_that_another_process_keeps_is_a_database_that_is_busy_and_nothing_is_written_later(
    sqlite_database: Database, other_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite_writer.TURN_S", 0.02)
    with other_database.write() as tx:
        _insert(tx, "held", "yes")
        for _ in range(2):
            with pytest.raises(OperationalError, match="locked"):
                _add(sqlite_database, "waiting", "in vain")
    _add(sqlite_database, "after", "yes")
    assert _rows(sqlite_database) == {"held": "yes", "after": "yes"}


def test_a_turn_that_comes_too_late_is_given_back(
    sqlite_database: Database, other_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gave up left a thread behind, to which the turn comes: the next writer must not wait for it."""
    monkeypatch.setattr("storage.sqlite_writer.TURN_S", 0.02)
    with other_database.write(), pytest.raises(OperationalError):
        _add(sqlite_database, "waiting", "in vain")
    for thread in threading.enumerate():
        if thread.name == "turn":
            thread.join(timeout=30)
    _add(other_database, "after", "yes")
    assert _rows(sqlite_database) == {"after": "yes"}


def test_a_file_of_turns_that_cannot_be_opened_is_a_sentence(sqlite_database: Database) -> None:
    Path(f"{_file(sqlite_database)}-turn").mkdir()
    with pytest.raises(OperationalError) as refused:
        _add(sqlite_database, "waiting", "in vain")
    assert unavailable_sentence(refused.value) == UNWRITABLE


def test_turns_belong_to_whom_the_database_belongs(sqlite_database: Database) -> None:
    """Also where root runs a command on it; whoever is not root works on databases of their own."""
    owner = (1234, 1234) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(_file(sqlite_database), *owner)
    _add(sqlite_database, "by a command", "yes")
    turn = os.stat(f"{_file(sqlite_database)}-turn")
    assert (turn.st_uid, turn.st_gid) == owner


def test_a_transaction_that_fails_gives_its_turn_back(sqlite_database: Database, other_database: Database) -> None:
    def fail(database: Database) -> None:
        with database.write() as tx:
            _insert(tx, "half", "done")
            raise RuntimeError("in the middle")

    for database in (sqlite_database, other_database):
        with pytest.raises(RuntimeError):
            fail(database)
    for number, database in enumerate((sqlite_database, other_database)):
        _add(database, f"after {number}", "yes")
    assert _rows(sqlite_database) == {"after 0": "yes", "after 1": "yes"}


def test_writers_that_have_the_turn_still_wait_for_whoever_takes_none(
    sqlite_database: Database, other_database: Database
) -> None:
    """A shell, or a backup."""
    databases = [sqlite_database, other_database]
    shell = sqlite3.connect(_file(sqlite_database), isolation_level=None, check_same_thread=False)
    shell.execute("BEGIN IMMEDIATE")
    shell.execute("INSERT INTO app_keys (name, sealed) VALUES ('shell', 'yes')")

    def act(number: int) -> None:
        if number == 2:
            shell.execute("COMMIT")
        else:
            _add(databases[number], f"waited {number}", "yes")

    at_once(3, act)
    shell.close()
    assert _rows(sqlite_database) == {"shell": "yes", "waited 0": "yes", "waited 1": "yes"}


def test_a_database_that_was_closed_takes_turns_again(sqlite_database: Database, other_database: Database) -> None:
    _add(sqlite_database, "before", "yes")
    sqlite_database.close()
    at_once(2, lambda number: _add([sqlite_database, other_database][number], f"after {number}", "yes"))
    assert set(_rows(sqlite_database)) == {"before", "after 0", "after 1"}


def test_nobody_else_on_the_machine_may_hold_up_the_writers(sqlite_database: Database) -> None:
    _add(sqlite_database, "x", "y")
    turn = Path(f"{_file(sqlite_database)}-turn")
    assert turn.stat().st_mode & 0o777 == 0o600
    assert turn.stat().st_size == 0


def test_only_what_can_be_asked_for_again_is_not_waited_for_until_the_disk_has_it_on_sqlite(
    sqlite_database: Database,
) -> None:
    assert _sqlite_waits(sqlite_database) == {False: "FULL", True: "NORMAL"}
    assert _sqlite_waits(sqlite_database) == {False: "FULL", True: "NORMAL"}, "on connections used before, too"


def test_only_what_can_be_asked_for_again_is_not_waited_for_until_the_disk_has_it_on_postgresql(
    postgres_database: Database, postgres: Postgres
) -> None:
    # The server of the tests never waits by itself.
    postgres.run(f"ALTER DATABASE {postgres_database.engine.url.database} SET synchronous_commit = on")
    postgres_database.close()
    for _ in range(2):
        found = {}
        for may_be_lost in (False, True, False):
            with postgres_database.write(may_be_lost=may_be_lost) as tx:
                found[may_be_lost] = tx.scalar(text("SHOW synchronous_commit"))
        assert found == {False: "on", True: "off"}


def test_what_may_be_lost_is_a_transaction_like_any_other(database: Database) -> None:
    def fail() -> None:
        with database.write(may_be_lost=True) as tx:
            _insert(tx, "half", "done")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fail()
    with database.write(may_be_lost=True) as tx:
        _insert(tx, "kept", "yes")
    assert _rows(database) == {"kept": "yes"}


def test_whoever_begins_as_holder_of_a_lock_loses_no_addition(database: Database) -> None:
    _add(database, "count", "0")

    def add_ten(number: int) -> None:
        for _ in range(10):
            with database.write("first", "count") if number % 2 else database.write("count") as tx:
                counted = int(tx.scalars(select(app_keys.c.sealed)).one())
                tx.execute(app_keys.update().values(sealed=str(counted + 1)))

    at_once(4, add_ten)
    assert _rows(database) == {"count": "40"}


def test_on_postgresql_a_lock_is_held_from_the_beginning_to_the_end_and_others_are_free(
    postgres_database: Database,
) -> None:
    def lock(name: str) -> None:
        with postgres_database.engine.begin() as tx:
            tx.exec_driver_sql("SET LOCAL lock_timeout = '20ms'")
            postgres_database.lock(tx, name)

    for may_be_lost in (False, True):
        with postgres_database.write("connection 1", "member 1", may_be_lost=may_be_lost):
            for held in ("connection 1", "member 1"):
                with pytest.raises(OperationalError, match="lock timeout"):
                    lock(held)
            lock("connection 2")
        lock("connection 1")
        lock("member 1")


def _add(database: Database, name: str, sealed: str) -> None:
    with database.write() as tx:
        _insert(tx, name, sealed)


def _insert(tx: Connection, name: str, sealed: str) -> None:
    tx.execute(insert(app_keys).values(name=name, sealed=sealed))


def _rows(database: Database) -> dict[str, str]:
    with database.read() as tx:
        return {row.name: row.sealed for row in tx.execute(select(app_keys))}


def _sqlite_waits(database: Database) -> dict[bool, str]:
    """What SQLite waits for at a commit, by `may_be_lost`."""
    found = {}
    for may_be_lost in (False, True, False):
        with database.write(may_be_lost=may_be_lost) as tx:
            number = tx.exec_driver_sql("PRAGMA synchronous").scalar_one()
            found[may_be_lost] = {1: "NORMAL", 2: "FULL"}[number]
    return found


def _file(database: Database) -> str:
    return database.url.removeprefix("sqlite:///")


@contextmanager
def _process(database: Database, task: str) -> Iterator[subprocess.Popen[str]]:
    """Another process at the same file, which is over when the block is."""
    command = [sys.executable, "-m", "tests.storage.write_many", database.url, task]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()

"""Writers of one process that come while another writes share its transaction, and nothing else of each other's fate:
who goes on has been committed, and who fails fails alone, unless the commit itself does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from random import Random
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, OperationalError

from storage.database import Database, unavailable_sentence
from storage.sqlite_writer import SqliteWriter
from storage.tables import app_keys
from tests.awards_elsewhere.shop import wait_until
from tests.storage.together import at_once

Block = Callable[[Connection], object]
FULL = "The disk of the database is full. Make room and try again."


@pytest.fixture
def other_database(sqlite_database: Database) -> Iterator[Database]:
    """The same file as `sqlite_database`, as another process has it."""
    other = Database(sqlite_database.url)
    yield other
    other.close()


@pytest.fixture
def said(sqlite_database: Database) -> list[str]:
    """How SQLite was told to begin and to end what the writers of `sqlite_database` write."""
    told: list[str] = []

    @event.listens_for(sqlite_database.engine, "checkout")
    def listen(connection: Any, *_: Any) -> None:
        begun = []

        def note(sql: str) -> None:
            if sql.startswith("BEGIN"):
                begun.append(sql)
            if sql in ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK") and begun[-1:] == ["BEGIN IMMEDIATE"]:
                told.append(sql)

        connection.set_trace_callback(note)

    return told


class Line:
    """Threads that come to write, one after the other; the last that came waits in line when `come` returns."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._go = Event()

    def begin(self, block: Block, **options: bool) -> Future[None]:
        """The first, whose block is run at `go`."""
        inside = Event()

        def wait_inside(tx: Connection) -> None:
            inside.set()
            assert self._go.wait(30)
            block(tx)

        first = self.start(wait_inside, **options)
        assert inside.wait(30)
        return first

    def come(self, block: Block, **options: bool) -> Future[None]:
        """One more, behind those who wait already."""
        before = self.waiting
        future = self.start(block, **options)
        wait_until(lambda: self.waiting > before)
        return future

    def start(self, block: Block, **options: bool) -> Future[None]:
        """One more, at some moment."""
        return _aside(lambda: _write(self._database, block, **options))

    @property
    def waiting(self) -> int:
        """How many wait."""
        assert isinstance(self._database._writer, SqliteWriter)
        return len(self._database._writer._line._places)

    def go(self) -> None:
        """Let the first end its block, and with it those who wait."""
        self._go.set()


@contextmanager
def line_of(database: Database) -> Iterator[Line]:
    """A line that goes at the end of the block."""
    line = Line(database)
    try:
        yield line
    finally:
        line.go()


# -- what a process writes on


def test_all_that_a_process_writes_goes_over_one_connection(sqlite_database: Database) -> None:
    taken: list[object] = []
    event.listen(sqlite_database.engine, "checkout", lambda connection, *_: taken.append(connection))
    for number in range(3):
        _write(sqlite_database, _add(f"written {number}"))
        with suppress(InTheMiddle):
            _write(sqlite_database, _fail)
    assert len(taken) == 1
    assert _names(sqlite_database) == ["written 0", "written 1", "written 2"]


def test_a_transaction_that_has_ended_begins_no_other(sqlite_database: Database) -> None:
    """It would write among what others write, or shut them out until somebody ends it."""
    with sqlite_database.write() as ended:
        _insert(ended, "first")
    with pytest.raises(InvalidRequestError, match=r"begins with Database\.write"):
        _insert(ended, "late")
    _write(sqlite_database, _add("second"))
    assert _names(sqlite_database) == ["first", "second"]


@pytest.mark.parametrize("spoil", [lambda tx: tx.close(), lambda tx: tx.connection.driver_connection.close()])
def test_a_block_that_closes_what_it_writes_on_shuts_nobody_out(sqlite_database: Database, spoil: Block) -> None:
    for error in (None, InTheMiddle):

        def block(tx: Connection, error: type[Exception] | None = error) -> None:
            spoil(tx)
            if error is not None:
                raise error

        with pytest.raises(Exception):  # noqa: B017, PT011 (whatever it is: the next one is what matters)
            _write(sqlite_database, block)
        _write(sqlite_database, _add(f"after {error}"))
    assert len(_names(sqlite_database)) == 2


# -- what is shared


def test_those_who_come_while_one_writes_end_in_one_commit(sqlite_database: Database, said: list[str]) -> None:
    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), line.come(_add("b")), line.come(_add("c")), line.come(_add("d"))]
    assert _ends(writers) == [None] * 4
    assert said == ["BEGIN IMMEDIATE", "COMMIT"]
    assert _names(sqlite_database) == ["a", "b", "c", "d"]


def test_whoever_writes_alone_has_a_transaction_alone(sqlite_database: Database, said: list[str]) -> None:
    for name in ("a", "b"):
        _write(sqlite_database, _add(name))
    assert said == ["BEGIN IMMEDIATE", "COMMIT"] * 2


def test_whoever_joins_sees_what_those_before_have_written_and_nobody_else_does(
    sqlite_database: Database, other_database: Database
) -> None:
    inside: list[list[str]] = []
    outside: list[list[str]] = []

    def look_and_add(name: str) -> Block:
        def block(tx: Connection) -> None:
            inside.append(list(tx.scalars(select(app_keys.c.name).order_by(app_keys.c.name))))
            outside.append(_names(other_database))
            _insert(tx, name)

        return block

    with line_of(sqlite_database) as line:
        writers = [line.begin(look_and_add("a")), line.come(look_and_add("b")), line.come(look_and_add("c"))]
    assert _ends(writers) == [None] * 3
    assert inside == [[], ["a"], ["a", "b"]]
    assert outside == [[], [], []]


def test_nobody_goes_on_before_the_commit(sqlite_database: Database, other_database: Database) -> None:
    """Whoever has gone on finds everything that was shared, from wherever they look."""

    def add_and_look(name: str) -> Future[list[str]]:
        def act() -> list[str]:
            _write(sqlite_database, _add(name))
            return _names(other_database)

        return _aside(act)

    with line_of(sqlite_database) as line:
        first = line.begin(_add("a"))
        found: Future[list[str]] = Future()
        first.add_done_callback(lambda _: found.set_result(_names(other_database)))
        others = []
        for number, name in enumerate(("b", "c", "d"), start=1):
            others.append(add_and_look(name))
            wait_until(lambda number=number: line.waiting == number)  # type: ignore[misc]
    assert [future.result(30) for future in (found, *others)] == [["a", "b", "c", "d"]] * 4


def test_whoever_wrote_first_still_waits_while_the_last_writes(
    sqlite_database: Database, other_database: Database
) -> None:
    inside, end = Event(), Event()

    def stay(tx: Connection) -> None:
        _insert(tx, "last")
        inside.set()
        assert end.wait(30)

    with line_of(sqlite_database) as line:
        first, last = line.begin(_add("first")), line.come(stay)
    assert inside.wait(30)
    assert not first.done()
    assert _names(other_database) == []
    end.set()
    assert _ends([first, last]) == [None, None]
    assert _names(other_database) == ["first", "last"]


def test_they_write_in_the_order_in_which_they_came(
    sqlite_database: Database, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over several transactions, and whether or not they may be lost."""
    monkeypatch.setattr("storage.sqlite_writer.MOST_TOGETHER", 3)
    order: list[int] = []
    lost = [False, True, False, True, True, True, False, False, True, False]
    with line_of(sqlite_database) as line:
        writers = [line.begin(lambda _: order.append(0))]
        for number in range(1, 10):
            writers.append(
                line.come(lambda _, number=number: order.append(number), may_be_lost=lost[number])  # type: ignore[misc]
            )
    assert _ends(writers) == [None] * 10
    assert order == list(range(10))
    # 0 1 2, 3 4 5, 6 7 8, 9
    assert said == ["BEGIN IMMEDIATE", "COMMIT"] * 4


@pytest.mark.parametrize(("most", "transactions"), [(1, 5), (2, 3), (5, 1)])
def test_no_more_than_so_many_share(
    sqlite_database: Database, said: list[str], monkeypatch: pytest.MonkeyPatch, most: int, transactions: int
) -> None:
    monkeypatch.setattr("storage.sqlite_writer.MOST_TOGETHER", most)
    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), *[line.come(_add(name)) for name in "bcde"]]
    assert _ends(writers) == [None] * 5
    assert said == ["BEGIN IMMEDIATE", "COMMIT"] * transactions
    assert _names(sqlite_database) == list("abcde")


def test_those_who_fail_count_too(sqlite_database: Database, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote first, and other processes, wait for them just as long."""
    monkeypatch.setattr("storage.sqlite_writer.MOST_TOGETHER", 2)
    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), *[line.come(_fail) for _ in range(3)], line.come(_add("b"))]
    assert _ends(writers) == [None, InTheMiddle, InTheMiddle, InTheMiddle, None]
    assert said.count("BEGIN IMMEDIATE") > 1


def test_what_may_be_lost_joins_what_is_waited_for_but_not_the_other_way_round(
    sqlite_database: Database, said: list[str]
) -> None:
    found: list[str] = []

    def look(tx: Connection) -> None:
        found.append({1: "NORMAL", 2: "FULL"}[tx.exec_driver_sql("PRAGMA synchronous").scalar_one()])

    def run(*may_be_lost: bool) -> list[str]:
        found.clear()
        said.clear()
        with line_of(sqlite_database) as line:
            writers = [line.begin(look, may_be_lost=may_be_lost[0])]
            writers += [line.come(look, may_be_lost=each) for each in may_be_lost[1:]]
        assert _ends(writers) == [None] * len(may_be_lost)
        return found

    assert run(False, True, False) == ["FULL"] * 3
    assert said.count("COMMIT") == 1
    assert run(True, True) == ["NORMAL"] * 2
    assert said.count("COMMIT") == 1
    # Whoever may be lost does not pass by whoever may not.
    assert run(True, False, True) == ["NORMAL", "FULL", "FULL"]
    assert said.count("COMMIT") == 2


# -- who fails


def test_whoever_fails_takes_back_only_their_own_and_hears_of_their_own_error(
    sqlite_database: Database, said: list[str]
) -> None:
    with line_of(sqlite_database) as line:
        writers = [
            line.begin(_add("a")),
            line.come(_fail),
            line.come(_add("b")),
            line.come(_add("half", "a")),
            line.come(_fail),
            line.come(_add("c")),
        ]
    assert _ends(writers) == [None, InTheMiddle, None, IntegrityError, InTheMiddle, None]
    assert _names(sqlite_database) == ["a", "b", "c"]
    assert said == ["BEGIN IMMEDIATE", "COMMIT"]


def test_when_the_last_fails_the_others_are_committed(sqlite_database: Database) -> None:
    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), line.come(_add("b")), line.come(_fail)]
    assert _ends(writers) == [None, None, InTheMiddle]
    assert _names(sqlite_database) == ["a", "b"]


def test_when_the_first_fails_those_who_wait_begin_anew(sqlite_database: Database, said: list[str]) -> None:
    with line_of(sqlite_database) as line:
        writers = [line.begin(_fail), line.come(_fail), line.come(_add("a")), line.come(_add("b"))]
    assert _ends(writers) == [InTheMiddle, InTheMiddle, None, None]
    assert _names(sqlite_database) == ["a", "b"]
    assert said == ["BEGIN IMMEDIATE", "ROLLBACK", "BEGIN IMMEDIATE", "ROLLBACK", "BEGIN IMMEDIATE", "COMMIT"]


def test_a_statement_that_was_refused_does_not_end_a_block_that_goes_on(sqlite_database: Database) -> None:
    def go_on(tx: Connection) -> None:
        _insert(tx, "b")
        with pytest.raises(IntegrityError):
            _insert(tx, "a")
        _insert(tx, "c")

    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), line.come(go_on), line.come(_add("d"))]
    assert _ends(writers) == [None] * 3
    assert _names(sqlite_database) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_ends_a_block_lets_the_next_one_in(sqlite_database: Database, error: type[BaseException]) -> None:
    def stop(tx: Connection) -> None:
        _insert(tx, "half")
        raise error

    with line_of(sqlite_database) as line:
        writers = [line.begin(stop), line.come(_add("a")), line.come(stop), line.come(_add("b"))]
    assert _ends(writers) == [error, None, error, None]
    assert _names(sqlite_database) == ["a", "b"]
    _write(sqlite_database, _add("c"))


# -- when the transaction fails


def test_a_commit_that_fails_has_failed_for_everyone_who_shared_it(
    sqlite_database: Database, other_database: Database, said: list[str]
) -> None:
    """Each hears of it with an error of their own: threads that raise one object would mix their tracebacks. So
    does who raised for a reason that was seen in the transaction: it may have been in what is lost."""
    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), line.come(_uncommittable), line.come(_fail), line.come(_add("b"))]
    assert _ends(writers) == [IntegrityError] * 4
    errors = [writer.exception() for writer in writers]
    assert len({id(error) for error in errors}) == 4
    assert {str(error).partition("\n")[0] for error in errors} == {
        "(sqlite3.IntegrityError) FOREIGN KEY constraint failed"
    }
    assert said.count("COMMIT") == 1
    assert _names(other_database) == []


def test_after_a_commit_that_failed_everybody_can_write(
    sqlite_database: Database, other_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who waited, and other processes, which would wait for the lock of a transaction that nobody ends."""
    monkeypatch.setattr("storage.sqlite_writer.MOST_TOGETHER", 2)
    with line_of(sqlite_database) as line:
        writers = [line.begin(_uncommittable), line.come(_add("a")), line.come(_add("b")), line.come(_add("c"))]
    assert _ends(writers) == [IntegrityError, IntegrityError, None, None]
    _ends([_aside(lambda: _write(sqlite_database, _uncommittable))])
    with other_database.engine.connect() as other:
        other.exec_driver_sql("PRAGMA busy_timeout=0")
        other.exec_driver_sql("UPDATE app_keys SET sealed = 'changed'")
        other.commit()
    _write(sqlite_database, _add("d"))
    assert _names(other_database) == ["b", "c", "d"]


@pytest.mark.parametrize("may_be_lost", [False, True])
def test_a_disk_that_is_full_is_an_error_for_everyone_who_shared(sqlite_database: Database, may_be_lost: bool) -> None:
    """SQLite takes back the whole transaction by itself then, and not only what did not fit."""
    with line_of(sqlite_database) as line:
        writers = [
            line.begin(_add("a"), may_be_lost=may_be_lost),
            line.come(_fail, may_be_lost=True),
            line.come(_overfill, may_be_lost=True),
            line.come(_add("after"), may_be_lost=may_be_lost),
        ]
    assert _ends(writers) == [OperationalError, OperationalError, OperationalError, None]
    assert _names(sqlite_database) == ["after"]


def test_a_disk_that_is_full_is_told_to_everyone_who_shared(sqlite_database: Database) -> None:
    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), line.come(_overfill)]
    _ends(writers)
    assert [_sentence(writer) for writer in writers] == [FULL, FULL]


@pytest.mark.parametrize("sql", ["INSERT OR ROLLBACK INTO app_keys VALUES ('a', '')", "ROLLBACK"])
def test_a_block_that_takes_everything_back_and_fails_does_so_aloud(sqlite_database: Database, sql: str) -> None:
    def take_back(tx: Connection) -> None:
        tx.exec_driver_sql(sql)
        raise InTheMiddle

    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), line.come(_add("b")), line.come(take_back), line.come(_add("after"))]
    first, second, third, fourth = _ends(writers)
    assert (first, second, fourth) == (OperationalError, OperationalError, None)
    assert third in (OperationalError, IntegrityError)
    assert _names(sqlite_database) == ["after"]


def _swallow(tx: Connection) -> None:
    _insert(tx, "swallowed")
    with suppress(IntegrityError):
        tx.exec_driver_sql("INSERT OR ROLLBACK INTO app_keys VALUES ('swallowed', '')")


def _swallow_full(tx: Connection) -> None:
    _insert(tx, "swallowed")
    with suppress(OperationalError):
        _overfill(tx)


def _roll_back(tx: Connection) -> None:
    _insert(tx, "swallowed")
    tx.rollback()


def _roll_back_and_go_on(tx: Connection) -> None:
    tx.rollback()
    _insert(tx, "swallowed")


@pytest.mark.parametrize("take_back", [_swallow, _swallow_full, _roll_back, _roll_back_and_go_on])
def test_a_block_that_takes_everything_back_and_goes_on_loses_nothing_in_silence(
    sqlite_database: Database, take_back: Block
) -> None:
    """Whose write ended well is there, whatever the blocks beside it did."""
    with line_of(sqlite_database) as line:
        writers = [
            line.begin(_add("a")),
            line.come(_add("b")),
            line.come(take_back),
            line.come(_fail),
            line.come(_add("c")),
        ]
    ends = _ends(writers)
    assert ends[:2] == [OperationalError, OperationalError]
    assert ends[2] is not None
    assert set(_names(sqlite_database)) - {"swallowed"} == ({"c"} if ends[4] is None else set())


@pytest.mark.parametrize("take_back", [_swallow, _swallow_full, _roll_back])
def test_also_when_the_first_takes_everything_back(sqlite_database: Database, take_back: Block) -> None:
    with line_of(sqlite_database) as line:
        writers = [line.begin(take_back), line.come(_add("b")), line.come(_add("c"))]
    ends = _ends(writers)
    assert ends[0] is OperationalError
    assert _names(sqlite_database) == [name for name, end in zip("bc", ends[1:], strict=True) if end is None]


def test_a_disk_that_is_full_without_anybody_beside_is_an_error(sqlite_database: Database) -> None:
    for block in (_overfill, _swallow_full):
        writer = _aside(lambda block=block: _write(sqlite_database, block))  # type: ignore[misc]
        assert _ends([writer]) == [OperationalError]
        assert _sentence(writer) == FULL
    assert _names(sqlite_database) == []
    _write(sqlite_database, _add("after"))


# -- who gives up


def test_whoever_gives_up_is_not_let_in_later_and_the_others_come(
    sqlite_database: Database, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with line_of(sqlite_database) as line:
        writers = [line.begin(_add("a")), line.come(_add("b"))]
        with monkeypatch.context() as short:
            short.setattr("storage.sqlite_writer.TURN_S", 0.02)
            late = [line.start(_add("late")) for _ in range(3)]
            assert _ends(late) == [OperationalError] * 3
        assert {_sentence(writer) for writer in late} == {"The database is busy. Try again in a moment."}
        assert line.waiting == 1
        writers.append(line.come(_add("c")))
    assert _ends(writers) == [None] * 3
    assert _names(sqlite_database) == ["a", "b", "c"]
    assert said == ["BEGIN IMMEDIATE", "COMMIT"]


class Meeting:
    """A guard of the line under which a waiter gives up in the very moment in which they are called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.waiter: Thread | None = None
        self.gives_up, self.called, self.inside = Event(), Event(), Event()
        self._entered = 0

    def __enter__(self) -> None:
        if threading.current_thread() is self.waiter:
            self._entered += 1
            if self._entered == 2:
                self.gives_up.set()
                assert self.called.wait(30)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self.gives_up.is_set() and not self.called.is_set():
            self.called.set()
            # No longer than a thread may be kept from going on by others.
            self.inside.wait(0.2)


def test_whoever_is_called_in_the_moment_of_giving_up_joins(
    sqlite_database: Database, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those before would wait for ever, and with them whoever wants to write."""
    writer = sqlite_database._writer
    assert isinstance(writer, SqliteWriter)
    guard = Meeting()
    monkeypatch.setattr(writer._line, "_guard", guard)

    def come() -> None:
        guard.waiter = threading.current_thread()

        def block(tx: Connection) -> None:
            guard.inside.set()
            _insert(tx, "b")

        _write(sqlite_database, block)

    with line_of(sqlite_database) as line:
        first = line.begin(_add("a"))
        monkeypatch.setattr("storage.sqlite_writer.TURN_S", 0.02)
        second = _aside(come)
        assert guard.gives_up.wait(30)
    assert _ends([first, second]) == [None, None]
    assert _names(sqlite_database) == ["a", "b"]
    assert said == ["BEGIN IMMEDIATE", "COMMIT"]


class Interrupted(BaseException):
    """As KeyboardInterrupt: raised by a signal wherever the main thread is."""


def test_whoever_is_interrupted_while_they_wait_leaves_the_line(sqlite_database: Database) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with line_of(sqlite_database) as line:
            first = line.begin(_add("a"))
            main = threading.get_ident()

            def disturb() -> None:
                wait_until(lambda: line.waiting == 1)
                signal.pthread_kill(main, signal.SIGUSR1)

            disturbing = _aside(disturb)
            with pytest.raises(Interrupted):
                _write(sqlite_database, _add("interrupted"))
            disturbing.result(30)
            assert line.waiting == 0
            last = line.come(_add("b"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert _ends([first, last]) == [None, None]
    assert _names(sqlite_database) == ["a", "b"]


# -- other processes, and all of it together


def test_other_processes_come_to_write_while_the_line_here_never_ends(
    sqlite_database: Database, other_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those here go on until the others have written, which have no longer to wait than everybody."""
    monkeypatch.setattr("storage.sqlite_writer.MOST_TOGETHER", 3)
    enough = Event()

    def write_on(number: int) -> None:
        if number < 4:
            times = 0
            while not enough.is_set():
                times += 1
                _write(sqlite_database, _add(f"here {number} {times}"))
        else:
            try:
                for times in range(10):
                    _write(other_database, _add(f"there {times}"))
            finally:
                enough.set()

    at_once(5, write_on)
    assert sum(name.startswith("there") for name in _names(sqlite_database)) == 10


def test_what_is_there_is_exactly_what_its_writers_were_told(
    sqlite_database: Database, other_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong for some of them, in two processes at once."""
    monkeypatch.setattr("storage.sqlite_writer.MOST_TOGETHER", 4)
    databases = [sqlite_database, other_database]
    troubles: list[Block] = [_fail, _add("taken"), _overfill, _take_back]
    _write(sqlite_database, _add("taken"))

    def write_some(number: int) -> list[str]:
        random = Random(number)
        kept = []
        for times in range(25):
            name = f"{number} {times}"
            blocks = [_add(name)]
            if random.random() < 0.2:
                blocks.append(random.choice(troubles))

            def run(tx: Connection, blocks: list[Block] = blocks) -> None:
                for block in blocks:
                    block(tx)

            with suppress(InTheMiddle, DBAPIError):
                _write(databases[number % 2], run, may_be_lost=random.random() < 0.3)
                kept.append(name)
        return kept

    kept = [name for names in at_once(8, write_some) for name in names]
    assert len(kept) > 50
    assert sorted([*kept, "taken"]) == _names(sqlite_database)


def _take_back(tx: Connection) -> None:
    """What lets SQLite take back the whole transaction, and then fails."""
    tx.exec_driver_sql("INSERT OR ROLLBACK INTO app_keys VALUES ('taken', '')")


class InTheMiddle(Exception):
    """Raised by a block that has written something."""


def _write(database: Database, block: Block, *, may_be_lost: bool = False) -> None:
    with database.write(may_be_lost=may_be_lost) as tx:
        block(tx)


def _add(*names: str) -> Block:
    def block(tx: Connection) -> None:
        for name in names:
            _insert(tx, name)

    return block


def _fail(tx: Connection) -> None:
    _insert(tx, "half")
    raise InTheMiddle


def _uncommittable(tx: Connection) -> None:
    """What SQLite refuses at the commit: a row of a store that is not there."""
    tx.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
    tx.exec_driver_sql("INSERT INTO webhook_deliveries (store_id, delivery_hash, received_at) VALUES (9, '', '')")


def _overfill(tx: Connection) -> None:
    """More than the disk has room for."""
    pages = tx.exec_driver_sql("PRAGMA page_count").scalar_one()
    tx.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    try:
        tx.exec_driver_sql("INSERT INTO app_keys (name, sealed) VALUES ('big', zeroblob(1000000))")
    finally:
        tx.exec_driver_sql("PRAGMA max_page_count=1000000")


def _insert(tx: Connection, name: str) -> None:
    tx.execute(insert(app_keys).values(name=name, sealed=""))


def _names(database: Database) -> list[str]:
    with database.read() as tx:
        return list(tx.scalars(select(app_keys.c.name).order_by(app_keys.c.name)))


def _aside(act: Callable[[], Any]) -> Future[Any]:
    """What `act` gives, on a thread of its own, which does not outlive the tests when it hangs."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _ends(futures: list[Future[None]]) -> list[type[BaseException] | None]:
    """The kinds of errors with which they end, which must be soon."""
    errors = [future.exception(20) for future in futures]
    return [None if error is None else type(error) for error in errors]


def _sentence(future: Future[None]) -> str:
    error = future.exception(20)
    assert isinstance(error, DBAPIError)
    return unavailable_sentence(error)

"""The gate: a call budget and a breaker for each store of a program elsewhere, over all threads and processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from loyalty.gate import BACKGROUND_CALLS_PER_S, CALLS_PER_S, Call, Entry, Gate, Lane
from loyalty.program import ProgramReason, ProgramUnavailable
from sandbox import Sandbox
from storage.database import Database
from storage.tables import gates
from tests.databases import Clock

ROOT = Path(__file__).parents[2]
NAME = "rivo:one"
AFTER_FAILURES = Entry(left_s=1, after_failures=True)


class Turns:
    """Gates of several processes on one database, with a clock that sleeping moves; notes when each call was made."""

    def __init__(self, database: Database, clock: Clock, *, processes: int = 2) -> None:
        self.clock = clock
        self.taken: list[tuple[Lane, datetime]] = []
        self._lock = threading.Lock()
        self.gates = [Gate(database, now=clock, sleep=clock.advance) for _ in range(processes)]

    def enter(self, lane: Lane, *, process: int = 0, within_s: float = 60, name: str = NAME) -> float:
        left_s = self.gates[process].enter(name, call=Call(lane=lane, within_s=within_s)).left_s
        with self._lock:
            self.taken.append((lane, self.clock()))
        return left_s

    def refused(self, lane: Lane = Lane.AGENT, *, process: int = 0, within_s: float = 60) -> ProgramUnavailable:
        with pytest.raises(ProgramUnavailable) as refused:
            self.enter(lane, process=process, within_s=within_s)
        return refused.value

    def most_in_a_second(self, *lanes: Lane) -> int:
        times = sorted(at for lane, at in self.taken if lane in lanes)
        return max(sum(0 <= (at - start).total_seconds() < 1 for at in times) for start in times)


@pytest.fixture
def turns(database: Database, clock: Clock) -> Turns:
    return Turns(database, clock)


def test_agents_take_twelve_calls_in_any_second_over_two_processes(turns: Turns) -> None:
    began = turns.clock()
    for number in range(60):
        turns.enter(Lane.AGENT, process=number % 2)
        turns.clock.advance(0.003 * (number % 7))
    assert turns.most_in_a_second(Lane.AGENT) == CALLS_PER_S
    assert (turns.clock() - began).total_seconds() < 5.1, "and no less than they may"


def test_background_work_takes_five_of_them(turns: Turns) -> None:
    began = turns.clock()
    for number in range(25):
        turns.enter(Lane.BACKGROUND, process=number % 2)
    assert turns.most_in_a_second(Lane.BACKGROUND) == BACKGROUND_CALLS_PER_S
    assert (turns.clock() - began).total_seconds() == pytest.approx(4)


def test_background_work_leaves_seven_to_agents_and_agents_may_take_all(turns: Turns) -> None:
    began = turns.clock()
    for _ in range(BACKGROUND_CALLS_PER_S):
        turns.enter(Lane.BACKGROUND)
    for _ in range(CALLS_PER_S - BACKGROUND_CALLS_PER_S):
        turns.enter(Lane.AGENT, process=1)
    assert turns.clock() == began, "nobody waited"
    turns.refused(Lane.AGENT, within_s=0.5)
    turns.clock.advance(1)
    for _ in range(CALLS_PER_S):
        turns.enter(Lane.AGENT)
    assert turns.refused(Lane.BACKGROUND, within_s=0.5).reason is ProgramReason.BUDGET_SPENT


def test_mixed_calls_keep_both_limits_in_any_second(turns: Turns) -> None:
    for number in range(80):
        turns.enter(Lane.BACKGROUND if number % 3 else Lane.AGENT, process=number % 2)
        turns.clock.advance(0.011 * (number % 5))
    assert turns.most_in_a_second(*Lane) <= CALLS_PER_S
    assert turns.most_in_a_second(Lane.BACKGROUND) <= BACKGROUND_CALLS_PER_S


def test_whoever_cannot_wait_is_told_how_long_it_would_take_and_takes_nothing(turns: Turns) -> None:
    for _ in range(CALLS_PER_S):
        turns.enter(Lane.AGENT)
    for _ in range(30):
        error = turns.refused(within_s=0.9, process=1)
    assert error.reason is ProgramReason.BUDGET_SPENT
    assert error.retry_after_s == pytest.approx(1)
    turns.clock.advance(1)
    assert turns.enter(Lane.AGENT, within_s=0.9) == pytest.approx(0.9)


def test_waiting_for_a_turn_is_taken_off_the_time_of_the_call(turns: Turns) -> None:
    for _ in range(CALLS_PER_S):
        turns.enter(Lane.AGENT)
    turns.clock.advance(0.25)
    assert turns.enter(Lane.AGENT, within_s=2) == pytest.approx(1.25)


def test_each_store_has_a_budget_of_its_own(turns: Turns) -> None:
    began = turns.clock()
    for name in ("rivo:one", "rivo:two", "rivo:three"):
        for _ in range(CALLS_PER_S):
            turns.enter(Lane.AGENT, name=name)
    assert turns.clock() == began


def test_many_threads_at_once_keep_the_budget(database: Database, clock: Clock) -> None:
    """Their turns are given out under a lock; each is told its own pause."""
    pauses: list[float] = []
    gate = Gate(database, now=clock, sleep=pauses.append)
    barrier = threading.Barrier(8)

    def run() -> None:
        barrier.wait()
        for _ in range(6):
            gate.enter(NAME, call=Call(lane=Lane.AGENT, within_s=60))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter([*pauses, *[0.0] * (48 - len(pauses))]) == {0.0: 12, 1.0: 12, 2.0: 12, 3.0: 12}


# -- a program that asks for a pause


def test_a_pause_holds_for_every_process_and_as_long_as_told(turns: Turns) -> None:
    turns.gates[0].pause(NAME, seconds=7)
    for process in (0, 1):
        error = turns.refused(process=process, within_s=6.9)
        assert error.reason is ProgramReason.BUSY
        assert error.retry_after_s == pytest.approx(7)
    began = turns.clock()
    turns.enter(Lane.AGENT, process=1, within_s=60)
    assert (turns.clock() - began).total_seconds() == pytest.approx(7)


def test_a_shorter_pause_does_not_cut_a_longer_one_short(turns: Turns) -> None:
    """A call that was under way brings a 429 without a number after another one was told thirty seconds."""
    turns.gates[0].pause(NAME, seconds=30)
    turns.gates[1].pause(NAME, seconds=1)
    assert turns.refused(within_s=29).retry_after_s == pytest.approx(30)


def test_after_a_pause_the_calls_that_waited_keep_the_budget(database: Database, clock: Clock) -> None:
    pauses: list[float] = []
    gate = Gate(database, now=clock, sleep=pauses.append)
    gate.pause(NAME, seconds=7)
    for _ in range(30):
        gate.enter(NAME, call=Call(lane=Lane.AGENT, within_s=60))
    assert Counter(pauses) == {7.0: 12, 8.0: 12, 9.0: 6}


def test_a_pause_from_before_the_clock_was_set_back_holds_nobody_up(turns: Turns) -> None:
    turns.gates[0].pause(NAME, seconds=60)
    turns.clock.advance(-3600)
    assert turns.enter(Lane.AGENT, within_s=1) == 1


def test_calls_from_before_the_clock_was_set_back_hold_nobody_up(turns: Turns) -> None:
    for _ in range(CALLS_PER_S):
        turns.enter(Lane.AGENT)
    turns.clock.advance(-3600)
    assert turns.enter(Lane.AGENT, within_s=1) == 1


# -- the breaker


def test_five_failures_in_a_row_open_the_breaker_for_every_process(turns: Turns) -> None:
    for number in range(5):
        turns.enter(Lane.AGENT, process=number % 2)
        turns.gates[number % 2].failed(NAME)
    for process in (0, 1):
        error = turns.refused(process=process)
        assert error.reason is ProgramReason.BREAKER_OPEN
        assert error.retry_after_s == pytest.approx(10)
        with pytest.raises(ProgramUnavailable):
            turns.gates[process].check(NAME)


def test_four_failures_do_not_nor_do_five_with_a_success_between(turns: Turns) -> None:
    for outcome in ("failed",) * 4 + ("succeeded",) + ("failed",) * 4:
        turns.enter(Lane.AGENT)
        if outcome == "failed":
            turns.gates[0].failed(NAME)
        else:
            turns.gates[0].succeeded(NAME, entry=AFTER_FAILURES)
    turns.gates[1].check(NAME)
    turns.enter(Lane.AGENT, process=1)


def test_after_ten_seconds_one_call_tries_and_the_others_wait_for_its_outcome(turns: Turns) -> None:
    _open(turns)
    turns.clock.advance(9.9)
    turns.refused()
    turns.clock.advance(0.1)
    turns.enter(Lane.BACKGROUND, process=1)
    for process in (0, 1):
        assert turns.refused(process=process).reason is ProgramReason.BREAKER_OPEN
    turns.gates[1].succeeded(NAME, entry=AFTER_FAILURES)
    for process in (0, 1):
        turns.enter(Lane.AGENT, process=process)
    turns.gates[0].failed(NAME)
    turns.enter(Lane.AGENT)  # one failure more is the first of a new row


def test_a_try_that_fails_keeps_it_open_for_ten_seconds_more(turns: Turns) -> None:
    _open(turns)
    turns.clock.advance(10)
    turns.enter(Lane.AGENT)
    turns.clock.advance(6)
    turns.gates[0].failed(NAME)
    turns.clock.advance(9.9)
    turns.refused(process=1)
    turns.clock.advance(0.1)
    turns.enter(Lane.AGENT, process=1)


def test_a_try_that_never_reports_does_not_block_for_ever(turns: Turns) -> None:
    _open(turns)
    turns.clock.advance(10)
    turns.enter(Lane.AGENT)
    turns.clock.advance(9.9)
    turns.refused(process=1)
    turns.clock.advance(0.1)
    turns.enter(Lane.AGENT, process=1)


def test_of_many_at_once_one_tries(turns: Turns) -> None:
    _open(turns)
    turns.clock.advance(10)
    barrier = threading.Barrier(6)
    ended: list[str] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            turns.enter(Lane.AGENT, process=number % 2)
            ended.append("tries")
        except ProgramUnavailable as error:
            ended.append(error.reason)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(ended) == {"tries": 1, "breaker_open": 5}


def test_an_open_breaker_from_before_the_clock_was_set_back_holds_nobody_up(turns: Turns) -> None:
    _open(turns)
    turns.clock.advance(-3600)
    turns.enter(Lane.AGENT)
    turns.gates[0].succeeded(NAME, entry=AFTER_FAILURES)
    turns.enter(Lane.AGENT, process=1)


def test_successes_under_way_when_the_first_call_failed_count_between_failures(turns: Turns) -> None:
    entries = [turns.gates[0].enter(NAME, call=Call(lane=Lane.AGENT, within_s=60)) for _ in range(10)]
    for number, entry in enumerate(entries):
        if number % 2:
            turns.gates[0].succeeded(NAME, entry=entry)
        else:
            turns.gates[0].failed(NAME)
    turns.enter(Lane.AGENT)


def test_a_turn_that_was_noted_too_late_is_left_for_a_later_one(database: Database, clock: Clock) -> None:
    """Whoever wrote meanwhile may have the calls around it."""
    made: list[datetime] = []
    gate = Gate(database, now=clock, sleep=clock.advance)
    note = database.note

    def late(*args: Any, **values: Any) -> int:
        if not made:
            clock.advance(1.5)
            made.append(clock())
            for _ in range(CALLS_PER_S):
                others.enter(NAME, call=Call(lane=Lane.AGENT, within_s=60))
                made.append(clock())
        return note(*args, **values)

    others = Gate(Database(database.url), now=clock, sleep=clock.advance)
    vars(database)["note"] = late
    gate.enter(NAME, call=Call(lane=Lane.AGENT, within_s=60))
    made.append(clock())
    times = sorted(made[1:])
    assert max(sum(0 <= (at - start).total_seconds() < 1 for at in times) for start in times) <= CALLS_PER_S
    others._database.close()


def test_each_store_has_a_breaker_of_its_own(turns: Turns) -> None:
    _open(turns)
    turns.enter(Lane.AGENT, name="rivo:two")


def test_an_open_breaker_is_refused_without_writing(database: Database, turns: Turns) -> None:
    """While the program is down every card comes here."""
    _open(turns)
    before = _row(database)
    for _ in range(20):
        turns.refused()
    assert _row(database) == before


# -- for real


@pytest.mark.parametrize("lane", list(Lane))
def test_two_processes_in_real_time_share_one_budget(database: Database, lane: Lane) -> None:
    calls, limit = (9, CALLS_PER_S) if lane is Lane.AGENT else (4, BACKGROUND_CALLS_PER_S)
    # Without a limit of its own: on a busy machine calls arrive later than their turn, and closer together.
    with Sandbox(rivo_stores=("northwind",), rivo_calls_per_s=None) as sandbox:
        store = sandbox.rivo("northwind")
        store.add_customer("ana@example.com")
        task: dict[str, object] = {
            "url": database.url,
            "rivo_url": sandbox.rivo_url,
            "key": store.key,
            "lane": lane.value,
            "calls": calls,
            "threads": 2,
        }
        processes = [_process(task) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        outcomes: Counter[str] = Counter()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            outcomes.update(json.loads(out))
        assert outcomes == {"ok": 4 * calls}
        arrived = sorted(request.at for request in sandbox.requests.filter(account="rivo"))
        assert len(arrived) == 4 * calls
        # So long do the turns of so many calls take; two budgets would be through in half the time.
        assert arrived[-1] - arrived[0] > (4 * calls - 1) // limit - 0.5


def _open(turns: Turns) -> None:
    for _ in range(5):
        turns.enter(Lane.AGENT)
        turns.gates[0].failed(NAME)


def _row(database: Database) -> object:
    with database.read() as tx:
        return tx.execute(gates.select().where(gates.c.name == NAME)).one()


def _process(task: dict[str, object]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.members.call_many"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    return process

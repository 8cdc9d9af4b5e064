"""Threads of which a few run while many may wait: who runs, who waits, and that the count stays right."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import threads
from script.bootstrap import ROOT
from threads import Threads, aside

# For what must happen, for what must not, and of what is held: longer, so that its end is nobody's rescue.
WAIT_S, MOMENT_S, HELD_S = 20, 0.05, 60

_names = itertools.count()


class Held:
    """Work that says when it has begun and goes on until it is let go; with `aside`, it first waits for `call_back`."""

    def __init__(self, *, aside: bool = False) -> None:
        self.begun, self.came_back = threading.Event(), threading.Event()
        self.call_back, self.let_go = threading.Event(), threading.Event()
        self._aside = aside

    def __call__(self) -> None:
        if self._aside:
            with aside():
                self.begun.set()
                assert self.call_back.wait(HELD_S)
            self.came_back.set()
        else:
            self.begun.set()
        assert self.let_go.wait(HELD_S)

    def begins(self) -> bool:
        return self.begun.wait(WAIT_S)

    def stays_out(self) -> bool:
        return not self.begun.wait(MOMENT_S)


class Pool:
    """Threads under test, by a name that no others have."""

    def __init__(self, *, running: int, most: int, kind: type[Threads] = Threads) -> None:
        self.name = f"tested{next(_names)}"
        self.threads = kind(running=running, most=most, name=self.name)
        self.held: list[Held] = []
        self._running = running

    def hold(self, *, aside: bool = False) -> Held:
        """Submit work that is held."""
        work = Held(aside=aside)
        self.held.append(work)
        self.threads.submit(work)
        return work

    def size(self) -> int:
        """How many threads there are, the one that watches not among them."""
        return sum(
            thread.name.startswith(f"{self.name}-") and not thread.name.endswith("-watch")
            for thread in threading.enumerate()
        )

    def runs_as_many_as_it_should(self) -> bool:
        """When nothing is under way: whether exactly `running` pieces of work run at once, no more and no fewer."""
        work = [self.hold() for _ in range(self._running + 1)]
        right = all(each.begins() for each in work[:-1]) and work[-1].stays_out()
        for each in work:
            each.let_go.set()
        return right and work[-1].begins()


Pools = Callable[..., Pool]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """So much that nobody counts as waiting who has not said so, until a test sets less."""
    monkeypatch.setattr(threads, "PATIENCE_S", 60.0)
    return lambda seconds: monkeypatch.setattr(threads, "PATIENCE_S", seconds)


@pytest.fixture
def make() -> Iterator[Pools]:
    made: list[Pool] = []

    def pool(*, running: int, most: int, **more: Any) -> Pool:
        made.append(Pool(running=running, most=most, **more))
        return made[-1]

    yield pool
    for work in [work for pool in made for work in pool.held]:
        work.call_back.set()
        work.let_go.set()


def test_no_more_run_at_once_than_should(make: Pools) -> None:
    pool = make(running=2, most=8)
    first, second, third = [pool.hold() for _ in range(3)]
    assert first.begins()
    assert second.begins()
    assert third.stays_out()
    assert pool.size() == 2
    second.let_go.set()
    assert third.begins()
    # Whoever is done takes up the next.
    assert pool.size() == 2


def test_work_is_taken_up_in_its_order(make: Pools) -> None:
    pool = make(running=1, most=8)
    taken: list[int] = []
    first = pool.hold()
    futures = [pool.threads.submit(taken.append, number) for number in range(50)]
    first.let_go.set()
    for future in futures:
        future.result(WAIT_S)
    assert taken == list(range(50))


def test_what_is_returned_or_raised_comes_with_the_future_and_the_thread_goes_on(make: Pools) -> None:
    pool = make(running=1, most=1)
    errors = [ValueError("odd"), SystemExit(1), KeyboardInterrupt(), BaseException("bare")]

    def fail(error: BaseException) -> None:
        raise error

    for error in errors:
        assert pool.threads.submit(fail, error).exception(WAIT_S) is error
    assert pool.threads.submit(divmod, 7, 2).result(WAIT_S) == (3, 1)
    assert pool.threads.submit(int, "ff", base=16).result(WAIT_S) == 255
    assert list(pool.threads.map(str, range(3), timeout=WAIT_S)) == ["0", "1", "2"]
    assert pool.size() == 1


def test_what_was_cancelled_before_it_began_is_not_run(make: Pools) -> None:
    pool = make(running=1, most=8)
    first = pool.hold()
    taken: list[str] = []
    cancelled, other = pool.threads.submit(taken.append, "cancelled"), pool.threads.submit(taken.append, "other")
    assert cancelled.cancel()
    first.let_go.set()
    other.result(WAIT_S)
    assert taken == ["other"]
    assert pool.runs_as_many_as_it_should()


def test_what_is_called_when_work_is_done_may_submit_again_and_may_fail(make: Pools) -> None:
    """gunicorn does so for each request."""
    pool = make(running=1, most=1)
    done = threading.Event()

    def again(future: Future[int]) -> None:
        number = future.result()
        if number == 50:
            done.set()
        else:
            pool.threads.submit(int, number + 1).add_done_callback(again)
        raise ValueError("a callback that fails is its own trouble")

    pool.threads.submit(int, 0).add_done_callback(again)
    assert done.wait(WAIT_S)
    assert pool.size() == 1


@pytest.mark.parametrize("ends_first", ["who came back", "who ran meanwhile"])
def test_whoever_steps_aside_lets_another_run_and_goes_on_at_once(make: Pools, ends_first: str) -> None:
    pool = make(running=1, most=8)
    first = pool.hold(aside=True)
    assert first.begins()
    second = pool.hold()
    assert second.begins()
    first.call_back.set()
    assert first.came_back.wait(WAIT_S)

    # Two run where one should: nothing begins until that is made good.
    third = pool.hold()
    assert third.stays_out()
    one, other = (first, second) if ends_first == "who came back" else (second, first)
    one.let_go.set()
    assert third.stays_out()
    other.let_go.set()
    assert third.begins()
    third.let_go.set()
    assert pool.runs_as_many_as_it_should()


def test_work_that_waits_begins_when_somebody_steps_aside(make: Pools) -> None:
    pool = make(running=1, most=8)
    first, step = threading.Event(), threading.Event()

    def run() -> None:
        first.set()
        assert step.wait(WAIT_S)
        with aside():
            assert second.begins()

    done = pool.threads.submit(run)
    assert first.wait(WAIT_S)
    second = pool.hold()
    assert second.stays_out()
    step.set()
    done.result(WAIT_S)
    second.let_go.set()
    assert pool.runs_as_many_as_it_should()


def test_there_are_never_more_threads_than_the_most(make: Pools) -> None:
    pool = make(running=1, most=3)
    waiting = [pool.hold(aside=True) for _ in range(3)]
    assert all(work.begins() for work in waiting)
    late = pool.hold()
    assert late.stays_out()
    assert pool.size() == 3
    waiting[1].call_back.set()
    waiting[1].let_go.set()
    assert late.begins()
    assert pool.size() == 3


def test_a_thread_that_is_there_is_used_before_one_is_made(make: Pools) -> None:
    pool = make(running=4, most=8)
    for _ in range(20):
        # Twice, because the first may be told to have ended before its thread has nothing to do.
        pool.threads.submit(int).result(WAIT_S)
        pool.threads.submit(int).result(WAIT_S)
    assert pool.size() <= 2


def test_an_error_in_a_wait_comes_through_and_the_wait_is_over(make: Pools) -> None:
    pool = make(running=1, most=8)

    @aside()
    def fail() -> None:
        raise SystemExit(3)

    for _ in range(5):
        assert isinstance(pool.threads.submit(fail).exception(WAIT_S), SystemExit)
    assert pool.size() == 1
    waits, other = pool.hold(aside=True), pool.hold()
    assert waits.begins()
    assert other.begins()
    for work in (waits, other):
        work.call_back.set()
        work.let_go.set()
    assert pool.runs_as_many_as_it_should()


def test_waits_of_many_at_once_leave_the_count_right(make: Pools) -> None:
    pool = make(running=3, most=12)

    def often() -> None:
        for _ in range(200):
            with aside():
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for future in [pool.threads.submit(often) for _ in range(24)]:
            future.result(WAIT_S)
    finally:
        sys.setswitchinterval(interval)
    assert pool.size() <= 12
    assert pool.runs_as_many_as_it_should()


def test_whoever_takes_long_without_a_word_counts_as_waiting(make: Pools, patience: Callable[[float], None]) -> None:
    patience(0.01)
    pool = make(running=2, most=6)
    silent = [pool.hold() for _ in range(5)]
    assert all(work.begins() for work in silent)
    assert pool.threads.submit(int).result(WAIT_S) == 0
    silent += [pool.hold()]
    assert silent[-1].begins()
    late = pool.hold()
    assert late.stays_out()
    assert pool.size() == 6

    patience(60)
    for work in [*silent, late]:
        work.let_go.set()
    assert late.begins()
    assert pool.runs_as_many_as_it_should()


def test_patience_is_for_each_piece_of_work(make: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the thread, which may do one after the other without a pause."""
    clock, looks, looked = [0.0], threading.Semaphore(0), threading.Semaphore(0)

    def sleep(_: float) -> None:
        looked.release()
        assert looks.acquire(timeout=WAIT_S)

    monkeypatch.setattr(threads, "monotonic", lambda: clock[0])
    monkeypatch.setattr(threads, "sleep", sleep)

    def look(*, at: float) -> None:
        """Have the watch look once."""
        clock[0] = at
        looks.release()
        assert looked.acquire(timeout=WAIT_S)

    pool = make(running=1, most=8)
    first, second, third, fourth = [pool.hold() for _ in range(4)]
    assert looked.acquire(timeout=WAIT_S)
    assert first.begins()
    clock[0] = 50.0
    first.let_go.set()
    assert second.begins()
    look(at=109.0)
    assert third.stays_out()
    look(at=111.0)
    assert third.begins()
    assert fourth.stays_out()
    # So that the watch comes to its end.
    for work in (second, third, fourth):
        work.let_go.set()
    assert fourth.begins()
    looks.release()


def test_the_watch_ends_when_there_is_nothing_to_watch_and_begins_again(
    make: Pools, patience: Callable[[float], None]
) -> None:
    patience(0.01)
    pool = make(running=1, most=8)
    for _ in range(2):
        assert pool.hold().begins()
        assert pool.threads.submit(int).result(WAIT_S) == 0
        for thread in threading.enumerate():
            if thread.name == f"{pool.name}-watch":
                thread.join(WAIT_S)
                assert not thread.is_alive()


def test_whoever_counted_as_waiting_may_step_aside_after_all(make: Pools, patience: Callable[[float], None]) -> None:
    patience(0.01)
    pool = make(running=1, most=8)
    begun, speak = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        assert speak.wait(WAIT_S)
        with aside():
            pass

    silent = pool.threads.submit(run)
    assert begun.wait(WAIT_S)
    # Only begins because the other one counts as waiting.
    held = pool.hold()
    assert held.begins()
    patience(60)
    speak.set()
    silent.result(WAIT_S)
    held.let_go.set()
    assert pool.runs_as_many_as_it_should()


def test_a_wait_within_a_wait_does_not_end_it(make: Pools) -> None:
    pool = make(running=1, most=8)
    inside, go_on = threading.Event(), threading.Event()

    def run() -> None:
        with aside():
            with aside():
                pass
            inside.set()
            assert go_on.wait(WAIT_S)

    waiting = pool.threads.submit(run)
    assert inside.wait(WAIT_S)
    other = pool.hold()
    assert other.begins()
    go_on.set()
    waiting.result(WAIT_S)
    other.let_go.set()
    assert pool.runs_as_many_as_it_should()


class _SecondIsSlow(Threads):
    """Its second thread is held up before it first looks for work."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.look = threading.Event()

    def take(self, thread: Any) -> Any:
        if thread.name.endswith("-2"):
            assert self.look.wait(WAIT_S)
        return super().take(thread)


def test_work_is_taken_up_though_its_thread_was_held_up_until_another_came_back(
    make: Pools, patience: Callable[[float], None]
) -> None:
    """When the thread that was woken for it looks, as many run as should; one of them then waits without a word."""
    patience(0.01)
    pool = make(running=1, most=8, kind=_SecondIsSlow)
    first = pool.hold(aside=True)
    assert first.begins()
    second = pool.hold()
    first.call_back.set()
    assert first.came_back.wait(WAIT_S)
    pool.threads.look.set()  # type: ignore[attr-defined]
    assert second.begun.wait(2)


def test_when_the_machine_gives_no_more_threads_those_there_are_do_the_work(
    make: Pools, patience: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(0.01)
    pool = make(running=1, most=8)
    first = pool.hold()
    assert first.begins()
    refused = threading.Event()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == f"{pool.name}-2":
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    # What the watch dies of is no warning here: that work stays undone is what counts.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    second = pool.hold()
    assert refused.wait(WAIT_S)
    patience(60)
    first.let_go.set()
    assert second.begun.wait(2)


def test_elsewhere_a_wait_is_only_a_wait() -> None:
    """On threads of others, such as a worker's or a test's."""

    @aside()
    def waits(what: int) -> int:
        return what + 1

    assert waits(1) == 2
    with pytest.raises(ValueError, match="odd"), aside():
        raise ValueError("odd")
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(waits(2)))
    thread.start()
    thread.join(WAIT_S)
    assert results == [3]


def test_the_process_ends_without_waiting_for_its_threads() -> None:
    """Neither for one that hangs, nor for one aside, nor for what has not begun."""
    code = """
import threading
from threads import Threads, aside
pool, begun, never = Threads(running=1, most=4, name="few"), threading.Barrier(3), threading.Event()
def waits():
    with aside():
        begun.wait()
        never.wait()
def hangs():
    begun.wait()
    never.wait()
pool.submit(waits)
pool.submit(hangs)
pool.submit(never.wait)
begun.wait(10)
pool.shutdown()
print("over")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")

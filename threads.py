"""Threads of which a few run while many may wait.

Python runs one thread of a process at a time, and each that could run as well makes all of them slower: they take the
interpreter from each other at every statement of a database and every line of the log. Yet a request that waits for a
loyalty program must not keep others from being answered. So whoever is about to wait steps aside (`aside`), and another
runs in their place; and whoever takes long without a word, such as for a client that sends slowly, counts as waiting.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from time import monotonic, sleep
from typing import Any

# A card takes a millisecond. Whoever takes so much longer waits for something.
PATIENCE_S = 0.05

_here = threading.local()


class Threads(Executor):
    """Runs what is submitted, in its order, on at most `most` threads, of which `running` do not wait.

    Threads are made when they are needed, stay, and end with the process, which waits for none of them.
    """

    def __init__(self, *, running: int, most: int, name: str) -> None:
        self._limit = running
        self._most = most
        self._name = name
        self._guard = threading.Lock()
        self._work: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads: list[_Thread] = []
        # The one that had something to do last is woken first.
        self._idle: list[_Thread] = []
        self._running = 0
        self._watched = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have `fn` called; what it returns or raises comes with the future."""
        future: Future[Any] = Future()
        with self._guard:
            self._work.append((future, lambda: fn(*args, **kwargs)))
            wake = self._next()
            watch = wake is None and self._needs_watch()
        if wake is not None:
            wake()
        if watch:
            self._start_watch()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing: threads that have nothing to do hold nothing."""

    def step_aside(self, thread: _Thread) -> None:
        """`thread` is about to wait: another may run."""
        with self._guard:
            self._discount(thread)
            wake = self._next()
        if wake is not None:
            wake()

    def come_back(self, thread: _Thread) -> None:
        """`thread` goes on, at once, even where that makes one more than should run."""
        with self._guard:
            self._count(thread)

    def take(self, thread: _Thread) -> tuple[Future[Any], Callable[[], Any]] | None:
        """What is to be done next; None when `thread` should wait until it is woken."""
        with self._guard:
            self._count(thread)
            if self._work and self._running <= self._limit:
                return self._work.popleft()
            self._discount(thread)
            self._idle.append(thread)
            # Others came back since it was woken: what it was woken for is left.
            watch = self._needs_watch()
        if watch:
            self._start_watch()
        return None

    def _count(self, thread: _Thread) -> None:
        thread.since = monotonic()
        if not thread.runs:
            thread.runs = True
            self._running += 1

    def _discount(self, thread: _Thread) -> None:
        if thread.runs:
            thread.runs = False
            self._running -= 1

    def _next(self) -> Callable[[], None] | None:
        """What lets another thread run, if there is work and room; to be called when the guard is given back."""
        if not self._work or self._running >= self._limit:
            return None
        if self._idle:
            thread = self._idle.pop()
            self._count(thread)
            return thread.woken.release
        if len(self._threads) < self._most:
            thread = _Thread(self, name=f"{self._name}-{len(self._threads) + 1}")
            self._threads.append(thread)
            self._count(thread)
            return partial(self._start, thread)
        return None

    def _start(self, thread: _Thread) -> None:
        try:
            thread.start()
        except RuntimeError:
            # The machine gives no more threads: those there are do the work when they are done.
            with self._guard:
                self._discount(thread)
                self._threads.remove(thread)
                if not self._threads:
                    raise

    def _needs_watch(self) -> bool:
        """Whether there is work that nobody watches; if so it is for the caller to start the watch."""
        if not self._work or self._watched:
            return False
        self._watched = True
        return True

    def _start_watch(self) -> None:
        try:
            threading.Thread(target=self._watch, name=f"{self._name}-watch", daemon=True).start()
        except RuntimeError:
            self._watched = False

    def _watch(self) -> None:
        """While there is work that nobody takes up, look for threads that wait without having stepped aside."""
        while True:
            sleep(PATIENCE_S / 2)
            with self._guard:
                if not self._work:
                    self._watched = False
                    return
                late = monotonic() - PATIENCE_S
                wakes = []
                for thread in [thread for thread in self._threads if thread.runs and thread.since < late]:
                    self._discount(thread)
                    wakes.append(self._next())
            for wake in filter(None, wakes):
                wake()


class _Thread(threading.Thread):
    """One thread of `threads`. `runs` is whether it counts as running, and `since` when it began to."""

    def __init__(self, threads: Threads, *, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.runs = False
        self.since = 0.0
        self.woken = threading.Lock()
        self.woken.acquire()
        self._threads = threads
        self._waits = False

    def run(self) -> None:
        """Do what there is to do, for ever."""
        _here.thread = self
        while True:
            work = self._threads.take(self)
            if work is None:
                self.woken.acquire()
            else:
                _do(*work)
                # Not kept alive until the next.
                del work

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While it waits in the block, another may run."""
        if self._waits:
            # Within another such block, which ends later.
            yield
            return
        self._waits = True
        try:
            self._threads.step_aside(self)
            yield
        finally:
            self._waits = False
            self._threads.come_back(self)


@contextmanager
def aside() -> Iterator[None]:
    """Around a wait, wherever it happens: where that is on a thread of `Threads`, another one runs meanwhile."""
    thread: _Thread | None = getattr(_here, "thread", None)
    if thread is None:
        yield
    else:
        with thread.aside():
            yield


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
        # Else the error's traceback would keep alive whatever the work held.
        del future, work
    else:
        future.set_result(result)

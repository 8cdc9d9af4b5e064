"""Acting at the same moment from many threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

Result = TypeVar("Result")


def at_once(count: int, act: Callable[[int], Result]) -> list[Result]:
    """What `act(0)` … `act(count - 1)` give, all started at the same moment. Raises what the first of them raises."""
    barrier = Barrier(count)

    def run(number: int) -> Result:
        barrier.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))

"""`kill -9` at any moment: between two steps, while Rivo has the request, before and after it wrote it down.

`TALLYDESK_KILL_EXAMPLES` sets the number of examples; each has a number that makes it the same again.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from loyalty.journal import AwardState
from tests.reliability.world import POINTS, WORLDS, Rivo, World

EXAMPLES = int(os.environ.get("TALLYDESK_KILL_EXAMPLES", "10"))
ROOT = Path(__file__).parents[2]


class Lives:
    """A process whose children live one after the other, and are killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.killed"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._unread = b""

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def live(self, task: dict[str, Any], *, until: Callable[[], bool]) -> list[str]:
        """Let a process live until it has come to its end or step, or until `until` holds; then kill it.

        Returns what it said.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        self._process.stdin.flush()
        ends = time.monotonic() + 30
        (pid,) = self._hear(ends=ends)
        said: list[str] = []
        while not until() and not {"at the step", "done"} & set(said):
            said += self._hear(ends=ends, patience_s=0.002)
        os.kill(int(pid), signal.SIGKILL)
        while said[-1:] != ["gone"]:
            said += self._hear(ends=ends)
            assert "ended by itself" not in said
        return said

    def _hear(self, *, ends: float, patience_s: float = 30.0) -> list[str]:
        """The next line, or none after `patience_s`."""
        out = self._process.stdout
        assert out is not None
        assert time.monotonic() < ends, "a process to be killed did nothing for half a minute"
        if b"\n" not in self._unread and select.select([out], [], [], patience_s)[0]:
            piece = os.read(out.fileno(), 65_536)
            assert piece, "the process whose children are killed has ended"
            self._unread += piece
        if b"\n" not in self._unread:
            return []
        line, _, self._unread = self._unread.partition(b"\n")
        return [line.decode()]


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    lives = Lives()
    yield lives
    lives.close()


def live_and_die(world: World, lives: Lives, chance: random.Random) -> None:
    """One life, and its end by SIGKILL at a moment that `chance` chooses."""
    applied = [row.operation_id for row in world.rows() if row.state == AwardState.APPLIED and row.reverses is None]
    deed = chance.choice(["press", "press", "press", "work", "work", "undo" if applied else "press"])
    kind = chance.choice(AT_RIVO + AT_A_STEP)
    fault = None
    if kind is not None:
        fault = world.order(kind=kind, path=POINTS, method="POST", seconds=0.5)
    points = chance.choice([0, 50, 70])
    task = {
        "settings": asdict(world.settings),
        "now": world.now().isoformat(),
        "seed": world.new_seed(),
        "wait_at": chance.randrange(20) if kind in AT_A_STEP else None,
        "deed": deed,
        "email": chance.choice(world.emails),
        "points": points,
        "cents": 0 if points else 250,
        "ticket": chance.choice(["1", "2"]),
        "operation_id": chance.choice(applied) if applied else "",
        "store_id": world.store.id,
        "connection_id": world.connection_id,
    }
    # Killed when Rivo has the request, unless it came to a step or its end before.
    said = lives.live(task, until=lambda: kind in AT_RIVO and fault is not None and fault.hits > 0)
    for word in said:
        if word.startswith("answered "):
            world.answered[word.split()[1]] = deed
    world.settle()
    world.pass_time(0)
    world.sandbox.faults.clear()


# Rivo writes nothing, has written already, or writes after the process is dead.
AT_RIVO: list[str | None] = ["hang", "hang_after", "slow"]
AT_A_STEP: list[str | None] = [None, None, None, "reset_after", "reset_before", "commit_late", "status"]


@pytest.mark.parametrize("example", range(EXAMPLES))
def test_killed_at_any_moment_every_award_is_in_rivos_book_exactly_once(
    rivo: Rivo, new_sqlite: Callable[[], str], lives: Lives, example: int
) -> None:
    chance = random.Random(example)
    world = World(rivo, database_url=new_sqlite(), number=next(WORLDS))
    try:
        for _ in range(chance.randint(2, 6)):
            live_and_die(world, lives, chance)
            world.check()
            world.pass_time(chance.choice([0, 1, 5, 15, 31, 46, 70, 130]))
            world.check()
        world.recover()
    finally:
        world.close()

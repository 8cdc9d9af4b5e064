"""Processes to be killed: `python -m tests.reliability.killed`, told by its input.

Each line of JSON is the life of one process, forked off here, where everything is imported already: a press, an undo
or a round of the worker. It prints its number when it begins, and `at the step` when it has come to the step that it
was told to wait at, or `done`; it does not end by itself. When it was killed, `gone` is printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from datetime import datetime
from typing import Any

from loyalty.awards import AwardRefused, AwardRequest, Origin
from loyalty.program import ProgramKind, ProgramUnavailable, Store
from settings import Settings
from tests.reliability.world import RULES, Process, Steps
from tests.stepping import run_one


class WaitingSteps(Steps):
    """The steps of a process that waits at one of them for its end."""

    def __init__(self, wait_at: int | None) -> None:
        super().__init__()
        self.wait_at = wait_at
        self.count = 0

    def step(self) -> None:
        if self.count == self.wait_at:
            say("at the step")
            signal.pause()
        self.count += 1


# What is said goes past the standard output, which logs are written to.
SAYING = os.dup(1)


def say(word: str) -> None:
    """One line in one piece, from whichever process."""
    os.write(SAYING, f"{word}\n".encode())


def live(task: dict[str, Any]) -> None:
    """One life, until it is killed."""
    say(str(os.getpid()))
    now = datetime.fromisoformat(task["now"])
    process = Process(
        Settings(**{**task["settings"], "encryption_keys": tuple(task["settings"]["encryption_keys"])}),
        now=lambda: now,
        # The clock stands still: a pause of the call budget would never end, and a life has not so many calls.
        sleep=lambda _: time.sleep(0.001),
        seed=task["seed"],
        steps=WaitingSteps(task["wait_at"]),
    )
    origin = Origin(connection_id=task["connection_id"], channel="button", ticket_id=task["ticket"])
    services = process.services
    try:
        if task["deed"] == "press":
            request = AwardRequest(
                emails=(task["email"],), points=task["points"], credit_cents=task["cents"], origin=origin
            )
            store = Store(id=task["store_id"], program=ProgramKind.RIVO)
            result = services.awards.award(store, request=request, rules=RULES)
            say(f"answered {result.operation_id}")
        elif task["deed"] == "undo":
            result = services.awards.undo(operation_id=task["operation_id"], origin=origin)
            say(f"answered {result.operation_id}")
        else:
            while run_one(services):
                pass
    except (AwardRefused, ProgramUnavailable) as error:
        say(f"refused {type(error).__name__}")
    say("done")
    signal.pause()


def main() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                live(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                # Not even an error may let it go on in this loop.
                os._exit(1)
        _, status = os.waitpid(child, 0)
        say("gone" if os.WIFSIGNALED(status) else "ended by itself")


if __name__ == "__main__":
    main()

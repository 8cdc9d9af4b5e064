"""Which core a process of a web server keeps to."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

_held: list[int] = []


def keep_to_one(folder: Path, *, workers: int) -> None:
    """Where there are as many workers as cores, keep this process to one that no other of its server has.

    Python runs one thread of a process at a time. On several cores a thread that lets go of the interpreter for a
    moment, as each does several times in a card, often finds that another one has been woken elsewhere and has taken
    it (docs/decisions/0018-a-worker-keeps-to-a-core.md).

    `folder` is the server's own. A core is taken by a lock on a file in it, which ends with the process; threads that
    run already stay where they are. Nothing is done where the kernel has no cores to choose from.
    """
    # macOS does not say which there are.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) != workers:
        return
    # Where it may not choose, or not lock, nothing is lost but that.
    with suppress(OSError):
        core = next((core for core in cores if _is_mine(folder / f"core-{core}")), None)
        if core is not None:
            os.sched_setaffinity(0, {core})


def _is_mine(path: Path) -> bool:
    """Lock this file for as long as the process lives; False when another has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _held.append(file)
    return True

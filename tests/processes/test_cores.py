"""On which cores a worker of gunicorn runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from storage.database import Database
from tests.processes.serving import Server, serving, wait_for
from tests.processes.test_server_threads import small_server

WORKERS = 2


@pytest.fixture
def cores() -> Iterator[list[int]]:
    """As many cores as there are workers, if the machine has them: what is started meanwhile has no others."""
    before = os.sched_getaffinity(0)
    mine = sorted(before)[:WORKERS]
    os.sched_setaffinity(0, mine)
    yield mine
    os.sched_setaffinity(0, before)


def test_each_worker_keeps_to_a_core_of_its_own_and_so_does_one_that_takes_its_place(
    sqlite_database: Database, tmp_path: Path, cores: list[int]
) -> None:
    # On a machine with one core there is nothing to choose.
    one_each = [{core} for core in cores] if len(cores) == WORKERS else [set(cores)] * WORKERS
    with serving(sqlite_database.url, folder=tmp_path) as server:
        wait_for(lambda: _spread(server) == one_each, "not each has a core of its own", log=server.log)
        for lost in server.listening():
            lost.kill()
            wait_for(partial(_replaced, server, lost), "no worker took its place", log=server.log)
            wait_for(lambda: _spread(server) == one_each, "the one that came took another core", log=server.log)


def test_with_more_cores_than_workers_the_kernel_chooses(tmp_path: Path, cores: list[int]) -> None:
    before = os.sched_getaffinity(0)
    with small_server(tmp_path) as (process, _):
        [worker] = psutil.Process(process.pid).children()
        assert _cores_of(worker) == before == set(cores)


def _spread(server: Server) -> list[set[int]]:
    return sorted(map(_cores_of, server.listening()), key=min)


def _replaced(server: Server, lost: psutil.Process) -> bool:
    listening = server.listening()
    return lost not in listening and len(listening) == WORKERS


def _cores_of(worker: psutil.Process) -> set[int]:
    """Where any thread of this process may run."""
    cores: set[int] = set()
    for task in Path(f"/proc/{worker.pid}/task").iterdir():
        # It may have ended meanwhile.
        with suppress(ProcessLookupError):
            cores |= os.sched_getaffinity(int(task.name))
    return cores

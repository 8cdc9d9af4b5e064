"""On which cores a worker runs, of gunicorn and of granian."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import psutil
import pytest

from bench import servers, store
from script.bootstrap import ROOT
from storage.database import Database
from tests.processes.serving import Server, serving, wait_for
from tests.processes.test_server_threads import small_server

WORKERS = 2
# Keeps to a core, says which it may run on, and stays until it is told to go.
KEEP = """
import json, os, pathlib, sys
import cores

cores.keep_to_one(pathlib.Path(sys.argv[1]), workers=int(sys.argv[2]))
print(json.dumps(sorted(os.sched_getaffinity(0))), flush=True)
sys.stdin.read()
"""


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


def test_workers_of_granian_keep_to_a_core_each_as_well(
    sqlite_database: Database, tmp_path: Path, cores: list[int]
) -> None:
    one_each = [{core} for core in cores] if len(cores) == WORKERS else [set(cores)] * WORKERS
    filled = store.Filled(url=sqlite_database.url, folder=tmp_path, connection_ids=[], members=0, email_key=b"")
    with servers.tallydesk_granian(filled, workers=WORKERS) as server:

        def spread() -> list[set[int]]:
            # Its own threads, which it has before the application, hardly run.
            return sorted((os.sched_getaffinity(worker.pid) for worker in server.workers()), key=min)

        wait_for(lambda: spread() == one_each, "not each has a core of its own")


def test_who_finds_every_core_taken_keeps_to_none(tmp_path: Path, cores: list[int]) -> None:
    command = [sys.executable, "-c", KEEP, str(tmp_path), str(len(cores))]
    with ExitStack() as stack:
        told = []
        for _ in range(len(cores) + 1):
            process = stack.enter_context(Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True))
            assert process.stdout is not None
            told.append(json.loads(process.stdout.readline()))
        assert told == [[core] for core in cores] + [cores]


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

"""The server's settings on the real application: what gunicorn.conf.py claims, measured again.

Each table ends in what to keep, in the words of what was measured; nothing here is a target.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from bench import servers, store
from bench.cards import CONNECTIONS, card_of
from bench.load import Load, send
from bench.measure import alternated, spread_of
from bench.pace import Pace
from bench.report import Section, Table, told
from bench.servers import GRANIAN_THREADS
from serving import RUNNING

MANY = 64
# A worker with less than this of the processor time of both had next to no connections.
IDLE = 0.2
OWN, SHARED = "a socket for each worker (`reuse_port`)", "one socket for all"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A load, and the share of the processor time of the worker that did least (half of two workers is fair)."""

    load: Load
    least_share: float


def run(pace: Pace) -> Section:
    """Sockets, cores, threads, recycling, and another server."""
    with tempfile.TemporaryDirectory(prefix="tallydesk-bench-") as name:
        folder = Path(name)
        filled = store.fill(f"sqlite:///{folder}/server.db", members=pace.members)
        shared_socket = servers.shipped_but(folder, "shared_socket", "reuse_port = False")
        with servers.tallydesk_gunicorn(filled) as shipped:
            bench = _Bench(pace, filled, folder, shipped=shipped, shared_socket=shared_socket)
            tables = [bench.sockets(), bench.cores(), bench.threads(), bench.recycling(), bench.other_server()]
    return Section(title="The server's settings", tables=tables)


Subjects = Mapping[str, AbstractContextManager[servers.Server]]


class _Bench:
    def __init__(
        self, pace: Pace, filled: store.Filled, folder: Path, *, shipped: servers.Server, shared_socket: Path
    ) -> None:
        self._pace = pace
        self._folder = folder
        self._filled = filled
        # Started once: it is in every table.
        self._shipped = shipped
        self._shared_socket = shared_socket
        self._seeds = itertools.count(1)

    def sockets(self) -> Table:
        """One socket for each worker against one for all."""
        rounds, seconds = self._pace.size(12, quick=3), min(2, self._pace.seconds)
        with self._running(
            {
                OWN: nullcontext(self._shipped),
                SHARED: servers.tallydesk_gunicorn(self._filled, config=self._shared_socket),
            }
        ) as running:
            found = alternated(
                {name: partial(self._shared, server, seconds=seconds) for name, server in running.items()},
                rounds=rounds,
            )
        rows = [
            [
                name,
                *_told([run.load for run in runs]),
                told(spread_of(runs, "least_share")),
                str(_idle(runs)),
            ]
            for name, runs in found.items()
        ]
        return Table(
            title=f"Listening sockets: {CONNECTIONS} connections, {rounds} runs of {seconds:g} s",
            columns=["", *_LOAD, "share of the idler worker", "runs with one worker idle"],
            rows=rows,
            note=f"A share of 0.5 is fair; below {IDLE:g} one worker had nearly all connections. {_on_sockets(found)}",
        )

    def cores(self) -> Table:
        """Whether each worker keeps to a core."""
        workers, cores = len(self._shipped.workers()), len(os.sched_getaffinity(0))
        any_core = servers.shipped_but(self._folder, "any_core", servers.ANY_CORE)
        subjects: Subjects = {
            "as shipped": nullcontext(self._shipped),
            "the kernel chooses": servers.tallydesk_gunicorn(self._filled, config=any_core),
        }
        return Table(
            title=f"Cores: {MANY} connections, nothing slow",
            columns=["", *_LOAD],
            rows=_rows(self._loads(subjects, connections=MANY)),
            note=(
                "With as many workers as cores, the shipped settings give each worker a core of its own; here "
                f"{workers} workers have {cores} cores. What it is worth while a program is slow stands there."
            ),
        )

    def threads(self) -> Table:
        """How many threads cost or bring what, while nothing is slow."""
        running = (8,) if self._pace.quick else (2, 8, 16, 32)
        all_run = (32,) if self._pace.quick else (8, 32, 64)
        subjects: Subjects = {
            **{
                f"{count} run": servers.tallydesk_gunicorn(
                    self._filled,
                    config=servers.shipped_but(
                        self._folder, f"running-{count}", f"import serving; serving.RUNNING = {count}"
                    ),
                )
                for count in running
            },
            **{
                f"gunicorn's own `gthread`, {count} threads": servers.tallydesk_gunicorn(
                    self._filled, flags=["--worker-class", "gthread", "--threads", str(count)]
                )
                for count in all_run
            },
        }
        shipped = f"as shipped: {RUNNING} run"
        found = self._loads({shipped: nullcontext(self._shipped), **subjects}, connections=MANY)
        best = max(found.values(), key=_per_s)
        return Table(
            title=f"Threads of a worker: {MANY} connections, nothing slow",
            columns=["", *_LOAD],
            rows=_rows(found),
            note=(
                "Threads are for a program that is slow, which has a section of its own; this is what they cost while "
                "nothing is. Those of our own worker (serving.py) may be 64, of which so many run at a time; "
                f"gunicorn's own all run. As shipped: {_percent(found[shipped], best)} of the best row's requests."
            ),
        )

    def recycling(self) -> Table:
        """What it costs to replace a worker after so many requests."""
        after = self._pace.size(2_000, quick=300)
        flags = ["--max-requests", str(after), "--max-requests-jitter", str(after // 10)]
        subjects: Subjects = {
            f"{OWN}, never recycled": nullcontext(self._shipped),
            f"{OWN}, recycled": servers.tallydesk_gunicorn(self._filled, flags=flags),
            f"{SHARED}, recycled": servers.tallydesk_gunicorn(self._filled, config=self._shared_socket, flags=flags),
        }
        found = self._loads(subjects, connections=CONNECTIONS)
        return Table(
            title=f"Workers that are replaced after {after:,} requests: {CONNECTIONS} connections",
            columns=["", *_LOAD],
            rows=_rows(found),
            note=_on_recycling(found),
        )

    def other_server(self) -> Table:
        """granian with different numbers of threads."""
        subjects: Subjects = {
            f"granian, {count} {'thread' if count == 1 else 'threads'}": servers.tallydesk_granian(
                self._filled, blocking_threads=count
            )
            for count in ((GRANIAN_THREADS,) if self._pace.quick else (1, 8, 32, GRANIAN_THREADS))
        }
        found = self._loads({"gunicorn, as shipped": nullcontext(self._shipped), **subjects}, connections=MANY)
        return Table(
            title=f"Another server: {MANY} connections, nothing slow",
            columns=["", *_LOAD],
            rows=_rows(found),
            note=(
                "granian serves the same application: `GRANIAN_WORKERS=2 granian --interface wsgi --blocking-threads "
                f"{GRANIAN_THREADS} --no-ws --http 1 --factory on_granian:create_app`, with PROMETHEUS_MULTIPROC_DIR "
                "set to an empty folder. As many requests of a worker may wait for a program as it has threads. Its "
                "workers keep to a core each, as those of gunicorn do; so does (b). gunicorn stays the default: it "
                "checks the database before it forks, keeps what a request holds out of its own log and stops within "
                "the time that hosts give."
            ),
        )

    def _loads(self, subjects: Subjects, *, connections: int) -> dict[str, list[Load]]:
        with self._running(subjects) as running:
            return alternated(
                {
                    name: partial(self._load, server, connections=connections, seconds=self._pace.seconds)
                    for name, server in running.items()
                },
                rounds=self._pace.size(self._pace.rounds, quick=1),
            )

    @contextmanager
    def _running(self, subjects: Subjects) -> Iterator[dict[str, servers.Server]]:
        """All of them at once, each warm."""
        with servers.together(subjects) as running:
            for server in running.values():
                self._load(server, connections=CONNECTIONS, seconds=min(0.5, self._pace.seconds))
            yield running

    def _load(self, server: servers.Server, *, connections: int, seconds: float) -> Load:
        shape = card_of(self._pace.members)
        return send(server.port, [shape], connections=connections, seconds=seconds, seed=next(self._seeds))

    def _shared(self, server: servers.Server, *, seconds: float) -> Shared:
        before = [_processor_s(worker) for worker in server.workers()]
        load = self._load(server, connections=CONNECTIONS, seconds=seconds)
        used = [_processor_s(worker) - then for worker, then in zip(server.workers(), before, strict=True)]
        return Shared(load=load, least_share=min(used) / sum(used))


def _processor_s(worker: psutil.Process) -> float:
    times = worker.cpu_times()
    return float(times.user + times.system)


_LOAD = ("requests/s", "p50, ms", "p99, ms", "errors")


def _rows(found: Mapping[str, list[Load]]) -> list[list[str]]:
    return [[name, *_told(loads)] for name, loads in found.items()]


def _told(loads: list[Load]) -> list[str]:
    values = [told(spread_of(loads, name)) for name in ("per_s", "p50_ms", "p99_ms")]
    return [*values, f"{_errors(loads):,} ({sum(load.sent for load in loads):,} answers)"]


def _per_s(loads: list[Load]) -> float:
    return spread_of(loads, "per_s").median


def _percent(loads: list[Load], of: list[Load]) -> str:
    return f"{100 * _per_s(loads) / _per_s(of):.0f} %"


def _errors(loads: list[Load]) -> int:
    return sum(load.errors for load in loads)


def _idle(runs: list[Shared]) -> int:
    """In how many runs one worker had nothing to do."""
    return sum(run.least_share < IDLE for run in runs)


def _on_sockets(found: Mapping[str, list[Shared]]) -> str:
    own, shared = found[OWN], found[SHARED]
    if _idle(own) < _idle(shared):
        return "On this evidence `reuse_port` stays on."
    least = {name: min(run.least_share for run in runs) for name, runs in found.items()}
    return (
        f"Neither had fewer such runs; the least share was {least[OWN]:.2f} with a socket each and {least[SHARED]:.2f} "
        "with one for all, so `reuse_port` is not refuted and stays on."
        if _idle(own) == _idle(shared)
        else "On this evidence `reuse_port` should be off."
    )


def _on_recycling(found: Mapping[str, list[Load]]) -> str:
    lost = _errors(found[f"{OWN}, recycled"])
    if lost:
        return "A worker that goes takes its queue of connections along: `max_requests = 0` stays."
    return "Recycling lost nothing here; `max_requests = 0` stays as long as the memory of a worker does not grow."

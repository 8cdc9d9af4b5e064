"""The processor time of one card inside the application, without sockets, and where it goes.

Target 3.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import store
from bench.in_process import BARE, RAW, WHOLE
from bench.load import ROOT
from bench.pace import Pace
from bench.report import Section, Table, at_most, told
from tests.processes.serving import environment

GOAL_US = 110.0
LEDGER, SNAPSHOT = "built-in ledger", "fresh Rivo snapshot"


def run(pace: Pace) -> Section:
    """Measure a card of both kinds of store, and its parts."""
    rounds, count = pace.size(7, quick=3), pace.size(3_000, quick=1_000)
    with tempfile.TemporaryDirectory(prefix="tallydesk-bench-") as name:
        folder = Path(name)
        found = {
            LEDGER: card_us(
                store.fill(f"sqlite:///{folder}/ledger.db", members=pace.members), rounds=rounds, count=count
            ),
            SNAPSHOT: card_us(
                store.fill(f"sqlite:///{folder}/rivo.db", members=pace.members, snapshots=True),
                rounds=rounds,
                count=count,
                SNAPSHOT_FRESH_S="86400",
            ),
        }
    figures = [
        at_most(
            GOAL_US,
            target=3,
            name=f"processor time of a card, {kind}",
            measured=took[WHOLE],
            unit=" µs",
            bound_by=_most_of(took),
        )
        for kind, took in found.items()
    ]
    return Section(title="Processor time of a card", figures=figures, tables=[_table(found, rounds, count)])


def card_us(filled: store.Filled, *, rounds: int, count: int, **env: str) -> dict[str, float]:
    """Microseconds of a card and of its parts, in a process of their own."""
    metrics = tempfile.mkdtemp(prefix="tallydesk-metrics-", dir=filled.folder)
    given = {**environment(filled.url, port=8000, folder=filled.folder), "PROMETHEUS_MULTIPROC_DIR": metrics, **env}
    with (filled.folder / "in_process.log").open("ab") as log:
        done = subprocess.run(
            [sys.executable, "-m", "bench.in_process", str(filled.members), str(rounds), str(count)],
            cwd=ROOT,
            env=given,
            stdout=subprocess.PIPE,
            stderr=log,
            check=True,
        )
    took: dict[str, float] = json.loads(done.stdout)
    return took


def _parts(took: dict[str, float]) -> dict[str, float]:
    return {name: us for name, us in took.items() if name not in (WHOLE, BARE, RAW)}


def _most_of(took: dict[str, float]) -> str:
    largest = sorted(_parts(took).items(), key=lambda part: part[1], reverse=True)[:3]
    return "Most of it: " + ", ".join(f"{name} {us:.0f} µs" for name, us in largest) + "."


def _table(found: dict[str, dict[str, float]], rounds: int, count: int) -> Table:
    names = list(_parts(found[LEDGER]))
    rows = [[name, *(told(took[name]) for took in found.values())] for name in names]
    rest = "the rest: request id, headers, the way to the view and back"
    rows.append([rest, *(told(took[WHOLE] - sum(_parts(took).values())) for took in found.values())])
    for name, shown in ((WHOLE, "**a card**"), (BARE, "bare Flask, the same way"), (RAW, "a raw WSGI function")):
        rows.append([shown, *(told(took[name]) for took in found.values())])
    return Table(
        title=f"Microseconds of processor time, best of {rounds} × {count:,}",
        columns=["", *found],
        rows=rows,
        note=(
            "From the WSGI environment to the bytes of the body, in one thread; metrics are those of several "
            "processes, and log lines go into a file. The parts are measured by calling one after the other, as a card "
            "does. A key that was read less than a second ago is not read again, as on a server that is asked often."
        ),
    )

"""Awards on the built-in ledger, over HTTP, beside bare transactions of the same rows.

Target 7. Each award is another member's and another ticket's, so that none is taken for a double click; they are spread
over stores as those of many merchants are. No worker runs: the note on the ticket is asked for and not written.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from bench import servers, store
from bench.load import ROOT, Load, Shape, send
from bench.measure import Ratio, alternated, spread_of
from bench.pace import Pace
from bench.report import Figure, Section, Table, at_least, at_most, told
from loyalty.journal import AwardState
from loyalty.ledger import Kind, verify
from storage.database import Database
from storage.tables import awards, ledger_transactions

STORES = 64
CONNECTIONS, MANY_CONNECTIONS, MANY_WORKERS = 16, 32, 4
WARM_UP_S = 0.5
WITH_NOTE, WITHOUT = "with a ticket", "without a ticket"

_BOUND = (
    "The processor: beside the transaction an award is a request through Flask, with its key, fields, caps, "
    "double-click check and seals, and an answer with metrics and a log line; the load's own process runs on the same "
    "cores."
)
_WAITS = (
    "The processor again: an award waits for those before it, and so many connections at once are a queue as long as "
    "they are many, divided by what two cores finish in a second."
)


@dataclass(frozen=True, kw_only=True)
class Bare:
    """What a loop of bare transactions came to."""

    count: int
    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float


def award_of(stores: int, members: int, *, ticket: bool = True) -> Shape:
    """An award for a member of one of so many stores; repetitions are as good as impossible."""
    body = {
        "email": "member-{n}@bench.example",
        "points": "{p}",
        "reason": "Late delivery",
        "agent_email": "agent-{a}@bench.example",
        **({"ticket_id": "{t}"} if ticket else {}),
    }
    return Shape(
        method="POST",
        path="/widget/earnings",
        headers={"X-Api-Key": "tda_{k:064x}", "Content-Type": "application/json"},
        body=json.dumps(body),
        draws={"k": (1, stores), "n": (1, members), "p": (1, 100_000), "a": (1, 20), "t": (1, 2_000_000_000)},
    )


def run(pace: Pace) -> Section:
    """Measure awards on SQLite and on PostgreSQL, and with many processes on SQLite; then prove the books."""
    members = pace.members // STORES
    seeds = itertools.count(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallydesk-bench-")))
        postgres = stack.enter_context(servers.postgres())
        sqlite = store.fill(f"sqlite:///{folder}/awards.db", members=members, connections=STORES)
        # The same file once more, as it is after filling.
        shutil.copy(folder / "awards.db", folder / "bare.db")
        elsewhere = [
            store.fill(postgres.url(postgres.create()), members=members, connections=STORES, folder=folder)
            for _ in range(2)
        ]
        subjects: dict[str, Callable[[], Load | Bare]] = {}
        for name, filled, bare_url in (
            ("SQLite", sqlite, f"sqlite:///{folder}/bare.db"),
            ("PostgreSQL", elsewhere[0], elsewhere[1].url),
        ):
            port = stack.enter_context(servers.tallydesk_gunicorn(filled)).port
            for kind in (WITH_NOTE, WITHOUT):
                shape = award_of(STORES, members, ticket=kind == WITH_NOTE)
                subjects[f"{name}, {kind}"] = partial(_load, port, shape, seconds=pace.seconds, seeds=seeds)
                _load(port, shape, seconds=WARM_UP_S, seeds=seeds)
                subjects[f"{name}, {kind}, bare"] = partial(
                    bare, bare_url, members=members, ticket=kind == WITH_NOTE, seconds=pace.seconds, seeds=seeds
                )
        loads = alternated(subjects, rounds=pace.rounds)
        # Beside the two that are idle now.
        many_port = stack.enter_context(servers.tallydesk_gunicorn(sqlite, workers=MANY_WORKERS)).port
        many = alternated(
            {
                "many": partial(
                    _load,
                    many_port,
                    award_of(STORES, members),
                    connections=MANY_CONNECTIONS,
                    seconds=pace.seconds,
                    seeds=seeds,
                )
            },
            rounds=pace.rounds,
        )["many"]
        books = [
            [name, *_books(url)]
            for name, url in (
                ("SQLite", sqlite.url),
                ("SQLite, bare", f"sqlite:///{folder}/bare.db"),
                ("PostgreSQL", elsewhere[0].url),
                ("PostgreSQL, bare", elsewhere[1].url),
            )
        ]
    return Section(
        title="Awards on the built-in ledger",
        figures=_figures(loads, many),
        tables=[_table(loads, many, pace=pace), _proof(books)],
    )


def _load(
    port: int, shape: Shape, *, seconds: float, seeds: itertools.count[int], connections: int = CONNECTIONS
) -> Load:
    return send(port, [shape], connections=connections, seconds=seconds, seed=next(seeds))


def bare(
    url: str, *, members: int, ticket: bool, seconds: float, seeds: itertools.count[int], stores: int = STORES
) -> Bare:
    """Bare transactions in a process of their own, for so many seconds. Raises RuntimeError when they fail."""
    order = {"url": url, "members": members, "connections": stores, "ticket": ticket}
    return Bare(**of_process("bench.baselines.bare_awards", {**order, "seconds": seconds, "seed": next(seeds)}))


def of_process(module: str, order: Mapping[str, Any]) -> Any:
    """What a module answers, run with an order as JSON. Raises RuntimeError when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(order),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _figures(loads: Mapping[str, Sequence[Load | Bare]], many: Sequence[Load]) -> list[Figure]:
    figures = [
        at_least(
            0.4,
            target=7,
            name=f"awards over HTTP ÷ bare transactions, {name}",
            measured=_ratio(loads, name),
            unit=" ×",
            bound_by=_BOUND,
        )
        for name in loads
        if not name.endswith("bare")
    ]
    return [
        *figures,
        at_most(
            0,
            target=7,
            name=f"{MANY_WORKERS} processes on SQLite: errors",
            measured=float(sum(load.errors for load in many)),
        ),
        at_most(
            100,
            target=7,
            name=f"{MANY_WORKERS} processes on SQLite: p99",
            measured=spread_of(many, "p99_ms"),
            unit=" ms",
            bound_by=_WAITS,
        ),
    ]


def _ratio(loads: Mapping[str, Sequence[Load | Bare]], name: str) -> Ratio:
    return Ratio.between([load.per_s for load in loads[name]], [load.per_s for load in loads[f"{name}, bare"]])


def _table(loads: Mapping[str, Sequence[Load | Bare]], many: Sequence[Load], *, pace: Pace) -> Table:
    named: dict[str, Sequence[Load | Bare]] = {
        **loads,
        f"SQLite, {WITH_NOTE}, {MANY_WORKERS} processes, {MANY_CONNECTIONS} connections": many,
    }
    rows = [
        [
            name,
            told(spread_of(found, "per_s")),
            told(_ratio(loads, name)) if f"{name}, bare" in loads else "",
            told(spread_of(found, "p50_ms")),
            told(spread_of(found, "p99_ms")),
            told(max(load.max_ms for load in found)),
            str(sum(load.errors for load in found if isinstance(load, Load))),
        ]
        for name, found in named.items()
    ]
    return Table(
        title=f"{pace.members // STORES:,} members in each of {STORES} stores, {CONNECTIONS} connections, 2 processes",
        columns=["", "awards/s", "÷ bare", "p50, ms", "p99, ms", "longest, ms", "errors"],
        rows=rows,
        note=(
            "*Bare* is one process without HTTP that writes the rows of an award in their last state, one transaction "
            "after the other, prepared by hand: the award, the ledger's transaction with two entries, the member's "
            "kept sums, and with a ticket the job that asks for the note. SQLite runs in WAL with synchronous=FULL, "
            "PostgreSQL with its own durability, both for both. The agent is named in every award. An award's limits "
            "for a day are sums over what its connection gave that day."
        ),
    )


def _books(url: str) -> list[str]:
    """Awards that were applied, what was booked for them, and what does not add up."""
    database = Database(url)
    try:
        with database.read(unhurried=True) as tx:
            applied = tx.scalar(select(func.count()).select_from(awards).where(awards.c.state == AwardState.APPLIED))
            every = tx.scalar(select(func.count()).select_from(awards))
            booked = tx.scalar(
                select(func.count())
                .select_from(
                    ledger_transactions.join(awards, awards.c.operation_id == ledger_transactions.c.operation_id)
                )
                .where(ledger_transactions.c.kind == Kind.AWARD)
            )
            wrong = len(list(verify(tx)))
    finally:
        database.close()
    if not (applied == every == booked and wrong == 0):
        raise RuntimeError(f"the books are wrong: {every} awards, {applied} applied, {booked} booked, {wrong} faults")
    return [f"{applied:,}", f"{booked:,}", f"{wrong}"]


def _proof(books: Sequence[Sequence[str]]) -> Table:
    return Table(
        title="The books after all this",
        columns=["", "awards applied", "of them booked in the ledger", "faults that `flask ledger verify` finds"],
        rows=books,
    )

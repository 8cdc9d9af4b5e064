"""Cards while the program behind them is slow, and while it does not answer at all.

Targets 4 and 5. Members are spread over stores, each with a key and a gate of its own: Tallydesk asks a program for one
store at most twelve times a second, whatever it does.
"""

from __future__ import annotations

import http.client
import itertools
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import delete, update

from bench import servers, store
from bench.cards import FRESH_S
from bench.load import Load, Shape, send
from bench.measure import Ratio, Spread, alternated, spread_of
from bench.pace import Pace
from bench.program import Program, program
from bench.report import Figure, Section, Table, at_least, at_most, told
from storage.database import Database
from storage.tables import gates, snapshots

# More than the misses need at twelve calls a second for each store, so that chance does not fill one.
STORES = 128
CONNECTIONS, MISSES, PROGRAM_S = 64, 0.1, 0.12
CEILING = CONNECTIONS / (MISSES * PROGRAM_S)
# Beside the connections that ask for members who are known, those that ask for strangers only.
STRANGERS, CROWD = 4, 32
WARM_UP_S = 0.5
UNAVAILABLE = "Temporarily unavailable"
# Cards of members of whom something is known, but nothing recent, are half of them.
STALE_SINCE = timedelta(days=2)

GUNICORN, GRANIAN, POSTGRES = "gunicorn", "granian", "gunicorn, PostgreSQL"
ANY_CORE = "gunicorn, whose workers keep to no core"
PASSTHROUGH = "(d) pass-through, gunicorn"

_BOUND = (
    "The processor: see the rows with nobody unknown for what the same connections reach without a single miss. One "
    "costs 1.3 to 1.7 ms of it, as much as six known members under gunicorn and sixteen under granian: a thread that "
    "asks, an exchange over HTTP, four questions to the database and three notes (its claim, its turn at the gate, "
    "what came), by which all processes together ask once and keep to what the program allows. wrk and the program "
    "take their share of the same two cores, and which of the two workers gets more of the connections is chance: "
    "with six of ten, its core is full before the other's."
)


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A load, and how many of its cards said that the program was unavailable."""

    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: int
    unavailable: int


@dataclass(frozen=True, kw_only=True)
class Both:
    """The cards of members who are known, and those of strangers who came meanwhile."""

    known: Load
    strangers: Load


def run(pace: Pace) -> Section:
    """Measure the slow program, then the one that hangs."""
    figures: list[Figure] = []
    tables: list[Table] = []
    for part in (_slow, _hanging):
        found_figures, table = part(pace)
        figures += found_figures
        tables.append(table)
    return Section(title="While the program is slow", figures=figures, tables=tables)


def known_of(members: int, *, stores: tuple[int, int] = (1, STORES), share: float = 1.0) -> Shape:
    """The card of a member of whom a snapshot is kept."""
    return _card("member-{n}", draws={"n": (1, members)}, stores=stores, share=share)


def stranger(*, share: float = 1.0) -> Shape:
    """The card of somebody who was never asked for before; nobody comes twice."""
    return _card("new-{s}", draws={"s": (1, 2_000_000_000)}, stores=(1, STORES), share=share)


def _card(name: str, *, draws: Mapping[str, tuple[int, int]], stores: tuple[int, int], share: float) -> Shape:
    return Shape(
        path=f"/widget/customer?email={name}%40bench.example",
        headers={"X-Api-Key": "tdl_{k:064x}"},
        draws={**draws, "k": stores},
        share=share,
    )


def _slow(pace: Pace) -> tuple[list[Figure], Table]:
    """Target 4: one card in ten is of a stranger, and the program takes its time."""
    members = pace.members // STORES
    seeds = itertools.count(1)
    mix = [known_of(members, share=1 - MISSES), stranger(share=MISSES)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallydesk-bench-")))
        rivo = stack.enter_context(program(folder))
        rivo.answer_after(PROGRAM_S)
        postgres = stack.enter_context(servers.postgres())
        any_core = servers.shipped_but(folder, "any_core", servers.ANY_CORE)
        ports = {}
        for name, url, server in (
            (GUNICORN, f"sqlite:///{folder}/gunicorn.db", servers.tallydesk_gunicorn),
            (ANY_CORE, f"sqlite:///{folder}/any_core.db", partial(servers.tallydesk_gunicorn, config=any_core)),
            (GRANIAN, f"sqlite:///{folder}/granian.db", servers.tallydesk_granian),
            (POSTGRES, postgres.url(postgres.create()), servers.tallydesk_gunicorn),
        ):
            filled = store.fill(url, members=members, connections=STORES, snapshots=True, folder=folder)
            ports[name] = stack.enter_context(server(filled, RIVO_URL=rivo.url, SNAPSHOT_FRESH_S=FRESH_S)).port
        ports[PASSTHROUGH] = stack.enter_context(
            servers.gunicorn(
                "bench.baselines.passthrough:app",
                filled,
                flags=servers.PLAIN_THREADS,
                PROGRAM_URL=rivo.url,
                PROGRAM_KEY=store.rivo_key(1),
            )
        ).port

        def load(port: int, shapes: Sequence[Shape], seconds: float = pace.seconds) -> Mixed:
            counts = port != ports[PASSTHROUGH]
            before = unavailable_cards(port) if counts else 0
            came = send(port, shapes, connections=CONNECTIONS, seconds=seconds, seed=next(seeds))
            after = unavailable_cards(port) if counts else 0
            return Mixed(
                per_s=came.per_s,
                p50_ms=came.p50_ms,
                p99_ms=came.p99_ms,
                max_ms=came.max_ms,
                errors=came.errors,
                unavailable=after - before,
            )

        subjects = {
            **{name: partial(load, port, mix) for name, port in ports.items()},
            **{_healthy(name): partial(load, port, mix[:1]) for name, port in ports.items() if name != PASSTHROUGH},
        }
        # As long as a load: SQLite's log grows at first, and is written over from then on.
        for port in ports.values():
            load(port, mix)
        loads = alternated(subjects, rounds=pace.rounds)
    return _slow_figures(loads), _slow_table(loads)


def _healthy(name: str) -> str:
    return f"{name}, nobody unknown"


def _share(loads: Mapping[str, Sequence[Mixed]], name: str) -> Ratio:
    return Ratio.of([load.per_s / CEILING for load in loads[name]])


def _share_of_possible(loads: Mapping[str, Sequence[Mixed]], name: str) -> Ratio:
    possible = [min(CEILING, healthy.per_s) for healthy in loads[_healthy(name)]]
    return Ratio.between([load.per_s for load in loads[name]], possible)


def _slow_figures(loads: Mapping[str, Sequence[Mixed]]) -> list[Figure]:
    return [
        at_least(0.9, target=4, name=name, measured=measured, bound_by=_BOUND)
        for server in (GUNICORN, GRANIAN, POSTGRES)
        for name, measured in (
            (
                f"one in ten unknown, 120 ms: share of the closed loop's {CEILING:,.0f}/s, {server}",
                _share(loads, server),
            ),
            (
                f"the same: share of what these connections reach with nobody unknown, {server}",
                _share_of_possible(loads, server),
            ),
        )
    ]


def _slow_table(loads: Mapping[str, Sequence[Mixed]]) -> Table:
    rows = [
        [
            name,
            told(spread_of(found, "per_s")),
            told(_share(loads, name)),
            told(spread_of(found, "p50_ms")),
            told(spread_of(found, "p99_ms")),
            "" if name == PASSTHROUGH else f"{sum(load.unavailable for load in found):,}",
            str(sum(load.errors for load in found)),
        ]
        for name, found in loads.items()
    ]
    return Table(
        title=f"One card in ten of somebody unknown, the program answers after 120 ms, {CONNECTIONS} connections",
        columns=["", "requests/s", f"÷ {CEILING:,.0f}/s", "p50, ms", "p99, ms", f"said {UNAVAILABLE}", "errors"],
        rows=rows,
        note=(
            f"{CEILING:,.0f}/s is what {CONNECTIONS} connections could ask if nothing but the program took time. "
            f"Strangers are spread over {STORES} stores, since the program allows so many calls for each. The "
            "pass-through asks the program for everybody, without a limit."
        ),
    )


def unavailable_cards(port: int) -> int:
    """How many cards of this server said that the program was unavailable, as its own metrics count them."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request("GET", "/metrics")
    told_ = client.getresponse().read().decode()
    client.close()
    found = re.search(r'(?m)^tallydesk_requests_total\{outcome="program_unavailable",[^}]*\} (\S+)$', told_)
    return int(float(found[1])) if found else 0


# ------------------------------------------------------------------------------------- a program that hangs


def _hanging(pace: Pace) -> tuple[list[Figure], Table]:
    """Target 5: members who are known, fresh and stale, while strangers wait for a program that does not answer."""
    members = pace.members // STORES
    seeds = itertools.count(1)
    half = STORES // 2
    known = [known_of(members, stores=(1, half), share=0.5), known_of(members, stores=(half + 1, STORES), share=0.5)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallydesk-bench-")))
        sides = {}
        for side in ("healthy", "hangs"):
            rivo = stack.enter_context(program(folder))
            rivo.answer_after(PROGRAM_S)
            filled = store.fill(
                f"sqlite:///{folder}/{side}.db",
                members=members,
                connections=STORES,
                snapshots=True,
                as_of=datetime.now(UTC) - STALE_SINCE,
            )
            _refresh_some(filled, before=half)
            server = servers.tallydesk_gunicorn(filled, RIVO_URL=rivo.url, SNAPSHOT_FRESH_S=FRESH_S)
            sides[side] = (rivo, filled, stack.enter_context(server).port)

        def load(side: str, strangers: int, seconds: float = pace.seconds) -> Both:
            rivo, filled, port = sides[side]
            with _behaving(rivo, filled, hangs=side == "hangs"), ThreadPoolExecutor(1) as pool:
                beside = pool.submit(
                    send,
                    port,
                    [stranger()],
                    connections=strangers,
                    seconds=seconds,
                    seed=next(seeds),
                    marker=UNAVAILABLE,
                )
                asked = send(port, known, connections=CONNECTIONS - STRANGERS, seconds=seconds, seed=next(seeds))
                return Both(known=asked, strangers=beside.result())

        subjects: dict[str, Callable[[], Both]] = {
            f"{side}, {count}": partial(load, side, count) for count in _crowds(pace) for side in sides
        }
        load("healthy", STRANGERS, seconds=WARM_UP_S)
        load("hangs", STRANGERS, seconds=WARM_UP_S)
        loads = alternated(subjects, rounds=pace.rounds)
    return _hanging_figures(loads, _crowds(pace)), _hanging_table(loads)


@contextmanager
def _behaving(rivo: Program, filled: store.Filled, *, hangs: bool) -> Iterator[None]:
    """The program as it is to be meanwhile; with every breaker closed at the beginning, so that none spares a wait."""
    database = Database(filled.url)
    with database.write() as tx:
        tx.execute(delete(gates))
    database.close()
    if hangs:
        rivo.hang()
    try:
        yield
    finally:
        rivo.answer_after(PROGRAM_S)


def _refresh_some(filled: store.Filled, *, before: int) -> None:
    """Make the snapshots of the stores up to this one as if read just now."""
    database = Database(filled.url)
    with database.write() as tx:
        tx.execute(update(snapshots).where(snapshots.c.store_id <= before).values(as_of=datetime.now(UTC)))
    database.close()


def _throughput(loads: Mapping[str, Sequence[Both]], strangers: int) -> Ratio:
    hangs, healthy = loads[f"hangs, {strangers}"], loads[f"healthy, {strangers}"]
    return Ratio.between([both.known.per_s for both in hangs], [both.known.per_s for both in healthy])


def _slowness(loads: Mapping[str, Sequence[Both]], strangers: int) -> Ratio:
    hangs, healthy = loads[f"hangs, {strangers}"], loads[f"healthy, {strangers}"]
    return Ratio.between([both.known.p99_ms for both in hangs], [both.known.p99_ms for both in healthy])


def _longest(found: Sequence[Both]) -> Spread:
    return Spread.of([both.strangers.max_ms / 1000 for both in found])


def _crowds(pace: Pace) -> tuple[int, ...]:
    return (STRANGERS,) if pace.quick else (STRANGERS, CROWD)


def _hanging_figures(loads: Mapping[str, Sequence[Both]], crowds: Sequence[int]) -> list[Figure]:
    why = "Threads that wait for the program take turns with those that answer, and each wait begins with transactions."
    return [
        figure
        for strangers in crowds
        for figure in (
            at_least(
                0.95,
                target=5,
                name=f"program hangs, {strangers} connections of strangers: known members ÷ healthy",
                measured=_throughput(loads, strangers),
                unit=" ×",
                bound_by=why,
            ),
            at_most(
                3,
                target=5,
                name=f"the same: p99 of known members ÷ healthy, {strangers} connections of strangers",
                measured=_slowness(loads, strangers),
                unit=" ×",
                bound_by=why,
            ),
            at_most(
                3,
                target=5,
                name=f"the same: longest answer for a stranger, {strangers} connections of them",
                measured=_longest(loads[f"hangs, {strangers}"]),
                unit=" s",
                bound_by=why,
            ),
        )
    ]


def _hanging_table(loads: Mapping[str, Sequence[Both]]) -> Table:
    rows = []
    for name, found in loads.items():
        side, _, strangers = name.partition(", ")
        rows.append(
            [
                f"{side}, {strangers} connections of strangers",
                told(Spread.of([both.known.per_s for both in found])),
                told(Spread.of([both.known.p50_ms for both in found])),
                told(Spread.of([both.known.p99_ms for both in found])),
                told(Spread.of([both.strangers.per_s for both in found])),
                told(_longest(found)),
                f"{sum(both.strangers.marked for both in found):,} of {sum(both.strangers.sent for both in found):,}",
                str(sum(both.known.errors + both.strangers.errors for both in found)),
            ]
        )
    return Table(
        title=f"The program hangs, {CONNECTIONS - STRANGERS} connections ask for members who are known",
        columns=[
            "",
            "known/s",
            "p50, ms",
            "p99, ms",
            "strangers/s",
            "longest stranger, s",
            f"strangers whose card said {UNAVAILABLE}",
            "errors",
        ],
        rows=rows,
        note=(
            "Half of the known members are fresh, half are older than they may be without being refreshed behind their "
            "cards. *Healthy* is the same load while the program answers after 120 ms. Every round begins with all "
            "breakers closed: nothing is known of the program's state yet."
        ),
    )

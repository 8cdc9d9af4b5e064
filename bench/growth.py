"""Whether cards and awards get slower as members, connections and the ledger grow.

Target 9. Databases of all sizes are filled before anything is measured, and take turns. Each load has a server of its
own: two of the same database differ by several parts in a hundred, for as long as they run.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import make_url

from bench import servers, store
from bench.awards import award_of
from bench.cpu import card_us
from bench.in_process import WHOLE
from bench.load import Load, Shape, send
from bench.measure import Ratio, Spread, alternated, spread_of
from bench.pace import Pace
from bench.report import Figure, Section, Table, at_most, told

# Members are spread over them: what an award's limits for the day add up must not grow while it is measured.
STORES = 50
CONNECTIONS, AWARD_CONNECTIONS = 32, 16
WARM_UP_S = 1.0
PIECE = 1 << 20
CARD_GOAL, AWARD_GOAL = 1.1, 1.2

_BOUND = (
    "Memory: a small table lies in the processor's own caches, while of a large one each request reads two or more "
    "pages that nobody has touched lately, through trees that are a level deeper, and each award writes some that no "
    "other does. A card takes about 10 µs more of a worker's time and 7 more of the kernel's, which fetches the "
    "pages; the 155 and 27 that it took before are mostly the server's. Page caches eight times as large, and the "
    "file mapped into memory, changed nothing over HTTP."
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that are compared, smallest first. Every member has one transaction: two entries of the ledger."""

    members: tuple[int, ...]
    entries: tuple[int, ...]
    connections: tuple[int, ...]
    # Members of all connections together, where connections grow.
    members_of_connections: int


WHOLE_SIZES = Sizes(
    members=(1_000, 100_000, 5_000_000),
    entries=(1_000, 1_000_000, 10_000_000),
    connections=(1, 10_000),
    members_of_connections=100_000,
)
QUICK_SIZES = Sizes(
    members=(1_000, 20_000), entries=(2_000, 40_000), connections=(1, 1_000), members_of_connections=10_000
)


def run(pace: Pace) -> Section:
    """Fill, then measure cards by members, cards by connections, and awards by entries, in this order."""
    sizes = QUICK_SIZES if pace.quick else WHOLE_SIZES
    seeds = itertools.count(1)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallydesk-bench-")))
        # Entries are two for each member: where both sizes meet, one database serves cards and then awards.
        filled = {
            members: _fill(folder, f"members-{members}", members=members, connections=STORES)
            for members in sorted({*sizes.members, *(entries // 2 for entries in sizes.entries)})
        }
        connected = {
            connections: _fill(
                folder,
                f"connections-{connections}",
                members=sizes.members_of_connections,
                connections=connections,
            )
            for connections in sizes.connections
        }
        filling_s = time.monotonic() - began
        in_process = {str(size): partial(_card_us, filled[size], pace) for size in sizes.members}
        took = {int(size): found for size, found in alternated(in_process, rounds=pace.rounds).items()}

        def measured(shapes: Mapping[int, tuple[store.Filled, Shape]], *, connections: int) -> dict[int, list[Load]]:
            """The loads by size."""
            subjects: dict[str, Callable[[], Load]] = {
                str(size): partial(_load, of, shape, connections=connections, seconds=pace.seconds, seeds=seeds)
                for size, (of, shape) in shapes.items()
            }
            return {int(name): loads for name, loads in alternated(subjects, rounds=pace.rounds).items()}

        cards = measured(
            {size: (filled[size], card_of(filled[size])) for size in sizes.members}, connections=CONNECTIONS
        )
        by_connections = measured(
            {size: (connected[size], card_of(connected[size])) for size in sizes.connections}, connections=CONNECTIONS
        )
        awards = measured(
            {
                entries: (filled[entries // 2], award_of(STORES, filled[entries // 2].members))
                for entries in sizes.entries
            },
            connections=AWARD_CONNECTIONS,
        )
    return Section(
        title="Growth",
        figures=[
            _figure("card over HTTP, members:", _slower(cards), cards, goal=CARD_GOAL),
            _figure("processor time of a card, members:", _costlier(took), cards, goal=CARD_GOAL),
            _figure("card over HTTP, connections:", _slower(by_connections), by_connections, goal=CARD_GOAL),
            _figure("award, entries of the ledger:", _slower(awards), awards, goal=AWARD_GOAL),
        ],
        tables=[
            _table("Cards by members", "members", cards, took, note=_note(filling_s)),
            _table("Cards by connections", "connections", by_connections, {}, note=_CONNECTIONS_NOTE),
            _table("Awards by entries of the ledger", "entries", awards, {}, note=_AWARDS_NOTE),
        ],
    )


def card_of(filled: store.Filled) -> Shape:
    """The card of any member of any connection."""
    return Shape(
        path="/widget/customer?email=member-{n}%40bench.example",
        headers={"X-Api-Key": "tdl_{k:064x}"},
        draws={"n": (1, filled.members), "k": (1, len(filled.connection_ids))},
    )


def _fill(folder: Path, name: str, *, members: int, connections: int) -> store.Filled:
    return store.fill(
        f"sqlite:///{folder}/{name}.db", members=members // connections, connections=connections, activity=1
    )


def _load(filled: store.Filled, shape: Shape, *, connections: int, seconds: float, seeds: itertools.count[int]) -> Load:
    """One load on a server that was started for it."""
    _read_through(filled)
    with servers.tallydesk_gunicorn(filled) as server:
        # Connections to the database, caches.
        send(server.port, [shape], connections=connections, seconds=WARM_UP_S, seed=next(seeds))
        return send(server.port, [shape], connections=connections, seconds=seconds, seed=next(seeds))


def _card_us(filled: store.Filled, pace: Pace) -> float:
    """The processor time of a card of the first store."""
    _read_through(filled)
    return card_us(filled, rounds=pace.size(3, quick=1), count=pace.size(1_000, quick=500))[WHOLE]


def _read_through(filled: store.Filled) -> None:
    """Have the system hold the whole file in memory, pages of which it may have given up since it was written."""
    with Path(make_url(filled.url).database or "").open("rb", buffering=0) as file:
        while file.read(PIECE):
            pass


def _slower(loads: Mapping[int, Sequence[Load]]) -> Ratio:
    """How many times as long one takes at the largest size as at the smallest, by how many there were a second."""
    first, *_, last = loads.values()
    return Ratio.between([load.per_s for load in first], [load.per_s for load in last])


def _costlier(took: Mapping[int, Sequence[float]]) -> Ratio:
    first, *_, last = took.values()
    return Ratio.between(last, first)


def _figure(what: str, measured: Ratio, by_size: Mapping[int, object], *, goal: float) -> Figure:
    smallest, largest = min(by_size), max(by_size)
    name = f"{what} time at {largest:,} ÷ at {smallest:,}"
    return at_most(goal, target=9, name=name, measured=measured, unit=" ×", bound_by=_BOUND)


def _table(
    title: str,
    what: str,
    loads: Mapping[int, Sequence[Load]],
    took: Mapping[int, Sequence[float]],
    *,
    note: str = "",
) -> Table:
    first, *_ = loads.values()
    rows = []
    for size, found in loads.items():
        slower = Ratio.between([load.per_s for load in first], [load.per_s for load in found])
        cost = [told(Spread.of(took[size]))] if took else []
        rows.append(
            [
                f"{size:,}",
                told(spread_of(found, "per_s")),
                "" if found is first else told(slower),
                told(spread_of(found, "p50_ms")),
                told(spread_of(found, "p99_ms")),
                *cost,
                str(sum(load.errors for load in found)),
            ]
        )
    cost_column = ["processor time, µs"] if took else []
    columns = [what, "a second", "time ÷ the first", "p50, ms", "p99, ms", *cost_column, "errors"]
    return Table(title=title, columns=columns, rows=rows, note=note)


_AWARDS_NOTE = (
    "The ledger is filled with opening balances. The log of awards begins empty: how much stands in it from "
    "other days is not what is compared here."
)
_CONNECTIONS_NOTE = (
    "As many members each time; every request draws one of the connections' keys, so that what a process remembers of "
    "a key for a moment helps the one connection alone."
)


def _note(filling_s: float) -> str:
    return (
        f"SQLite, gunicorn; members drawn at random over the whole table, in {STORES} stores; each load has a server "
        "of its own, and finds the whole file in the system's memory. The processor time is that of cards of the first "
        f"store. Filling all databases took {filling_s:,.0f} s."
    )

"""How often the program is asked when many tickets come: a helpdesk asks for a card at every event of a ticket.

Target 6. All events are of one store, whose program allows so many calls a second and no more.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from bench import servers, store
from bench.load import Load, Shape, paced
from bench.measure import Ratio, Spread
from bench.pace import Pace
from bench.program import program
from bench.report import Section, Table, at_most, told
from bench.slow_program import PROGRAM_S, UNAVAILABLE

CONNECTIONS = 64
LAST_REFRESHES_S = 1.0
KNOWN, UNKNOWN, PASSTHROUGH = "snapshots of an hour ago", "nobody known yet", "(d) pass-through"


@dataclass(frozen=True, kw_only=True)
class Minute:
    """What came of the events, and how often the program was called for them."""

    load: Load
    calls: int


def run(pace: Pace) -> Section:
    """Send the events to all at once, since it is not their speed that counts; every round to new databases."""
    events, members = pace.size(10_000, quick=500), pace.size(500, quick=25)
    seconds = pace.size(60, quick=3)
    seeds = itertools.count(1)
    rounds: dict[str, list[Minute]] = {KNOWN: [], UNKNOWN: [], PASSTHROUGH: []}
    for _ in range(pace.rounds):
        found = _round(events=events, members=members, seconds=seconds, seed=next(seeds))
        for name, minute in found.items():
            rounds[name].append(minute)
    ratio = _ratio(rounds, KNOWN)
    unavailable = float(sum(minute.load.marked for minute in rounds[KNOWN]))
    return Section(
        title="Calls to the program",
        figures=[
            at_most(
                0.06,
                target=6,
                name=f"calls for {events:,} events over {members} members in {seconds} s ÷ (d)",
                measured=ratio,
                unit=" ×",
                bound_by="A refresh is two calls: the member, and their latest changes.",
            ),
            at_most(0, target=6, name=f"the same: cards that said {UNAVAILABLE}", measured=unavailable),
        ],
        tables=[_table(rounds, events=events, members=members, seconds=seconds)],
    )


def _round(*, events: int, members: int, seconds: int, seed: int) -> dict[str, Minute]:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallydesk-bench-")))
        subjects: dict[str, Callable[[], Minute]] = {}
        for number, name in enumerate((KNOWN, UNKNOWN, PASSTHROUGH)):
            rivo = stack.enter_context(program(folder))
            rivo.answer_after(PROGRAM_S)
            filled = store.fill(
                f"sqlite:///{folder}/{number}.db",
                members=0 if name == UNKNOWN else members,
                snapshots=True,
                as_of=hour_ago,
            )
            server = (
                servers.gunicorn(
                    "bench.baselines.passthrough:app",
                    filled,
                    flags=servers.PLAIN_THREADS,
                    PROGRAM_URL=rivo.url,
                    PROGRAM_KEY=store.rivo_key(1),
                )
                if name == PASSTHROUGH
                else servers.tallydesk_gunicorn(filled, RIVO_URL=rivo.url)
            )
            port = stack.enter_context(server).port
            subjects[name] = partial(
                _minute, port, rivo.calls, events=events, members=members, seconds=seconds, seed=seed
            )
        with ThreadPoolExecutor(len(subjects)) as pool:
            under_way = {name: pool.submit(subject) for name, subject in subjects.items()}
            return {name: minute.result() for name, minute in under_way.items()}


def _minute(port: int, calls: Callable[[], int], *, events: int, members: int, seconds: int, seed: int) -> Minute:
    """Every event asks for the card of one of the members, drawn at random."""
    shape = Shape(
        path="/widget/customer?email=member-{n}%40bench.example",
        headers={"X-Api-Key": store.lookup_key(1)},
        draws={"n": (1, members)},
    )
    load = paced(
        port,
        [shape],
        connections=CONNECTIONS,
        per_s=events / seconds,
        count=events,
        seed=seed,
        marker=UNAVAILABLE,
    )
    # What is refreshed behind the last cards comes after them.
    time.sleep(LAST_REFRESHES_S)
    return Minute(load=load, calls=calls())


def _ratio(rounds: Mapping[str, Sequence[Minute]], name: str) -> Ratio:
    return Ratio.between([minute.calls for minute in rounds[name]], [minute.calls for minute in rounds[PASSTHROUGH]])


def _table(rounds: Mapping[str, Sequence[Minute]], *, events: int, members: int, seconds: int) -> Table:
    return Table(
        title=f"{events:,} ticket events over {members} members of one store in {seconds} s",
        columns=["", "calls", "÷ (d)", f"said {UNAVAILABLE}", "p50, ms", "p99, ms", "errors"],
        rows=[
            [
                name,
                told(Spread.of([minute.calls for minute in found])),
                told(_ratio(rounds, name)),
                told(Spread.of([minute.load.marked for minute in found])),
                told(Spread.of([minute.load.p50_ms for minute in found])),
                told(Spread.of([minute.load.p99_ms for minute in found])),
                str(sum(minute.load.errors for minute in found)),
            ]
            for name, found in rounds.items()
        ],
        note=(
            "Every event asks for one card; the program answers after 120 ms. Known members are shown from their "
            "snapshots while at most five calls a second refresh them behind. Where nobody is known yet, each member "
            "has to be asked for before their first card, and Tallydesk asks for one store no more than twelve times a "
            "second, as the program allows: until everybody was asked for, cards that come sooner say that they are "
            "temporarily unavailable. The pass-through calls as often as events come, beyond what the program allows; "
            "the one here answers all the same, and Rivo would refuse."
        ),
    )

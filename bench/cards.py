"""The card, end to end over sockets: how many a second, beside what the same servers do with less, and what others do.

Targets 1 and 2.
"""

from __future__ import annotations

import http.client
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench import servers, store
from bench.baselines.raw_wsgi import BODY
from bench.load import Load, Shape, send
from bench.measure import Ratio, alternated, spread_of
from bench.pace import Pace
from bench.report import Figure, Section, Table, at_least, told

CONNECTIONS = 32
BARE = "bench.baselines.bare_flask:app"
# A snapshot that stays fresh for as long as the run takes.
FRESH_S = "86400"

CARD, SNAPSHOT, ON_POSTGRES = "card, built-in ledger", "card, fresh Rivo snapshot", "card, built-in ledger, PostgreSQL"
BASE_A, BASE_B, BASE_C = "(a) bare Flask, gunicorn", "(b) bare Flask, granian", "(c) FastAPI's lookup, uvicorn"

_BOUND = (
    "The processor: both cores are busy, and beside what the server does for every request a card checks a key, reads "
    "the database, counts and logs, and carries ten headers more. The section on processor time says what each takes."
)
_BOUND_ON_POSTGRES = (
    "The processor: a card is one message there and back, which costs our process and the database's about 0.2 ms "
    "together, and both are on these two cores; a database on a host of its own takes its half along."
)


def card_of(members: int) -> Shape:
    """The card of one of so many members of the first connection."""
    return Shape(
        path="/widget/customer?email=member-{n}%40bench.example",
        headers={"X-Api-Key": store.lookup_key(1)},
        draws={"n": (1, members)},
    )


def run(pace: Pace) -> Section:
    """Measure the cards of all kinds of store on all servers."""
    seeds = itertools.count(1)
    with _subjects(pace) as ports:
        shape = card_of(pace.members)

        def load(port: int, *, connections: int, seconds: float) -> Load:
            return send(port, [shape], connections=connections, seconds=seconds, seed=next(seeds))

        def all_with(connections: int, seconds: float) -> Mapping[str, Callable[[], Load]]:
            return {name: partial(load, port, connections=connections, seconds=seconds) for name, port in ports.items()}

        alternated(all_with(CONNECTIONS, min(0.5, pace.seconds)), rounds=1)  # connections to the database, caches
        loads = alternated(all_with(CONNECTIONS, pace.seconds), rounds=pace.rounds)
        alone = alternated(all_with(1, min(2, pace.seconds) / 2), rounds=max(1, pace.rounds // 2))
    return Section(title="Cards", figures=_figures(loads), tables=[_table(pace, loads, alone)])


@contextmanager
def _subjects(pace: Pace) -> Iterator[dict[str, int]]:
    """The ports of all servers, by what they serve."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallydesk-bench-")))
        ledger = store.fill(f"sqlite:///{folder}/ledger.db", members=pace.members)
        rivo = store.fill(f"sqlite:///{folder}/rivo.db", members=pace.members, snapshots=True)
        postgres = stack.enter_context(servers.postgres())
        elsewhere = store.fill(postgres.url(postgres.create()), members=pace.members, folder=folder)
        email_key = ledger.email_key.hex()
        started = {
            f"{CARD}, gunicorn": servers.tallydesk_gunicorn(ledger),
            f"{SNAPSHOT}, gunicorn": servers.tallydesk_gunicorn(rivo, SNAPSHOT_FRESH_S=FRESH_S),
            f"{ON_POSTGRES}, gunicorn": servers.tallydesk_gunicorn(elsewhere),
            BASE_A: servers.gunicorn(BARE, ledger),
            f"{CARD}, granian": servers.tallydesk_granian(ledger),
            f"{SNAPSHOT}, granian": servers.tallydesk_granian(rivo, SNAPSHOT_FRESH_S=FRESH_S),
            BASE_B: servers.granian("bench.baselines.bare_flask:on_granian", ledger, factory=True),
            BASE_C: servers.uvicorn("bench.baselines.fastapi_lookup:app", ledger, EMAIL_KEY=email_key),
            "(e) raw WSGI function, granian": servers.granian("bench.baselines.raw_wsgi:app", ledger),
        }
        if servers.has_nginx():
            started["(e) static file, nginx"] = servers.nginx(folder, body=BODY)
        running = stack.enter_context(servers.together(started))
        ports = {name: server.port for name, server in running.items()}
        for port in ports.values():
            see_a_card(port)
        yield ports


def see_a_card(port: int) -> None:
    """What is fast must also be right."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    client.request("GET", card_of(1).path.replace("{n}", "1"), headers=dict(card_of(1).headers))
    answer = client.getresponse()
    body = answer.read()
    client.close()
    assert answer.status == 200, (answer.status, body)
    assert b'"Member"' in body, body


def _ratio(loads: Mapping[str, list[Load]], name: str, base: str) -> Ratio:
    return Ratio.between([load.per_s for load in loads[name]], [load.per_s for load in loads[base]])


def _figures(loads: Mapping[str, list[Load]]) -> list[Figure]:
    return [
        at_least(
            goal,
            target=target,
            name=f"{name} ÷ {base}",
            measured=_ratio(loads, name, base),
            unit=" ×",
            bound_by=_BOUND_ON_POSTGRES if name.startswith(ON_POSTGRES) else _BOUND,
        )
        for target, name, base, goal in (
            (1, f"{SNAPSHOT}, gunicorn", BASE_A, 0.80),
            (1, f"{CARD}, gunicorn", BASE_A, 0.80),
            (1, f"{ON_POSTGRES}, gunicorn", BASE_A, 0.80),
            (1, f"{SNAPSHOT}, granian", BASE_B, 0.65),
            (1, f"{CARD}, granian", BASE_B, 0.65),
            (2, f"{CARD}, gunicorn", BASE_C, 1.0),
            (2, f"{CARD}, granian", BASE_C, 2.0),
        )
    ]


def _table(pace: Pace, loads: Mapping[str, list[Load]], alone: Mapping[str, list[Load]]) -> Table:
    rows = [
        [
            name,
            told(spread_of(found, "per_s")),
            told(_ratio(loads, name, BASE_A)),
            told(spread_of(found, "p50_ms")),
            told(spread_of(found, "p99_ms")),
            told(spread_of(alone[name], "p50_ms")),
            str(sum(load.errors for load in [*found, *alone[name]])),
        ]
        for name, found in loads.items()
    ]
    return Table(
        title=f"{pace.members:,} members, {CONNECTIONS} connections",
        columns=["", "requests/s", "÷ (a)", "p50, ms", "p99, ms", "alone, p50, ms", "errors"],
        rows=rows,
        note=(
            "Two worker processes each. gunicorn runs the shipped gunicorn.conf.py; granian has "
            f"{servers.GRANIAN_THREADS} threads a worker. "
            "*Alone* is one connection. (a), (b) and (e) answer constants: no key, no database, no metrics, no log "
            "line. (a) and (b) go through Flask, which the card is led past (widget/lookup.py). (c) checks the key and "
            "reads the same file through an ORM, and uvicorn writes its access log. PostgreSQL runs on the same cores, "
            "with its own durability."
        ),
    )

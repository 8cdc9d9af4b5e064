"""What an award in a store of a program elsewhere costs beside the program's own calls: the journal, and the rest.

Target 8. Awards one after the other, in a process of its own (`python -m bench.journal`, an order as JSON on standard
input). The time of each is taken apart where one part of the product calls another; a part's time is without that of
the parts it calls.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from functools import partial, wraps
from math import fsum
from pathlib import Path
from typing import Any

import outbound
from bench import servers, store
from bench.awards import of_process
from bench.measure import Spread, alternated
from bench.pace import Pace
from bench.program import program
from bench.report import Section, Table, at_most, told
from loyalty.awards import AwardRequest, Awards, Origin, Rules, Status
from loyalty.delivery import Delivery
from loyalty.gate import Gate
from loyalty.journal import Journal
from loyalty.members import Members
from loyalty.program import ProgramKind, Store
from services import build_services
from settings import load
from telemetry import configure_logging
from tests.processes.serving import environment

# As many stores as it takes for no award to wait for its turn: the program's limit of calls is for each.
STORES, MEMBERS = 64, 20
PROGRAM_S = 0.005


class Part(StrEnum):
    """Where the time of an award goes."""

    CALLS = "the program's calls, as the caller sees them"
    INTENT = "journal: the intent, with limits and the look for a double click"
    OUTCOME = "journal: the outcome"
    BEFORE = "reading the member before"
    GATE = "the gate: whether and when the program may be called"
    EXCHANGE = "putting calls together, reading their answers"
    AFTER = "keeping the new balance for the card"


JOURNAL = (Part.INTENT, Part.OUTCOME)

_ON_SQLITE = (
    "The disk: two transactions are waited for, and each of them is at least what stands above for one of a single row."
)
_ON_POSTGRESQL = (
    "The server: two commits that wait for the disk (about 0.25 ms each), the job, which the engine's own function and "
    "three triggers write (0.2 ms), the award written and settled, with its place in eight indexes (0.3 ms), and six "
    "messages there and back, of which each wakes a process that sleeps (0.06 to 0.1 ms). None can be left out: lock, "
    "limits, the look for a double click, the award, its outcome, the attempt, the job. What is above the median's "
    "double is the disk's and the server's own work beside it."
)


def run(pace: Pace) -> Section:
    """Measure on both databases."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tallydesk-bench-")))
        rivo = stack.enter_context(program(folder))
        rivo.answer_after(PROGRAM_S)
        postgres = stack.enter_context(servers.postgres())
        subjects = {
            name: partial(_awards_in, filled, rivo_url=rivo.url, count=pace.size(400, quick=50))
            for name, filled in (
                ("SQLite", _fill(f"sqlite:///{folder}/journal.db", folder)),
                ("PostgreSQL", _fill(postgres.url(postgres.create()), folder)),
            )
        }
        rounds = alternated(subjects, rounds=pace.rounds)
    return Section(
        title="The award journal",
        figures=[
            at_most(
                3,
                target=8,
                name=f"the award journal's own cost beside the program's calls, p99, {name}",
                measured=Spread.of([_p(99, _sums(awards, JOURNAL)) for awards in found]),
                unit=" ms",
                bound_by=bound_by,
            )
            for (name, found), bound_by in zip(rounds.items(), (_ON_SQLITE, _ON_POSTGRESQL), strict=True)
        ],
        tables=[_table(name, found) for name, found in rounds.items()],
    )


def _fill(url: str, folder: Path) -> store.Filled:
    return store.fill(url, members=MEMBERS, connections=STORES, snapshots=True, folder=folder)


def _awards_in(filled: store.Filled, *, rivo_url: str, count: int) -> list[dict[str, float]]:
    """Milliseconds of each award by part."""
    settings = {**environment(filled.url, port=1, folder=filled.folder), "RIVO_URL": rivo_url}
    found: list[dict[str, float]] = of_process("bench.journal", {"settings": settings, "count": count})
    return found


def _table(name: str, rounds: Sequence[Sequence[Mapping[str, float]]]) -> Table:
    def row(title: str, parts: Sequence[Part]) -> list[str]:
        sums = [_sums(awards, parts) for awards in rounds]
        return [title, *(told(Spread.of([_p(percent, one) for one in sums])) for percent in (50, 99))]

    own = [part for part in Part if part is not Part.CALLS]
    return Table(
        title=f"One award in a Rivo store, ms, {name}",
        columns=["", "p50", "p99"],
        rows=[
            *(row(part.value, [part]) for part in Part),
            row("**the journal: intent and outcome**", JOURNAL),
            row("everything but the program's calls", own),
        ],
        note=(
            f"One award after the other, without HTTP on our side; the program answers after {1000 * PROGRAM_S:g} ms "
            "over HTTP and is called twice for each award: to add the points, and for the balance after. The *intent* "
            "is the transaction in which the award is written down before it is sent; the *outcome* is the transaction "
            "after, with the job for the note. All members were known and fresh, so that nothing was asked before."
        ),
    )


def _sums(awards: Sequence[Mapping[str, float]], parts: Sequence[Part]) -> list[float]:
    return sorted(fsum(award.get(part, 0.0) for part in parts) for award in awards)


def _p(percent: int, ordered: Sequence[float]) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


class _Meter:
    """Takes the time of calls apart. For one thread."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def over(self, part: Part, of: Any, *names: str) -> None:
        """Count these functions of a class or module as `part` from now on."""
        for name in names:
            setattr(of, name, self._timed(part, getattr(of, name)))

    def _timed(self, part: Part, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self.spent[part] += 1000 * (took - self._inner.pop())
                if self._inner:
                    self._inner[-1] += took

        return timed


def main() -> None:
    """Carry out the order: so many awards, and what each took by part."""
    order = json.load(sys.stdin)
    configure_logging()
    services = build_services(load(order["settings"], var=Path()))
    meter = _Meter()
    meter.over(Part.INTENT, Awards, "award")
    meter.over(Part.OUTCOME, Journal, "applied", "read")
    meter.over(Part.BEFORE, Members, "first")
    meter.over(Part.GATE, Gate, "check", "enter", "succeeded")
    meter.over(Part.EXCHANGE, Delivery, "send_now")
    meter.over(Part.AFTER, Members, "took")
    meter.over(Part.CALLS, outbound.Client, "exchange")
    rules = Rules(
        max_points_per_award=store.UNLIMITED,
        max_points_per_agent_per_day=store.UNLIMITED,
        max_points_per_day=store.UNLIMITED,
    )
    found = []
    for number in range(order["count"]):
        meter.spent.clear()
        k = number % STORES + 1
        request = AwardRequest(
            emails=(store.email(number % MEMBERS + 1),),
            points=10,
            reason="Late delivery",
            origin=Origin(
                connection_id=k, channel="button", ticket_id=f"{time.time_ns()}", agent_email="agent-1@bench.example"
            ),
        )
        result = services.awards.award(Store(id=k, program=ProgramKind.RIVO), request=request, rules=rules)
        assert result.status is Status.APPLIED, result
        found.append(dict(meter.spent))
    services.database.close()
    # Without the first of every store, which loads keys and makes connections.
    print(json.dumps(found[min(STORES, len(found) // 5) :]))


if __name__ == "__main__":
    main()
